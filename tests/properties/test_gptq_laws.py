"""Laws of GPTQ on a single weight, for any shape, scheme and input statistics."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench.quant.grid import quantize_dequantize
from dllm_qbench.quant.layer_error import weight_error
from dllm_qbench.quant.methods.gptq import gptq_weight
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.layers import correlated_layer

Layer = tuple[Tensor, Tensor]
layers = st.builds(
    correlated_layer, st.integers(1, 6), st.integers(1, 24), st.integers(0, 2**31 - 1)
)
schemes = st.builds(
    Scheme,
    st.integers(2, 8),
    st.just(16),
    st.one_of(st.none(), st.integers(1, 24)),
    st.booleans(),
)
act_orders = st.booleans()


def nearest(weight: Tensor, scheme: Scheme) -> Tensor:
    return quantize_dequantize(weight, scheme.weight_bits, bool(scheme.symmetric), scheme.group)


@given(layers, schemes, act_orders, st.randoms(use_true_random=False))
def test_permuting_rows_permutes_the_result(layer: Layer, scheme: Scheme, act: bool, rng) -> None:  # type: ignore[no-untyped-def]
    weight, hessian = layer
    order = list(range(len(weight)))
    rng.shuffle(order)
    expected = gptq_weight(weight, hessian, scheme, act_order=act)[order]
    found = gptq_weight(weight[order], hessian, scheme, act_order=act)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@given(layers, schemes, act_orders)
def test_diagonal_hessian_is_rtn(layer: Layer, scheme: Scheme, act: bool) -> None:
    weight, hessian = layer
    diagonal = hessian.diagonal().diag()
    found = gptq_weight(weight, diagonal, scheme, act_order=act)
    assert torch.equal(found, nearest(weight, scheme))


@given(layers, schemes, act_orders, st.integers(-20, 20), st.integers(-20, 20))
def test_scaling_a_row_or_the_hessian_scales_accordingly(
    layer: Layer, scheme: Scheme, act: bool, row_power: int, hessian_power: int
) -> None:
    weight, hessian = layer
    plain = gptq_weight(weight, hessian, scheme, act_order=act)
    factor = torch.ones(len(weight), 1).double()
    factor[0] = 2.0**row_power  # powers of two: exact in floating point
    found = gptq_weight(weight * factor, hessian * 2.0**hessian_power, scheme, act_order=act)
    torch.testing.assert_close(found, plain * factor, rtol=1e-12, atol=0)


@given(layers, schemes, act_orders)
def test_levels_are_at_most_two_to_the_bits(layer: Layer, scheme: Scheme, act: bool) -> None:
    weight, hessian = layer
    quantized = gptq_weight(weight, hessian, scheme, act_order=act)
    for part in quantized.split(scheme.group or weight.shape[1], dim=1):
        assert all(len(row.unique()) <= 2**scheme.weight_bits for row in part)


@given(layers, st.integers(0, 2**31 - 1), st.integers(2, 8), st.booleans())
def test_permuting_inputs_changes_nothing_when_the_order_is_by_activity(
    layer: Layer, seed: int, bits: int, symmetric: bool
) -> None:
    weight, hessian = layer
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    scheme = Scheme(bits, 16, None, symmetric)
    plain = gptq_weight(weight, hessian, scheme, act_order=True)
    found = gptq_weight(weight[:, order], hessian[order][:, order], scheme, act_order=True)
    torch.testing.assert_close(found, plain[:, order], rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**31 - 1), st.sampled_from(["W2A16", "W3A16", "W4A16-g16", "W4A16-sym"]))
def test_error_is_below_rtns_on_correlated_inputs(seed: int, text: str) -> None:
    weight, hessian = correlated_layer(rows=16, columns=32, seed=seed)
    scheme = Scheme.parse(text)
    ours = weight_error(weight, gptq_weight(weight, hessian, scheme), hessian)
    assert ours < weight_error(weight, nearest(weight, scheme), hessian)
