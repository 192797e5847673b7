"""Canvases on which a cell's fidelity is measured: true answers of its task, partly masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_qbench.diffusion.masking import draw_masks
from dllm_qbench.errors import TaskError
from dllm_qbench.models.embedded.items import answer_length, test_items
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

ITEMS = 64


@dataclass(frozen=True, eq=False)
class Canvases:
    """Answers as a model sees them between the first and the last denoising step.

    Attributes:
        ids: long ``[B, T]``, some answer tokens masked.
        attention_mask: ``[B, T]``, 0 for padding.
        truth: ``ids`` with nothing masked.
        mask_ratio: ``[B]``, masked share of the answer's tokens, above 0.
    """

    ids: Tensor
    attention_mask: Tensor
    truth: Tensor
    mask_ratio: Tensor


def canvases(lm: DiffusionLM, family: str, seed: int = 0, items: int = ITEMS) -> Canvases:
    """Return one canvas for each of a family's first items.

    Answers are filled up with the end of text as in generation, and hide k tokens, k uniform on
    1..length. An item's canvas does not depend on how many there are.

    Raises:
        TaskError: the model has no tokenizer.
    """
    if lm.tokenizer is None:
        raise TaskError(f"{lm.name} has no tokenizer; the probe of a task needs one")
    rows, truths, ratios = [], [], []
    for item in test_items(family, items, seed):
        prompt = list(lm.tokenizer(item.prompt)["input_ids"])
        answer = list(lm.tokenizer(item.answer, add_special_tokens=False)["input_ids"])
        answer += [lm.eos_id] * (answer_length(family, lm.closed_targets) - len(answer))
        (hidden,) = draw_masks(len(answer), 1, derive(seed, "probe", family, item.id))
        truths.append(prompt + answer)
        rows.append(
            prompt + [lm.mask_id if i in hidden else token for i, token in enumerate(answer)]
        )
        ratios.append(len(hidden) / len(answer))
    return padded(rows, truths, ratios, lm.pad_id)


def padded(
    rows: Sequence[list[int]], truths: Sequence[list[int]], ratios: Sequence[float], pad_id: int
) -> Canvases:
    """Return canvases of unequal lengths as one table, padded on the right."""
    longest = max(map(len, rows))
    padding = [[pad_id] * (longest - len(row)) for row in rows]
    return Canvases(
        ids=torch.tensor([row + pad for row, pad in zip(rows, padding, strict=True)]),
        attention_mask=torch.tensor(
            [[1] * len(row) + [0] * len(pad) for row, pad in zip(rows, padding, strict=True)]
        ),
        truth=torch.tensor([row + pad for row, pad in zip(truths, padding, strict=True)]),
        mask_ratio=torch.tensor(ratios),
    )
