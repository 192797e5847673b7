"""Laws of AWQ: folding changes nothing, searching never loses to rounding to nearest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.grid import quantize_dequantize
from dllm_qbench.quant.layers import BLOCK_GROUPS, QuantLinear, target_names
from dllm_qbench.quant.methods.awq import clip_shares, round_clipped, scaling_factors
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.tiny import tiny_llada

LAYERS = 2
seeds = st.integers(0, 2**31 - 1)
kv_heads = st.sampled_from([1, 2, 4])
loudness = st.sampled_from([1.0, 30.0, 1000.0])
schemes = st.builds(
    Scheme, st.integers(2, 5), st.just(16), st.sampled_from([None, 8, 12, 16]), st.booleans()
)


def model(seed: int, kv: int, loud: float, dtype: torch.dtype = torch.float64) -> DiffusionLM:
    """A tiny model with one loud channel behind each norm, which its readers make up for."""
    lm = tiny_llada(seed, dtype, n_kv_heads=kv, n_layers=LAYERS)
    for layer in lm.model.model.layers:  # type: ignore[union-attr]
        for norm, readers in zip(
            (layer.input_layernorm, layer.post_attention_layernorm), BLOCK_GROUPS[::2], strict=True
        ):
            norm.weight[seed % 32] *= loud
            for name in readers:
                layer.get_submodule(name).weight[:, seed % 32] /= loud
    return lm


def padded(lm: DiffusionLM, seed: int) -> Calibration:
    lengths = (3, 9, 1, 12, 7, 9)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, 64, (n,), generator=generator).tolist() for n in lengths]
    return qb.calibration(lm, seed=seed, sequences=len(rows), ids=rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@given(seed=seeds, kv=kv_heads, loud=loudness)
@settings(max_examples=6, deadline=None)
def test_folding_leaves_logits_unchanged(
    dtype: torch.dtype, tolerance: float, seed: int, kv: int, loud: float
) -> None:
    lm = model(seed, kv, loud, dtype)
    data = padded(lm, seed)
    folded = qb.quantize(lm, "awq", "W16A16", data)
    real = data.attention_mask.bool()
    expected = lm.logits(data.ids, data.attention_mask)[real]
    found = folded.logits(data.ids, data.attention_mask)[real]
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance
    for name in target_names(lm.model):  # something was folded everywhere
        s = _layer(folded, name).input_scale
        assert s is not None
        assert float(s.std()) > 0.01, name


@given(seed=seeds, kv=kv_heads, loud=loudness, scheme=schemes)
@settings(max_examples=5, deadline=None)
def test_factors_of_a_search_fold_exactly_too(
    seed: int, kv: int, loud: float, scheme: Scheme
) -> None:
    lm = model(seed, kv, loud)
    data = padded(lm, seed)
    quantized = qb.quantize(lm, "awq", scheme, data)
    for name in target_names(lm.model):  # the full-precision weights, as rescaled
        layer = _layer(quantized, name)
        layer.weight.copy_(_weight(lm, name) / effective(torch.ones_like(layer.weight), layer))
    real = data.attention_mask.bool()
    expected = lm.logits(data.ids, data.attention_mask)[real]
    found = quantized.logits(data.ids, data.attention_mask)[real]
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-9


@given(seed=seeds, kv=kv_heads, loud=loudness, scheme=schemes)
@settings(max_examples=5, deadline=None)
def test_no_place_is_ever_worse_than_rtn(seed: int, kv: int, loud: float, scheme: Scheme) -> None:
    """By the objective as the docstring has it, computed here by whole forward passes."""
    lm = model(seed, kv, loud)
    data = padded(lm, seed)
    ours, floor = qb.quantize(lm, "awq", scheme, data), qb.quantize(lm, "rtn", scheme)
    for index in range(LAYERS):
        for group in BLOCK_GROUPS:
            names = [f"model.layers.{index}.{leaf}" for leaf in group]
            found, least = (
                objective(lm, data, {name: effective_weight(q, name) for name in names})
                for q in (ours, floor)
            )
            assert found <= least * (1 + 1e-9), names


def objective(lm: DiffusionLM, data: Calibration, weights: dict[str, Tensor]) -> float:
    """Mean over real tokens of ||e||^2 / (||h||^2 + D eps), e at the half that ``weights`` are in.

    Behind a norm (q, k, v; gate, up) only the part of e across h counts.
    """
    changed = lm.clone()
    for name, weight in weights.items():
        changed.model.get_submodule(name).weight.copy_(weight)  # type: ignore[operator, union-attr]
    block, _, leaf = next(iter(weights)).partition(".self_attn.")
    half, norm = "self_attn", "input_layernorm"
    if not leaf:
        block, half, norm = block.partition(".mlp.")[0], "mlp", "post_attention_layernorm"
    h, y = run(lm, data, f"{block}.{norm}", f"{block}.{half}")
    _, q = run(changed, data, f"{block}.{norm}", f"{block}.{half}")
    stream = (h + y).square().sum(-1) + h.shape[-1] * 1e-5
    error = (q - y).square().sum(-1)
    if len(weights) > 1:
        error -= ((q - y) * (h + y)).sum(-1).square() / stream
    return float((error / stream).mean())


def run(lm: DiffusionLM, data: Calibration, norm: str, half: str) -> tuple[Tensor, Tensor]:
    """Real tokens ``[N, D]`` of what enters ``norm`` and of what ``half`` puts out."""
    seen: dict[str, Tensor] = {}

    def entering(_module: Any, args: tuple[Tensor, ...]) -> None:
        seen["h"] = args[0]

    def leaving(_module: Any, _args: Any, out: Any) -> None:
        seen["y"] = out[0] if isinstance(out, tuple) else out

    hooks = [
        lm.model.get_submodule(norm).register_forward_pre_hook(entering),
        lm.model.get_submodule(half).register_forward_hook(leaving),
    ]
    lm.logits(data.ids, data.attention_mask)
    for hook in hooks:
        hook.remove()
    real = data.attention_mask.bool()
    return seen["h"][real], seen["y"][real]


def effective(weight: Tensor, layer: QuantLinear) -> Tensor:
    """Return what ``weight`` in this layer stands for in the full-precision model."""
    assert layer.input_scale is not None
    weight = weight / layer.input_scale
    return weight if layer.output_scale is None else weight * layer.output_scale[:, None]


def effective_weight(quantized: DiffusionLM, name: str) -> Tensor:
    layer = _layer(quantized, name)
    return layer.weight if layer.input_scale is None else effective(layer.weight, layer)


@given(seed=seeds, kv=kv_heads, scheme=schemes)
@settings(max_examples=4, deadline=None)
def test_input_is_untouched_and_the_same_draw_gives_the_same_bits(
    seed: int, kv: int, scheme: Scheme
) -> None:
    lm = model(seed, kv, 30.0, torch.float32)
    before = lm.clone().fingerprint()
    first, second = (qb.quantize(lm, "awq", scheme, padded(lm, seed)) for _ in range(2))
    assert lm.clone().fingerprint() == before
    assert first.fingerprint() == second.fingerprint()


@given(seed=seeds, scheme=schemes)
@settings(max_examples=4, deadline=None)
def test_every_group_holds_at_most_two_to_the_bits_levels(seed: int, scheme: Scheme) -> None:
    lm = model(seed, 2, 30.0)
    quantized = qb.quantize(lm, "awq", scheme, padded(lm, seed))
    for name in target_names(lm.model):
        weight = _layer(quantized, name).weight
        for part in weight.split(scheme.group or weight.shape[1], dim=1):
            for row in part:
                assert len(row.unique()) <= 2**scheme.weight_bits, name


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A weight ``[O, I]``, factors ``[I]`` and the second moment of correlated inputs ``[I, I]``."""
    generator = torch.Generator().manual_seed(draw(seeds))
    O, I = draw(st.integers(1, 5)), draw(st.integers(1, 20))  # noqa: E741
    x = torch.randn(30, I, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(I, I, generator=generator, dtype=torch.float64)
    weight = torch.randn(O, I, generator=generator, dtype=torch.float64)
    return weight, scaling_factors(x.abs().mean(0), draw(st.floats(0, 1))), x.T @ x


@given(layers(), schemes)
@settings(max_examples=50, deadline=None)
def test_clipping_never_makes_a_group_worse(
    layer: tuple[Tensor, Tensor, Tensor], scheme: Scheme
) -> None:
    weight, s, second_moment = layer
    symmetric = bool(scheme.symmetric)
    shares = clip_shares(weight, s, second_moment, scheme, symmetric, 20)
    assert bool(((shares >= 0.5) & (shares <= 1)).all())
    size = scheme.group or weight.shape[1]
    for first in range(0, weight.shape[1], size):
        part = slice(first, first + size)
        H = second_moment[part, part]
        errors = [
            (round_clipped(weight * s, scheme, symmetric, which)[0] / s - weight)[:, part]
            for which in (shares, None)
        ]
        clipped, whole = (((e @ H) * e).sum(-1) for e in errors)
        assert bool((clipped <= whole * (1 + 1e-9) + 1e-12).all())


@given(layers(), schemes, st.integers(-20, 20), st.integers(-20, 20))
@settings(max_examples=50, deadline=None)
def test_clip_shares_do_not_depend_on_units(
    layer: tuple[Tensor, Tensor, Tensor], scheme: Scheme, row_power: int, input_power: int
) -> None:
    weight, s, second_moment = layer
    rows = torch.ones(len(weight), 1, dtype=torch.float64)
    rows[0] = 2.0**row_power  # powers of two: exact in floating point
    symmetric = bool(scheme.symmetric)
    expected = clip_shares(weight, s, second_moment, scheme, symmetric, 20)
    found = clip_shares(weight * rows, s, second_moment * 4.0**input_power, scheme, symmetric, 20)
    assert torch.equal(found, expected)


@given(layers(), schemes)
@settings(max_examples=50, deadline=None)
def test_rounding_without_a_clip_is_the_grids(
    layer: tuple[Tensor, Tensor, Tensor], scheme: Scheme
) -> None:
    weight, _, _ = layer
    symmetric = bool(scheme.symmetric)
    expected = quantize_dequantize(weight, scheme.weight_bits, symmetric, scheme.group)
    for shares in (None, 1.0):
        assert torch.equal(round_clipped(weight, scheme, symmetric, shares)[0], expected)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0, 1), st.integers(-20, 20))
@settings(max_examples=50, deadline=None)
def test_factors_rise_with_magnitude_and_do_not_depend_on_its_unit(
    magnitudes: list[float], ratio: float, power: int
) -> None:
    x = torch.tensor(magnitudes, dtype=torch.float64)
    s = scaling_factors(x, ratio)
    order = x.argsort()
    assert bool((s[order].diff() >= 0).all())
    assert math.isclose(float(s.max() * s.min()), 1.0, rel_tol=1e-9)
    assert 0.01 - 1e-9 <= float(s.min()) <= float(s.max()) <= 100 + 1e-6
    torch.testing.assert_close(scaling_factors(x * 2.0**power, ratio), s)


def _weight(lm: DiffusionLM, name: str) -> Tensor:
    weight: Any = lm.model.get_submodule(name).weight
    return weight


def _layer(lm: DiffusionLM, name: str) -> QuantLinear:
    layer = lm.model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer
