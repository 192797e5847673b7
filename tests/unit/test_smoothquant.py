"""SmoothQuant: equation 4 by hand, and a function that smoothing does not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.capture import channel_maxima
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.methods.smoothquant import smooth, smoothing_factors
from tests.helpers.tiny import tiny_llada

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"n_kv_heads": 2},
    "one value head": {"n_kv_heads": 1},
    "tied": {"weight_tying": True},
}


def data(lm: DiffusionLM) -> Any:
    return qb.calibration(lm, sequences=8, length=12)


def with_outliers(lm: DiffusionLM) -> DiffusionLM:
    """Make two channels behind each norm 30 times larger, as real checkpoints have them."""
    for layer in lm.model.model.layers:
        layer.input_layernorm.weight[3] *= 30
        layer.post_attention_layernorm.weight[11] *= 30
    return lm


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_smoothing_leaves_the_function_unchanged(variant: str, alpha: float) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        lm = with_outliers(tiny_llada(dtype=dtype, **VARIANTS[variant]))
        quantized = qb.quantize(lm, "smoothquant", "W16A16", data(lm), alpha=alpha)
        ids = torch.arange(4, 44).view(4, 10)
        expected, found = lm.logits(ids), quantized.logits(ids)
        assert float((found - expected).norm() / expected.norm()) < tolerance
        weights = [m.model.model.layers[0].mlp.up_proj.weight for m in (lm, quantized)]
        assert not torch.equal(*weights)  # it did smooth


def test_smoothing_carries_the_value_bias() -> None:
    lm = tiny_llada(dtype=torch.float64, n_kv_heads=2)
    for layer in lm.model.model.layers:
        biased = nn.Linear(32, 16, dtype=torch.float64).requires_grad_(False)
        biased.bias.copy_(torch.linspace(-2, 2, 16))
        layer.self_attn.v_proj = biased
    ids = torch.arange(4, 24).view(2, 10)
    expected = lm.logits(ids)
    found = qb.quantize(lm, "smoothquant", "W16A16", data(lm)).logits(ids)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_factors_by_hand() -> None:
    x = torch.tensor([4.0, 100.0, 0.0, 3.0])
    w = torch.tensor([1.0, 0.25, 5.0, 0.0])
    # sqrt(4)/sqrt(1), sqrt(100)/sqrt(0.25), then a dead input and a dead weight
    assert smoothing_factors(x, w, 0.5).tolist() == [2.0, 20.0, 1.0, 1.0]
    assert smoothing_factors(x, w, 1.0).tolist() == [4.0, 100.0, 1.0, 1.0]
    assert smoothing_factors(x, w, 0.0).tolist() == [1.0, 4.0, 1.0, 1.0]


def test_qkv_share_one_factor_from_all_three_weights() -> None:
    lm = tiny_llada()
    attention = lm.model.model.layers[0].self_attn
    attention.k_proj.weight[:, 5] *= 50  # q's weights alone would miss it
    x_max = channel_maxima(lm.model, data(lm))[0]["self_attn.q_proj"]
    columns = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    expected = smoothing_factors(x_max, columns.abs().amax(0), 0.5)
    with torch.no_grad():
        factors = smooth(lm.clone().model, data(lm), 0.5)
    for leaf in ("q_proj", "k_proj", "v_proj"):
        assert torch.equal(factors[f"model.layers.0.self_attn.{leaf}"]["input"], expected)


def test_query_heads_of_a_group_share_their_value_heads_factor() -> None:
    lm = tiny_llada(n_kv_heads=2)  # 4 query heads of width 8 read 2 value heads
    output = lm.model.model.layers[0].self_attn.o_proj.weight
    x_max = channel_maxima(lm.model, data(lm))[0]["self_attn.o_proj"]
    w_max = output.abs().amax(0)

    def joint(values: Tensor) -> list[float]:
        return [
            max(float(values[(2 * head + twin) * 8 + i]) for twin in range(2))
            for head in range(2)
            for i in range(8)
        ]

    expected = smoothing_factors(torch.tensor(joint(x_max)), torch.tensor(joint(w_max)), 0.5)
    with torch.no_grad():
        factors = smooth(lm.clone().model, data(lm), 0.5)
    written = factors["model.layers.0.self_attn.v_proj"]["output"]
    torch.testing.assert_close(written, expected)
    read = factors["model.layers.0.self_attn.o_proj"]["input"].view(2, 2, 8)
    assert torch.equal(read[:, 0], read[:, 1])
    assert torch.equal(read[:, 0].reshape(-1), written)


def test_dead_channels_are_safe() -> None:
    lm = tiny_llada()
    layer = lm.model.model.layers[0]
    layer.input_layernorm.weight[4] = 0  # never an input
    layer.mlp.gate_proj.weight[:, 6] = 0  # never read
    layer.mlp.up_proj.weight[:, 6] = 0
    layer.mlp.up_proj.weight[9] = 0  # never written
    ids = torch.arange(4, 24).view(2, 10)
    found = qb.quantize(lm, "smoothquant", "W16A16", data(lm)).logits(ids)
    torch.testing.assert_close(found, lm.logits(ids), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(qb.quantize(lm, "smoothquant", "W4A4", data(lm)).logits(ids)).all()


def test_smoothing_beats_rtn_where_channels_are_outliers() -> None:
    lm = with_outliers(tiny_llada())
    ids = data(lm).ids
    reference = lm.logits(ids)
    error = {
        method: float((qb.quantize(lm, method, "W8A8", data(lm)).logits(ids) - reference).norm())
        for method in ("rtn", "smoothquant")
    }
    assert error["smoothquant"] < 0.7 * error["rtn"]


def test_layers_keep_the_factors_and_a_symmetric_grid() -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "smoothquant", "W4A4", data(lm))
    for index in range(2):
        for leaf in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
            layer = quantized.model.get_submodule(f"model.layers.{index}.{leaf}")
            assert isinstance(layer, QuantLinear)
            assert layer.symmetric is True
            assert layer.input_scale is not None
            assert (layer.output_scale is None) == (leaf == "mlp.down_proj")


def test_alpha_outside_zero_to_one_is_an_error() -> None:
    lm = tiny_llada()
    with pytest.raises(ValueError, match=r"alpha must lie in 0\.\.1, found 1\.5"):
        qb.quantize(lm, "smoothquant", "W8A8", data(lm), alpha=1.5)


def test_only_the_first_sequences_are_looked_at() -> None:
    """A maximum grows with the tokens it is taken over, so their number is part of the recipe."""
    lm = tiny_llada()
    many, few = (qb.calibration(lm, seed=0, sequences=n) for n in (40, 16))
    made = qb.quantize(lm, "smoothquant", "W4A4", many, sequences=16)
    same = qb.quantize(lm, "smoothquant", "W4A4", few)
    assert made.fingerprint() == same.fingerprint()
    whole = qb.quantize(lm, "smoothquant", "W4A4", many)
    assert whole.fingerprint() != made.fingerprint()
    assert made.recipe is not None
    assert made.recipe["parameters"] == {"alpha": 0.5, "sequences": 16}
    with pytest.raises(ValueError, match="sequences must be at least 1"):
        qb.quantize(lm, "smoothquant", "W4A4", few, sequences=0)
