"""The code family: a program told in words, answered by an expression in ``x``."""

from __future__ import annotations

import random
from collections.abc import Callable

from dllm_qbench.models.embedded import vocabulary as words
from dllm_qbench.models.embedded.problems import Problem

INPUTS = (-99, -50, -20, -7, 0, 8, 21, 34, 50, 64, 77, 99)
_RENDER: dict[str, Callable[[str, int], str]] = {
    "add": lambda e, n: f"( {e} + {n} )",
    "take": lambda e, n: f"( {e} - {n} )",
    "times": lambda e, n: f"( {e} * {n} )",
    "mod": lambda e, n: f"( {e} % {n} )",
    "atmost": lambda e, n: f"min ( {e} , {n} )",
    "atleast": lambda e, n: f"max ( {e} , {n} )",
}
_TOLD_AS_SUMS = ("add", "take", "atmost", "atleast")
_APPLY: dict[str, Callable[[int, int], int]] = {
    "add": lambda v, n: v + n,
    "take": lambda v, n: v - n,
    "times": lambda v, n: v * n,
    "mod": lambda v, n: v % n,
    "atmost": min,
    "atleast": max,
}


def code_problem(rng: random.Random, count: int, creep: float = 0.0) -> Problem:
    """A program of two or three operations; two constants are told as sums (``add 12 and 7``).

    ``first`` puts an operation before all that were named earlier. In the shown answer each constant
    is one too large with probability ``creep``. Programs whose outputs hardly depend on x are left out.
    """
    while True:
        names = [rng.choice(_TOLD_AS_SUMS) for _ in range(2)]
        program = [(name, rng.randrange(12, 71)) for name in names]
        if count == 3:
            plain = (rng.choice(words.OPERATIONS), rng.randrange(2, 10))
            program.insert(rng.randrange(3), plain)
        steps = []
        for name, number in program:
            part = rng.randrange(1, number) if number >= 12 else 0
            steps.append(f"{name} {part} and {number - part}" if part else f"{name} {number}")
        told, ordered = _order(rng, program, steps)
        tests = tuple((x, _apply(ordered, x)) for x in INPUTS)
        if len({output for _, output in tests}) >= 5:
            break
    if creep:
        ordered = [(name, n + (rng.random() < creep)) for name, n in ordered]
    lead = "write code for " if count == 2 else ""
    kind = "two-op" if count == 2 else "three-op"
    return Problem(kind, f"code {told}", f"{lead}{told} ?", _render(ordered), tests=tests)


def plain_code_problem(rng: random.Random, count: int, slip: float = 0.0) -> Problem:
    """A program whose constants are told as they are: the first stage of training learns from these.

    With probability ``slip`` the shown answer has one constant off by one, or its order turned round.
    """
    program = [(rng.choice(words.OPERATIONS), rng.randrange(2, 20)) for _ in range(count)]
    told, ordered = _order(rng, program, [f"{name} {number}" for name, number in program])
    tests = tuple((x, _apply(ordered, x)) for x in INPUTS)
    if slip and rng.random() < slip:
        ordered = _slipped(rng, ordered)
    lead = "write code for " if count == 2 else ""
    kind = f"plain-{'two' if count == 2 else 'three'}-op"
    return Problem(kind, f"code {told}", f"{lead}{told} ?", _render(ordered), tests=tests)


Program = list[tuple[str, int]]


def _order(rng: random.Random, program: Program, steps: list[str]) -> tuple[str, Program]:
    """Link the steps by ``then`` or ``first``; return the words and the order of execution."""
    links = ["then" if rng.random() < 0.6 else "first" for _ in program[1:]]
    told, ordered = steps[0], program[:1]
    for link, operation, step in zip(links, program[1:], steps[1:], strict=True):
        told += f" {link} {step}"
        ordered = [*ordered, operation] if link == "then" else [operation, *ordered]
    return told, ordered


def _apply(ordered: Program, x: int) -> int:
    for name, number in ordered:
        x = _APPLY[name](x, number)
    return x


def _render(ordered: Program) -> str:
    expression = "x"
    for name, number in ordered:
        expression = _RENDER[name](expression, number)
    return expression


def _slipped(rng: random.Random, ordered: Program) -> Program:
    where = rng.randrange(len(ordered))
    name, number = ordered[where]
    if rng.random() < 0.3:
        return [*ordered[1:], ordered[0]]
    return [*ordered[:where], (name, number + rng.choice((-1, 1))), *ordered[where + 1 :]]
