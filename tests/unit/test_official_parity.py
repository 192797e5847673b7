"""Checkpoints in the official formats, sharded, against a second computation from their bytes.

The second computation reads config.json and the safetensors files itself, by official names, and runs the
forward pass written out by hand in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.models.synthetic import write_checkpoint
from tests.helpers import official, official_dream, official_illada
from tests.helpers.raw_safetensors import read_tensors

Forward = Callable[[dict[str, Any], dict[str, Tensor], list[int]], Tensor]
FORWARDS: dict[str, Forward] = {
    "llada": official.forward_by_hand,
    "illada": official_illada.forward_by_hand,
    "Dream": official_dream.forward_by_hand,
}
# Name -> architecture, fields that differ from the tiny size, tensors.
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "LLaDA": ("llada", {}, 21),
    "LLaDA, grouped and tied": ("llada", {"n_kv_heads": 2, "weight_tying": True}, 20),
    "LLaDA, one key/value head": ("llada", {"n_kv_heads": 1}, 21),
    "iLLaDA": ("illada", {}, 20),
    "iLLaDA, untied": ("illada", {"tie_word_embeddings": False, "num_key_value_heads": 4}, 21),
    "Dream": ("Dream", {}, 27),
    "Dream, tied": ("Dream", {"tie_word_embeddings": True}, 26),
}
IDS = [7, 300, 5, 5, 17, 511, 5, 2, 2, 5, 99]  # masks (5), repeats, an end of text (2) inside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_computation_from_the_bytes(
    tmp_path: Path, variant: str, dtype: torch.dtype
) -> None:
    architecture, fields, count = VARIANTS[variant]
    folder = write_checkpoint(
        tmp_path, architecture, size="tiny", shards=3, dtype=dtype, seed=11, **fields
    )
    config, tensors = json.loads((folder / "config.json").read_text()), read_tensors(folder)
    assert len(tensors) == count
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    lm = qb.load(folder)
    scored = slice(lm.first_maskable, None)  # nothing predicts Dream's token 0
    expected = FORWARDS[architecture](config, tensors, IDS)[scored]
    assert (lm.logits(IDS)[scored] - expected).abs().max() < 1e-5
    # a batch, and padding on the right, change nothing
    padded = torch.tensor([[*IDS, 2, 2, 2], [*IDS[::-1], 9, 9, 9]])
    mask = torch.tensor([[1] * len(IDS) + [0] * 3, [1] * len(IDS) + [1] * 3])
    found = lm.logits(padded, mask)[0, : len(IDS)][scored]
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_matters(tmp_path: Path, variant: str) -> None:
    # Parity would say little about a tensor that both computations hardly use.
    architecture, fields, _ = VARIANTS[variant]
    folder = write_checkpoint(tmp_path, architecture, size="tiny", shards=2, seed=11, **fields)
    config, tensors = json.loads((folder / "config.json").read_text()), read_tensors(folder)
    whole = FORWARDS[architecture](config, tensors, IDS)[1:]
    for name, tensor in tensors.items():
        changed = tensors | {name: tensor.float().roll(1, -1)}
        moved = (FORWARDS[architecture](config, changed, IDS)[1:] - whole).abs().max()
        if name.endswith("k_proj.bias"):
            assert moved > 1e-4, name  # adds the same to a query's scores, but for RoPE
        else:
            assert moved > 1e-2, name
