"""RTN over a whole model: each linear is its own nearest rounding, and activations are per token."""

from __future__ import annotations

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.quant.grid import quantize_dequantize
from dllm_qbench.quant.layers import QuantLinear, quantize_tokens, target_names
from tests.helpers.tiny import tiny_llada


@pytest.mark.parametrize(
    ("scheme", "bits", "symmetric", "group"),
    [
        ("W4A16", 4, False, None),  # weight-only: asymmetric
        ("W3A16-g20", 3, False, 20),
        ("W4A16-sym", 4, True, None),
        ("W8A8", 8, True, None),  # activations too: symmetric
        ("W4A4-asym", 4, False, None),
    ],
)
def test_every_weight_is_rounded_on_its_own_grid(
    scheme: str, bits: int, symmetric: bool, group: int | None
) -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "rtn", scheme)
    for name in target_names(lm.model):
        weight = lm.model.get_submodule(name).weight
        layer = quantized.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        assert layer.symmetric is symmetric
        assert torch.equal(layer.weight, quantize_dequantize(weight, bits, symmetric, group))
    assert quantized.recipe is not None
    assert quantized.recipe["symmetric"] is symmetric
    assert quantized.recipe["calibration"] is None


def test_linear_rounds_its_input_per_token_then_multiplies() -> None:
    lm = tiny_llada()
    layer = qb.quantize(lm, "rtn", "W4A4").model.get_submodule("model.layers.0.mlp.up_proj")
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([quantize_dequantize(row, 4, True) for row in x]) @ layer.weight.T
    torch.testing.assert_close(layer(x), by_hand, rtol=1e-5, atol=1e-5)


def test_one_tokens_spike_does_not_touch_the_others() -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    spiked = x.clone()
    spiked[1, 3] = 1e6
    before, after = quantize_tokens(x, 4), quantize_tokens(spiked, 4)
    rest = [0, 2, 3]
    assert torch.equal(before[rest], after[rest])
    assert int((after[1] != 0).sum()) == 1  # and drowns its own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_token_quantizer_keeps_zeros_types_and_its_input(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, -7.0]], dtype=dtype)
    before = x.clone()
    rounded = quantize_tokens(x, 4)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, before)  # step 1: all four values are levels
    assert torch.equal(x, before)


def test_token_with_nan_becomes_nan_and_no_other() -> None:
    x = torch.ones(3, 4)
    x[1, 2] = torch.nan
    rounded = quantize_tokens(x, 8)
    assert rounded[1].isnan().all()
    assert torch.isfinite(rounded[[0, 2]]).all()


def test_logit_error_falls_with_every_step_of_bits() -> None:
    lm = tiny_llada()
    ids = torch.arange(4, 44).view(4, 10)
    reference = lm.logits(ids)
    errors = [
        float((qb.quantize(lm, "rtn", f"W{bits}A16").logits(ids) - reference).norm())
        for bits in (2, 3, 4, 6, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0
