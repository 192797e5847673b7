"""Canvases on which a cell's layer errors are measured: true answers of its task, partly masked."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_qbench.diffusion.masking import draw_masks
from dllm_qbench.errors import TaskError
from dllm_qbench.models.embedded.items import answer_length, test_items
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

_ITEMS = 64


def probe(lm: DiffusionLM, family: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 64 canvases of a family's first items and their attention mask, both ``[64, T]``.

    Answers are filled up with the end of text as in generation, and hide k tokens, k uniform on
    1..length: what a model sees between the first and the last denoising step.

    Raises:
        TaskError: the model has no tokenizer.
    """
    if lm.tokenizer is None:
        raise TaskError(f"{lm.name} has no tokenizer; the probe of a task needs one")
    rows = []
    for item in test_items(family, _ITEMS, seed):
        prompt = list(lm.tokenizer(item.prompt)["input_ids"])
        answer = list(lm.tokenizer(item.answer, add_special_tokens=False)["input_ids"])
        answer += [lm.eos_id] * (answer_length(family, lm.closed_targets) - len(answer))
        (hidden,) = draw_masks(len(answer), 1, derive(seed, "probe", family, item.id))
        rows.append(
            prompt + [lm.mask_id if i in hidden else token for i, token in enumerate(answer)]
        )
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [lm.pad_id] * (longest - len(row)) for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BT, mask_BT
