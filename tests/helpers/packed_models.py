"""Quantized models beside their packed selves, and how far each packed layer is from the fake one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.kernels import Codes
from dllm_qbench.quant.layer_error import token_sqnr
from dllm_qbench.quant.layers import QuantLinear

MODELS = ("llada-embedded", "dream-embedded")
WEIGHT_ONLY = ("W4A16-g64", "W3A16-g64", "W4A16-g128")
BOTH = ("W8A8", "W4A4")
QUANTIZERS = (
    *((method, scheme) for method in ("rtn", "gptq", "awq") for scheme in WEIGHT_ONLY),
    *((m, scheme) for m in ("rtn", "smoothquant", "quarot", "duquant") for scheme in BOTH),
)
"""The quick matrix, and groups of 128."""
QUICK: Mapping[str, dict[str, Any]] = {
    "awq": {"ratios": 4, "clip_steps": 4},
    "duquant": {"steps": 8},
}  # how well a model is quantized does not matter here
SAME_DB = 90.0
"""A token's SQNR, packed against fake, of a layer that reads the very same input in float32. Over 64
canvases, these quantizers and both models the least was 116 dB (one unit in the last place is about 140)."""


@cache
def full(model: str, dtype: torch.dtype = torch.float32) -> qb.DiffusionLM:
    """Full precision; do not change it."""
    return qb.load(model, dtype=dtype)


@cache
def fake(
    model: str, method: str, scheme: str, dtype: torch.dtype = torch.float32
) -> qb.DiffusionLM:
    """Quantized, with float weights; do not change it."""
    lm = full(model, dtype)
    return qb.quantize(lm, method, scheme, qb.calibration(lm, sequences=4), **QUICK.get(method, {}))


def canvases(lm: qb.DiffusionLM, count: int) -> tuple[Tensor, Tensor]:
    """Canvases with masks, none of them at a position that the model cannot predict."""
    data = qb.calibration(lm, seed=1, sequences=count)
    ids = data.ids.clone()
    ids[:, : lm.first_maskable] = lm.eos_id
    return ids, data.attention_mask.bool()


def alone(
    fake: qb.DiffusionLM, packed: qb.DiffusionLM, ids: Tensor, mask: Tensor
) -> dict[str, float]:
    """Each packed layer against the fake one, both fed what the fake model feeds it: the worst token's
    SQNR in dB, by layer; without tokens that a backend's transform rounds to the other side of a tie.
    """
    with recorded(fake.model) as seen:
        fake.logits(ids, mask)
    worst = {}
    with torch.inference_mode():
        for name, (x_BTI, y_BTO) in seen.items():
            other, x_NI = layer(packed, name), x_BTI[mask]
            decibel_N = token_sqnr(y_BTO[mask], other(x_BTI)[mask])
            differ_NI, tied_NI = rounded_apart(layer(fake, name), other, x_NI)
            left_out_N = differ_NI.any(-1) & (tied_NI | ~differ_NI).all(-1)
            assert float(left_out_N.double().mean()) < 0.1
            worst[name] = float(decibel_N[~left_out_N].min())
    return worst


def rounded_apart(fake: QuantLinear, packed: QuantLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where a packed layer rounds an input to another level than the fake one, and where that is the
    level beside and the input within a thousandth of a step of the tie between the two.
    """
    read = packed._turned_and_rounded(x)
    if not isinstance(read, Codes):
        return torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
    step = read.scale.double()
    steps = (read.dequantize().double() - fake._turned_and_rounded(x).double()).abs() / step
    from_tie = ((fake.turned(x).double() / step).frac().abs() - 0.5).abs()
    return steps > 1e-3, ((steps - 1).abs() < 1e-3) & (from_tie < 1e-3)


def layer(lm: qb.DiffusionLM, name: str) -> QuantLinear:
    found = lm.model.get_submodule(name)
    assert isinstance(found, QuantLinear)
    return found


@contextmanager
def recorded(model: nn.Module) -> Iterator[Mapping[str, tuple[Tensor, Tensor]]]:
    """What every quantized linear reads and puts out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (args[0], out)

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
