"""Trajectories: where two models that denoise the same canvas part ways.

Only a diffusion model has these: an answer is not written from left to right, each step commits some
positions, and quantization shows in which positions it commits first, before it shows in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllm_qbench.diffusion.by_model import generate
from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.probe import ITEMS
from dllm_qbench.models.embedded.items import answer_length, test_items
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

Trace = Sequence[Commit]


def draft(lm: DiffusionLM, family: str, seed: int = 0, items: int = ITEMS) -> list[Trace]:
    """Let a model write the answers of a family's first items, one token a step, in one block.

    For families that are scored by likelihood, where the task itself generates nothing.

    Raises:
        TaskError: the model has no tokenizer.
    """
    if lm.tokenizer is None:
        raise TaskError(f"{lm.name} has no tokenizer; a trajectory needs one")
    length = answer_length(family, lm.closed_targets)
    asked = test_items(family, items, seed)
    traces: list[list[Commit]] = []
    generate(
        lm,
        [list(lm.tokenizer(item.prompt)["input_ids"]) for item in asked],
        length,
        length,
        length,
        seeds=[derive(seed, "draft", family, item.id) for item in asked],
        labels=[f"draft of {family}, item {item.id}" for item in asked],
        trace=traces,
    )
    return list(traces)


def compare_traces(reference: Sequence[Trace], quantized: Sequence[Trace]) -> dict[str, Any]:
    """Compare the commits of two models on the same prompts, item by item.

    Returns:
        ``items``; ``commit_flips``, by step the share of commits that differ, where a commit is a
        position with its token, averaged over items; ``first_divergence``, for each item the first
        step whose commits differ, -1 where none does; ``sequence_match``, for each item whether the
        finished answers are equal token by token (they can be after a detour).

    Raises:
        ValueError: other numbers of items.
    """
    if len(reference) != len(quantized):
        raise ValueError(f"{len(reference)} traces cannot be compared with {len(quantized)}")
    flips: dict[int, list[float]] = {}
    first, match = [], []
    for one, other in zip(reference, quantized, strict=True):
        a, b = _by_step(one), _by_step(other)
        diverged = -1
        for step in sorted(a.keys() | b.keys()):
            x, y = a.get(step, set()), b.get(step, set())
            changed = 1 - len(x & y) / max(len(x), len(y), 1)
            flips.setdefault(step, []).append(changed)
            if changed and diverged < 0:
                diverged = step
        first.append(diverged)
        match.append(_finished(one) == _finished(other))
    return {
        "items": len(first),
        "commit_flips": [round(sum(f) / len(f), 6) for _, f in sorted(flips.items())],
        "first_divergence": first,
        "sequence_match": match,
    }


def _by_step(trace: Trace) -> dict[int, set[tuple[int, int]]]:
    return {c.step: set(zip(c.positions, c.tokens, strict=True)) for c in trace}


def _finished(trace: Trace) -> dict[int, int]:
    """Return the token that each position ended with."""
    tokens: dict[int, int] = {}
    for commit in trace:
        tokens.update(zip(commit.positions, commit.tokens, strict=True))
    return tokens
