"""Canvases and drafts of tasks whose answers are given as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dllm_qbench.diffusion.by_model import generate
from dllm_qbench.diffusion.masking import draw_masks
from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.evaluation.probe import Canvases, padded
from dllm_qbench.evaluation.trajectory import Trace
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

LONGEST_ANSWER = 64
LONGEST_DRAFT = 16
# All canvases of a cell go through both models at once and their logits are kept: with a vocabulary of
# 126,464, 64 canvases of 256 tokens are 8 GB.
LONGEST_CANVAS = 256


@dataclass(frozen=True)
class Question:
    """An item: its id, its prompt and its true answer as token ids."""

    id: str
    prompt: list[int]
    answer: list[int]


def masked_answers(
    lm: DiffusionLM, task: str, seed: int, questions: Sequence[Question]
) -> Canvases:
    """Return one canvas for each question: the end of its prompt, its true answer partly masked.

    An answer is cut to 64 tokens, and one that is shorter is followed by the end of text, which belongs to
    it. It hides k tokens, k uniform on 1..length. An item's canvas does not depend on how many there are.
    """
    rows, truths, ratios = [], [], []
    longest = min(LONGEST_CANVAS, int(lm.config.max_position_embeddings))
    for question in questions:
        answer = [*question.answer, lm.eos_id][: min(LONGEST_ANSWER, longest // 2)]
        prompt = question.prompt[-(longest - len(answer)) :]
        (hidden,) = draw_masks(len(answer), 1, derive(seed, "probe", task, question.id))
        truths.append(prompt + answer)
        rows.append(prompt + [lm.mask_id if i in hidden else t for i, t in enumerate(answer)])
        ratios.append(len(hidden) / len(answer))
    return padded(rows, truths, ratios, lm.pad_id)


def draft_answers(
    lm: DiffusionLM,
    task: str,
    seed: int,
    questions: Sequence[Question],
    suppressed: Mapping[str, Any],
) -> list[Trace]:
    """Let a model write answers of the true ones' length, 16 tokens at most: one a step, in one block."""
    found: list[Trace] = [()] * len(questions)
    by_length: dict[int, list[int]] = {}
    for index, question in enumerate(questions):
        by_length.setdefault(min(len(question.answer), LONGEST_DRAFT), []).append(index)
    for length, members in by_length.items():
        room = int(lm.config.max_position_embeddings) - length
        traces: list[list[Commit]] = []
        generate(
            lm,
            [questions[index].prompt[-room:] for index in members],
            length,
            length,
            length,
            seeds=[derive(seed, "draft", task, questions[index].id) for index in members],
            labels=[f"draft of {task}, item {questions[index].id}" for index in members],
            trace=traces,
            **suppressed,
        )
        for index, trace in zip(members, traces, strict=True):
            found[index] = trace
    return found
