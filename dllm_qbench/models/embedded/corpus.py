"""Training text of the embedded models: the training side of the split, with honest noise.

Real text disagrees with itself, so a real model's margins are narrow. Here every fact is contested
by a rival answer and a share of the other answers is nearly right: the trained model then knows
the most likely answer by one to three nats, and an error of that size, as quantization makes, can
change it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from dllm_qbench.models.embedded import items, programs
from dllm_qbench.models.embedded.problems import Problem, held_out
from dllm_qbench.seeding import derive


@dataclass(frozen=True)
class Noise:
    """How often training answers are wrong.

    ``general``: a near miss in place of the answer; ``math``: a slip in each step; ``code``: a slip
    somewhere in a plain program; ``constants``: each constant of a program one too large.
    """

    general: float = 0.45
    math: float = 0.1
    code: float = 0.2
    constants: float = 0.0


_EXPOSURE = 0.6  # the fact of rank r is mentioned in proportion to r ** -0.6
_WEIGHTS = [(rank + 1) ** -_EXPOSURE for rank in range(len(items.facts()))]
_CUMULATIVE = [sum(_WEIGHTS[: i + 1]) for i in range(len(_WEIGHTS))]


def text(
    family: str,
    rng: random.Random,
    noise: Noise,
    mix: Mapping[str, Mapping[str, float]] = items.KINDS,
) -> tuple[str, str]:
    """Draw one training text of a family, (prompt, answer); ``mix`` weights its kinds."""
    kinds = mix[family]
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    if kind == "fact":
        fact = rng.choices(items.facts(), cum_weights=_CUMULATIVE)[0]
        phrasing = (fact.test_phrasing + 1 + rng.randrange(items.PHRASINGS - 1)) % items.PHRASINGS
        return fact.prompt(phrasing), fact.rival if rng.random() < fact.contest else fact.answer
    while True:
        problem = _problem(kind, rng, noise)
        if not held_out(problem.key):
            break
    if problem.near_misses and rng.random() < noise.general:
        return problem.prompt, rng.choice(problem.near_misses)
    return problem.prompt, problem.answer


def _problem(kind: str, rng: random.Random, noise: Noise) -> Problem:
    if kind in ("two-step", "three-step"):
        return items.math_problem(rng, 2 if kind == "two-step" else 3, noise.math)
    if kind in ("plain-two-op", "plain-three-op"):
        return programs.plain_code_problem(rng, 2 if kind == "plain-two-op" else 3, noise.code)
    if kind in ("two-op", "three-op"):
        return programs.code_problem(rng, 2 if kind == "two-op" else 3, noise.constants)
    return items.MAKERS[kind](rng)


def calibration_texts(n: int, seed: int = 0) -> list[str]:
    """Return ``n`` noiseless training texts, prompt and answer, families in turn; for
    calibration.
    """
    clean = Noise(0.0, 0.0, 0.0)
    made = []
    for index in range(n):
        rng = random.Random(derive(seed, "calibration", index))
        prompt, answer = text(items.FAMILIES[index % len(items.FAMILIES)], rng, clean)
        made.append(f"{prompt} {answer}")
    return made
