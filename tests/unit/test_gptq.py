"""GPTQ on single weights: a textbook implementation as oracle, and the inputs that break it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError, SchemeError
from dllm_qbench.quant.grid import find_grid, quantize_dequantize, scale_and_zero
from dllm_qbench.quant.layer_error import weight_error
from dllm_qbench.quant.methods.gptq import gptq_weight, inverse_factor
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.layers import correlated_layer
from tests.helpers.tiny import tiny_llada


def textbook(weight: Tensor, hessian: Tensor, scheme: Scheme, act_order: bool = False) -> Tensor:
    """OBQ in a fixed order, written from the papers: the full inverse, one column at a time.

    Shares the grid (scale and zero point of a row's group) with the package, and nothing else: no
    Cholesky factor, no lazy blocks, no permuted arrays.
    """
    symmetric = bool(scheme.symmetric)
    W, H = weight.double().clone(), hessian.double()
    size = W.shape[1]
    low, high = (-(2 ** (scheme.weight_bits - 1)) + 1, 2 ** (scheme.weight_bits - 1) - 1)
    if not symmetric:
        low, high = 0, 2**scheme.weight_bits - 1
    inverse = torch.linalg.inv(H + 0.01 * H.diagonal().mean() * torch.eye(size).double())
    group = scheme.group or size
    fixed = find_grid(W, scheme.weight_bits, symmetric, group)
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(size)
    Q = torch.zeros_like(W)
    for q in order.tolist():
        if act_order:
            scale, zero = fixed.scale[:, q // group], fixed.zero[:, q // group]
        elif q % group == 0:
            scale, zero = scale_and_zero(W[:, q : q + group], scheme.weight_bits, symmetric)
        code = torch.clamp(torch.round(W[:, q] / scale) + zero, low, high)
        Q[:, q] = (code - zero) * scale
        # equation 2: spread the error over the columns that are left, then eliminate column q
        W = W - torch.outer((W[:, q] - Q[:, q]) / inverse[q, q], inverse[q])
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return Q


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [
        "W4A16",
        "W3A16-sym",
        "W4A16-g16",
        "W3A16-g24",  # 200 is no multiple of 24
        "W2A16-g128-sym",
        "W4A16-g150",  # wider than the lazy block
        "W8A16-g1",
    ],
)
def test_error_is_the_textbooks_and_below_rtns(scheme: str, act_order: bool) -> None:
    weight, hessian = correlated_layer(rows=24, columns=200, seed=1)
    parsed = Scheme.parse(scheme)
    ours = weight_error(weight, gptq_weight(weight, hessian, scheme, act_order=act_order), hessian)
    oracle = weight_error(weight, textbook(weight, hessian, parsed, act_order), hessian)
    nearest = quantize_dequantize(weight, parsed.weight_bits, bool(parsed.symmetric), parsed.group)
    assert ours <= 1.01 * oracle + 1e-9
    if parsed.group != 1:  # a group of one weight has no error to make up for
        assert ours < weight_error(weight, nearest, hessian)


def test_values_are_the_textbooks_to_rounding() -> None:
    weight, hessian = correlated_layer(rows=8, columns=140, seed=2)
    ours = gptq_weight(weight, hessian, "W4A16-g32")
    expected = textbook(weight, hessian, Scheme.parse("W4A16-g32"))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_massive_input_channel_is_served_first() -> None:
    weight, hessian = correlated_layer(rows=16, columns=64, seed=3, massive=(5, 2000.0))
    nearest = quantize_dequantize(weight, 4, False, 32)
    ours = gptq_weight(weight, hessian, "W4A16-g32")
    assert weight_error(weight, ours, hessian) < weight_error(weight, nearest, hessian)


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_columns_round_to_nearest_and_change_nothing_else(act_order: bool) -> None:
    weight, hessian = correlated_layer(rows=6, columns=20, seed=4)
    dead = torch.tensor([0, 7, 19])
    hessian[dead] = 0
    hessian[:, dead] = 0
    quantized = gptq_weight(weight, hessian, "W4A16", damp=0.01, act_order=act_order)
    nearest = quantize_dequantize(weight, 4, False)
    assert torch.isfinite(quantized).all()
    if act_order:  # grids then come from the original weights, as RTN's do
        torch.testing.assert_close(quantized[:, dead], nearest[:, dead])
    step = find_grid(weight, 4, False).scale
    assert ((quantized - weight)[:, dead].abs() <= 0.501 * step).all()
    changed = weight.clone()
    changed[:, dead] *= 0.5  # another weight on the dead columns, within the row's range
    live = torch.ones(20, dtype=torch.bool).index_fill(0, dead, False)
    again = gptq_weight(changed, hessian, "W4A16", act_order=act_order)
    same_range = (find_grid(changed, 4, False).scale == step).squeeze(1)
    assert same_range.any()
    assert torch.equal(again[same_range][:, live], quantized[same_range][:, live])


def test_dead_columns_alone_do_not_need_damping(recwarn: pytest.WarningsRecorder) -> None:
    weight, hessian = correlated_layer(rows=6, columns=20, seed=4)
    hessian[3] = 0
    hessian[:, 3] = 0
    assert torch.isfinite(gptq_weight(weight, hessian, "W4A16", damp=0.0)).all()
    assert not recwarn.list


def test_all_columns_dead_is_rtn() -> None:
    weight, _ = correlated_layer(rows=4, columns=12, seed=5)
    quantized = gptq_weight(weight, torch.zeros(12, 12), "W4A16-g5")
    assert torch.equal(quantized, quantize_dequantize(weight, 4, False, 5))


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_rows_are_kept(value: float) -> None:
    _, hessian = correlated_layer(rows=1, columns=16, seed=6)
    weight = torch.full((2, 16), value)
    quantized = gptq_weight(weight, hessian, "W4A16-g8")
    torch.testing.assert_close(quantized, weight, rtol=1e-6, atol=0)


def test_sixteen_bits_change_nothing() -> None:
    weight, hessian = correlated_layer(rows=3, columns=8, seed=7)
    assert torch.equal(gptq_weight(weight, hessian, "W16A16"), weight)


def test_arguments_are_not_written() -> None:
    weight, hessian = correlated_layer(rows=3, columns=8, seed=8)
    before = weight.clone(), hessian.clone()
    gptq_weight(weight, hessian, "W3A16-g4", act_order=True)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_data_type_of_the_weight_is_kept(dtype: torch.dtype) -> None:
    weight, hessian = correlated_layer(rows=3, columns=8, seed=9)
    assert gptq_weight(weight.to(dtype), hessian.float(), "W4A16").dtype == dtype


def test_fewer_tokens_than_columns_needs_no_warning_with_damping() -> None:
    x = torch.randn(10, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessian = x.T @ x
    quantized = gptq_weight(weight, hessian, "W3A16")
    nearest = quantize_dequantize(weight, 3, False)
    assert weight_error(weight, quantized, hessian) < weight_error(weight, nearest, hessian)


def test_singular_hessian_without_damping_warns_and_still_works() -> None:
    x = torch.ones(3, 12).double()
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="not positive definite at damp=0; used"):
        quantized = gptq_weight(weight, x.T @ x, "W4A16", damp=0.0)
    assert torch.isfinite(quantized).all()


def test_indefinite_hessian_is_an_error() -> None:
    hessian = torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    with pytest.raises(ValueError, match="far from positive semidefinite"):
        gptq_weight(torch.ones(1, 2), hessian, "W4A16")


def test_factor_is_that_of_the_damped_inverse() -> None:
    _, hessian = correlated_layer(rows=1, columns=30, seed=10)
    U = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(30).double()
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(damped), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("where", ["weight", "Hessian"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_input_is_named(where: str, bad: float) -> None:
    weight, hessian = correlated_layer(rows=3, columns=8, seed=11)
    (weight if where == "weight" else hessian)[1, 2] = bad
    with pytest.raises(NonFiniteError, match=f"the {where} holds 1 non-finite value"):
        gptq_weight(weight, hessian, "W4A16")


@pytest.mark.parametrize(
    ("weight", "hessian"), [((3, 8), (7, 7)), ((3, 8), (8, 7)), ((8,), (8, 8)), ((3, 8), (8,))]
)
def test_shapes_that_do_not_fit_are_named(
    weight: tuple[int, ...], hessian: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"a weight \[out, in\] needs a Hessian \[in, in\]"):
        gptq_weight(torch.ones(weight), torch.ones(hessian), "W4A16")


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="damp must be 0 or more"):
        gptq_weight(torch.ones(2, 2), torch.eye(2), "W4A16", damp=-0.1)
    with pytest.raises(SchemeError):
        gptq_weight(torch.ones(2, 2), torch.eye(2), "W4A5")


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_token_cap_must_be_positive(cap: float) -> None:
    with pytest.raises(ValueError, match="token_cap must be above 0, or None"):
        qb.quantize(tiny_llada(), "gptq", "W4A16-g16", token_cap=cap)
