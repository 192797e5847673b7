"""Laws of the number grid, for any tensor."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench.quant.grid import find_grid, quantize_dequantize
from dllm_qbench.quant.layers import quantize_tokens

bits = st.integers(2, 8)
symmetry = st.booleans()
groups = st.one_of(st.none(), st.integers(1, 12))
# Magnitudes over 60 decades, zeros, and multiples of 0.5, which meet rounding ties.
numbers = st.one_of(
    st.floats(-1e30, 1e30).map(lambda v: v if abs(v) > 1e-30 else 0.0),
    st.integers(-64, 64).map(lambda v: v / 2),
    st.just(0.0),
)


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Tensor:
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    values = draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=dtype).view(rows, columns)


@given(tensors(), bits, symmetry, groups)
def test_error_is_at_most_half_a_step(x: Tensor, b: int, sym: bool, g: int | None) -> None:
    grid = find_grid(x, b, sym, g)
    step = grid.scale.repeat_interleave(grid.group, dim=-1)[..., : x.shape[-1]]
    # 1e-8: rounding of float64 and the width within which a value counts as a tie
    error = (quantize_dequantize(x, b, sym, g) - x).abs()
    assert (error <= (0.5 + 1e-8) * step).all()


@given(tensors(), bits, symmetry, groups)
def test_quantizing_twice_is_quantizing_once(x: Tensor, b: int, sym: bool, g: int | None) -> None:
    once = quantize_dequantize(x, b, sym, g)
    assert torch.equal(find_grid(once, b, sym, g).codes(once), find_grid(x, b, sym, g).codes(x))
    torch.testing.assert_close(quantize_dequantize(once, b, sym, g), once, rtol=1e-14, atol=0)


@given(tensors(torch.float32), bits, symmetry, groups)
def test_quantizing_twice_is_quantizing_once_in_float32(
    x: Tensor, b: int, sym: bool, g: int | None
) -> None:
    once = quantize_dequantize(x, b, sym, g)
    torch.testing.assert_close(quantize_dequantize(once, b, sym, g), once, rtol=2e-7, atol=0)


@given(tensors(), st.integers(2, 7), symmetry, groups)
def test_step_shrinks_with_every_bit(x: Tensor, b: int, sym: bool, g: int | None) -> None:
    coarse, fine = find_grid(x, b, sym, g).scale, find_grid(x, b + 1, sym, g).scale
    assert (fine <= coarse).all()


@given(tensors(), bits, symmetry, groups)
def test_a_group_has_at_most_two_to_the_bits_levels(
    x: Tensor, b: int, sym: bool, g: int | None
) -> None:
    quantized = quantize_dequantize(x, b, sym, g)
    for part in quantized.split(g or x.shape[-1], dim=-1):
        assert all(len(row.unique()) <= 2**b for row in part)


@given(tensors(), bits, symmetry, groups)
def test_zero_and_signs_are_kept(x: Tensor, b: int, sym: bool, g: int | None) -> None:
    quantized = quantize_dequantize(x, b, sym, g)
    assert (quantized[x == 0] == 0).all()
    assert (quantized * x.sign() >= 0).all()


@given(tensors(), bits, symmetry, groups)
def test_order_is_kept_within_a_group(x: Tensor, b: int, sym: bool, g: int | None) -> None:
    quantized = quantize_dequantize(x, b, sym, g)
    for part, rounded in zip(
        x.split(g or x.shape[-1], dim=-1), quantized.split(g or x.shape[-1], dim=-1), strict=True
    ):
        assert (rounded.gather(-1, part.argsort(-1)).diff(dim=-1) >= 0).all()


@given(tensors(), bits, symmetry, st.integers(1, 12))
def test_groups_and_rows_do_not_see_each_other(x: Tensor, b: int, sym: bool, g: int) -> None:
    parts = [quantize_dequantize(part, b, sym) for part in x.split(g, dim=-1)]
    assert torch.equal(quantize_dequantize(x, b, sym, g), torch.cat(parts, dim=-1))
    rows = [quantize_dequantize(row, b, sym, g) for row in x]
    assert torch.equal(quantize_dequantize(x, b, sym, g), torch.stack(rows))


@given(tensors(), bits, symmetry, groups, st.integers(-8, 8))
def test_scaling_scales_and_negating_negates(
    x: Tensor, b: int, sym: bool, g: int | None, power: int
) -> None:
    quantized = quantize_dequantize(x, b, sym, g)
    assert torch.equal(quantize_dequantize(x * 2.0**power, b, sym, g), quantized * 2.0**power)
    if sym:
        assert torch.equal(quantize_dequantize(-x, b, sym, g), -quantized)


@given(tensors(torch.float32), st.sampled_from([4, 8]))
def test_token_quantizer_agrees_with_the_grid_except_on_ties(x: Tensor, b: int) -> None:
    fast, grid = quantize_tokens(x, b), find_grid(x, b, symmetric=True)
    exact = (x.double() / grid.scale).abs()
    tie = ((exact - exact.floor()) - 0.5).abs() < 1e-4  # float32 division on at most 127 steps
    slow = quantize_dequantize(x, b, symmetric=True)
    assert torch.allclose(fast[~tie], slow[~tie], rtol=1e-6, atol=0)
    assert ((fast - x).abs() <= 0.5001 * grid.scale).all()


@given(tensors(torch.float32), st.sampled_from([4, 8]))
def test_token_quantizer_treats_each_token_alone(x: Tensor, b: int) -> None:
    together = quantize_tokens(x, b)
    assert torch.equal(together, torch.stack([quantize_tokens(row, b) for row in x]))
