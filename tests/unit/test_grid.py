"""The number grid on rows where published implementations go wrong, by table."""

from __future__ import annotations

import math

import pytest
import torch

from dllm_qbench.errors import NonFiniteError, SchemeError
from dllm_qbench.quant.grid import code_range, find_grid, quantize_dequantize

BITS = (2, 3, 4, 8)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("constant", [0.5, -0.5, 3e-30, 1e30])
def test_constant_row_is_kept(constant: float, bits: int, symmetric: bool) -> None:
    x = torch.full((1, 8), constant)
    torch.testing.assert_close(quantize_dequantize(x, bits, symmetric, 4), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_row_stays_zero(bits: int, symmetric: bool) -> None:
    x = torch.zeros(3, 7)
    assert torch.equal(quantize_dequantize(x, bits, symmetric, 3), x)
    assert torch.equal(find_grid(x, bits, symmetric, 3).scale, torch.ones(3, 3).double())


@pytest.mark.parametrize("symmetric", [True, False])
def test_single_outlier_is_kept_and_the_rest_is_within_half_a_step(symmetric: bool) -> None:
    x = torch.tensor([[0.3, -0.2, 0.1, 700.0]])
    quantized = quantize_dequantize(x, 4, symmetric)
    step = 700 / (7 if symmetric else 15)
    # the asymmetric range is 700.2 wide, and its zero point rounds to code 0
    assert quantized[0, 3] == pytest.approx(700 if symmetric else 700.2)
    assert (x - quantized).abs().max() <= step / 2


@pytest.mark.parametrize("sign", [1, -1])
def test_row_of_one_sign_is_not_clipped(sign: int) -> None:
    x = sign * torch.tensor([[1.0, 5.0, 15.0]])
    assert torch.equal(quantize_dequantize(x, 4, symmetric=False), x)
    assert quantize_dequantize(x, 4, symmetric=True)[0, 2] == pytest.approx(15 * sign)


def test_symmetric_levels_by_hand() -> None:
    x = torch.tensor([[-7.0, -3.5, -0.4, 0.0, 0.6, 2.5, 7.0]])
    # step 1; ties (-3.5, 2.5) go away from zero
    expected = torch.tensor([[-7.0, -4.0, 0.0, 0.0, 1.0, 3.0, 7.0]])
    assert torch.equal(quantize_dequantize(x, 4, symmetric=True), expected)


def test_asymmetric_levels_by_hand() -> None:
    x = torch.tensor([[-5.0, -0.4, 0.0, 2.6, 10.0]])
    grid = find_grid(x, 4, symmetric=False)
    assert (float(grid.scale), float(grid.zero)) == (1.0, 5.0)
    assert grid.codes(x).tolist() == [[0, 5, 5, 8, 15]]
    expected = torch.tensor([[-5.0, 0.0, 0.0, 3.0, 10.0]])
    assert torch.equal(quantize_dequantize(x, 4, symmetric=False), expected)


def test_zero_point_on_a_tie_still_uses_both_ends() -> None:
    # -min / scale is exactly 0.5: rounding to even would leave code 15 unused
    grid = find_grid(torch.tensor([[-0.5, 14.5]]), 4, symmetric=False)
    assert grid.codes(torch.tensor([[-0.5, 14.5]])).tolist() == [[0, 15]]


def test_last_group_may_be_shorter() -> None:
    x = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    quantized = quantize_dequantize(x, 3, symmetric=False, group_size=4)
    parts = [quantize_dequantize(part, 3, symmetric=False) for part in x.split(4, dim=1)]
    assert torch.equal(quantized, torch.cat(parts, dim=1))
    assert find_grid(x, 3, False, 4).scale.shape == (2, 3)


def test_group_larger_than_the_row_is_the_row() -> None:
    x = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize_dequantize(x, 4, True, 4096), quantize_dequantize(x, 4, True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_data_type_and_shape_are_kept_and_input_is_not_written(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()
    quantized = quantize_dequantize(x, 4, False, 4)
    assert (quantized.dtype, quantized.shape) == (dtype, x.shape)
    assert torch.equal(x, before)
    assert quantized.data_ptr() != x.data_ptr()


def test_sixteen_bits_change_nothing() -> None:
    x = torch.randn(2, 8)
    quantized = quantize_dequantize(x, 16, True)
    assert torch.equal(quantized, x)
    assert quantized.data_ptr() != x.data_ptr()


def test_full_range_of_float32_does_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[-largest, largest, 1.0]])
    assert torch.isfinite(quantize_dequantize(x, 4, symmetric=False)).all()


def test_empty_tensor_is_returned_empty() -> None:
    assert quantize_dequantize(torch.empty(0, 4), 4, True).shape == (0, 4)
    assert quantize_dequantize(torch.empty(4, 0), 4, True).shape == (4, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bits", [4, 16])
def test_non_finite_value_is_an_error_that_says_where(bad: float, bits: int) -> None:
    x = torch.zeros(2, 4)
    x[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"1 non-finite value\(s\) of 8, the first at index"):
        quantize_dequantize(x, bits, True)


@pytest.mark.parametrize("bits", [0, 1, 17, 4.0, True, "4"])
def test_impossible_bits_are_an_error(bits: object) -> None:
    with pytest.raises(SchemeError, match="bits must be an integer from 2 to 16"):
        quantize_dequantize(torch.zeros(2, 4), bits, True)  # type: ignore[arg-type]


def test_impossible_group_is_an_error() -> None:
    with pytest.raises(SchemeError, match="group_size must be at least 1"):
        quantize_dequantize(torch.zeros(2, 4), 4, True, 0)


@pytest.mark.parametrize("x", [torch.zeros(2, 2, dtype=torch.int32), torch.tensor(1.0)])
def test_what_has_no_grid_is_a_type_error(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="expected a floating-point tensor"):
        quantize_dequantize(x, 4, True)


def test_symmetric_grid_gives_up_one_code() -> None:
    assert code_range(4, True) == (-7, 7)
    assert code_range(4, False) == (0, 15)
