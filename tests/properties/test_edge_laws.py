"""Laws at the edges, for everything that rounds a weight or a token: zeros, constants, one sign,
outliers, ragged groups, single rows and columns, and the ends of a data type.

``NEAREST`` are the ways to round a weight to the nearest level; ``WEIGHTS`` has those and GPTQ, whose
columns make up for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.quant.grid import quantize_dequantize
from dllm_qbench.quant.layers import quantize_tokens
from dllm_qbench.quant.methods import duquant
from dllm_qbench.quant.methods.awq import round_clipped
from dllm_qbench.quant.methods.gptq import gptq_weight
from dllm_qbench.quant.methods.rtn import round_weight
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.layers import correlated_layer
from tests.helpers.rotated import data as calibration
from tests.helpers.tiny import tiny_llada

Rounding = Callable[[Tensor, Scheme], Tensor]


@cache
def moment(columns: int) -> Tensor:
    """X^T X of correlated inputs, always the same ones."""
    return correlated_layer(1, columns)[1]


NEAREST: dict[str, Rounding] = {
    "grid": lambda w, s: quantize_dequantize(w, s.weight_bits, bool(s.symmetric), s.group),
    "rtn": lambda w, s: round_weight(w, s, bool(s.symmetric))[0],
    "awq": lambda w, s: round_clipped(w, s, bool(s.symmetric), None)[0],
    "awq, clipped nowhere": lambda w, s: round_clipped(w, s, bool(s.symmetric), 1.0)[0],
    "duquant": lambda w, s: duquant._round(w, s, bool(s.symmetric), 1.0)[0],
    "gptq, no correlation": lambda w, s: gptq_weight(w, torch.eye(w.shape[1]), s),
}
WEIGHTS: dict[str, Rounding] = NEAREST | {
    "gptq": lambda w, s: gptq_weight(w, moment(w.shape[1]), s),
    "gptq, by activity": lambda w, s: gptq_weight(w, moment(w.shape[1]), s, act_order=True),
}
each_nearest = pytest.mark.parametrize("how", NEAREST)
each_weight = pytest.mark.parametrize("how", WEIGHTS)

bits = st.integers(2, 8)
# Magnitudes over 60 decades, zeros, and multiples of 0.5, which meet rounding ties.
numbers = st.one_of(
    st.floats(-1e30, 1e30).map(lambda v: v if abs(v) > 1e-30 else 0.0),
    st.integers(-64, 64).map(lambda v: v / 2),
    st.just(0.0),
)
schemes = st.builds(
    Scheme, bits, st.just(16), st.one_of(st.none(), st.integers(1, 8)), st.booleans()
)
token_bits = st.sampled_from([4, 8])


@st.composite
def weights(
    draw: st.DrawFn,
    values: st.SearchStrategy[float] = numbers,
    dtype: torch.dtype = torch.float64,
    rows: int = 3,
    fewest: int = 1,
) -> Tensor:
    shape = draw(st.integers(1, rows)), draw(st.integers(fewest, 10))
    drawn = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(drawn, dtype=dtype).view(shape)


def steps(w: Tensor, scheme: Scheme) -> Tensor:
    """The step of every value's grid, from the docstring of ``quant/grid.py``; 0 for a zero group."""
    parts = []
    for part in w.split(scheme.group or w.shape[1], dim=1):
        high, low = part.amax(1, keepdim=True).clamp(min=0), part.amin(1, keepdim=True).clamp(max=0)
        if scheme.symmetric:
            step = torch.maximum(high, -low) / (2 ** (scheme.weight_bits - 1) - 1)
        else:
            step = (high - low) / (2**scheme.weight_bits - 1)
        parts.append(step.expand_as(part))
    return torch.cat(parts, dim=1)


@each_weight
@given(weights(), schemes, st.data())
def test_zero_rows_stay_zero(how: str, w: Tensor, scheme: Scheme, data: st.DataObject) -> None:
    rows = data.draw(st.sets(st.integers(0, len(w) - 1), min_size=1))
    w[list(rows)] = 0.0
    found = WEIGHTS[how](w, scheme)
    assert (found[list(rows)] == 0).all()


@each_weight
@given(weights(), schemes, numbers)
def test_constant_rows_are_kept(how: str, w: Tensor, scheme: Scheme, value: float) -> None:
    w[0] = value
    found = WEIGHTS[how](w, scheme)
    torch.testing.assert_close(found[0], w[0], rtol=1e-9, atol=0)


@each_nearest
@given(weights(), schemes, st.sampled_from([-1, 1]))
def test_one_signed_rows_keep_their_sign_and_their_largest_magnitude(
    how: str, w: Tensor, scheme: Scheme, sign: int
) -> None:
    w = sign * w.abs()
    found = sign * NEAREST[how](w, scheme)
    assert (found >= 0).all()
    for part, rounded in zip(in_groups(w, scheme), in_groups(found, scheme), strict=True):
        largest = part.abs().amax(1)
        torch.testing.assert_close(rounded.amax(1), largest, rtol=1e-12, atol=0)


@each_nearest
@given(weights(), schemes)
def test_every_group_keeps_its_largest_magnitude_on_a_symmetric_grid(
    how: str, w: Tensor, scheme: Scheme
) -> None:
    scheme = replace(scheme, symmetric=True)
    found = NEAREST[how](w, scheme)
    for part, rounded in zip(in_groups(w, scheme), in_groups(found, scheme), strict=True):
        largest = part.abs().amax(1)
        torch.testing.assert_close(rounded.abs().amax(1), largest, rtol=1e-12, atol=0)


@each_nearest
@given(weights(), schemes, st.data())
def test_an_outlier_moves_only_its_own_group(
    how: str, w: Tensor, scheme: Scheme, data: st.DataObject
) -> None:
    row, column = (data.draw(st.integers(0, n - 1)) for n in w.shape)
    spiked = w.clone()
    spiked[row, column] = data.draw(numbers) * 1e6
    before, after = NEAREST[how](w, scheme), NEAREST[how](spiked, scheme)
    own = slice(0, None)
    if scheme.group is not None:
        first = column // scheme.group * scheme.group
        own = slice(first, first + scheme.group)
    after[row, own] = before[row, own]
    assert torch.equal(after, before)


@each_weight
@given(weights(), schemes)
def test_rows_do_not_see_each_other(how: str, w: Tensor, scheme: Scheme) -> None:
    alone = torch.cat([WEIGHTS[how](row[None], scheme) for row in w])
    torch.testing.assert_close(WEIGHTS[how](w, scheme), alone, rtol=1e-12, atol=0)


@each_nearest
@given(weights(fewest=3), schemes, st.data())
def test_a_ragged_last_group_is_its_columns_quantized_alone(
    how: str, w: Tensor, scheme: Scheme, data: st.DataObject
) -> None:
    size = w.shape[1]
    group = data.draw(st.sampled_from([g for g in range(2, size) if size % g]))
    grouped, whole = (replace(scheme, group=g) for g in (group, None))
    last = size // group * group
    expected = NEAREST[how](w[:, last:], whole)
    assert torch.equal(NEAREST[how](w, grouped)[:, last:], expected)


@each_weight
@given(weights(), schemes, st.integers(0, 5))
def test_a_group_that_holds_the_row_is_the_row(
    how: str, w: Tensor, scheme: Scheme, spare: int
) -> None:
    whole = replace(scheme, group=None)
    wide = replace(scheme, group=w.shape[1] + spare)
    assert torch.equal(WEIGHTS[how](w, wide), WEIGHTS[how](w, whole))


@pytest.mark.parametrize("act_order", [False, True])
@given(weights(fewest=2), schemes, st.data())
def test_gptq_solves_groups_alone_that_do_not_correlate(
    act_order: bool, w: Tensor, scheme: Scheme, data: st.DataObject
) -> None:
    size = w.shape[1]
    group = data.draw(st.integers(1, size - 1))
    block = torch.arange(size) // group
    H = torch.where(block[:, None] == block, moment(size), 0.0)
    grouped, whole = (replace(scheme, group=g) for g in (group, None))
    alone = []
    for first in range(0, size, group):
        own = slice(first, first + group)
        alone.append(gptq_weight(w[:, own], H[own, own], whole, 0.0, act_order))
    # No damping: it is a share of the diagonal's mean, which is not each group's.
    found = gptq_weight(w, H, grouped, 0.0, act_order)
    torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-9, atol=0)


@given(weights(fewest=2), schemes, st.data())
def test_gptq_never_looks_at_a_group_to_come(
    w: Tensor, scheme: Scheme, data: st.DataObject
) -> None:
    group = data.draw(st.integers(1, w.shape[1] - 1))
    grouped = replace(scheme, group=group)
    column = data.draw(st.integers(group, w.shape[1] - 1))
    changed = w.clone()
    changed[:, column] = data.draw(numbers)
    before, after = (WEIGHTS["gptq"](weight, grouped) for weight in (w, changed))
    left = column // group * group
    assert torch.equal(after[:, :left], before[:, :left])


@each_nearest
@given(weights(), schemes, bits)
def test_more_bits_never_raise_the_bound_on_the_error(
    how: str, w: Tensor, scheme: Scheme, other: int
) -> None:
    """The error stays within half a step of every coarser grid, not only of its own."""
    coarse, fine = sorted((scheme.weight_bits, other))
    found = NEAREST[how](w, replace(scheme, weight_bits=fine))
    step = steps(w, replace(scheme, weight_bits=coarse))
    assert ((found - w).abs() <= (0.5 + 1e-8) * step).all()


@each_nearest
# Both ends are ties: rounded to even they would leave code 3 unused, and the 2 would move again.
@example(torch.tensor([[-1.0, 2.0, 5.0]]), Scheme(2, 16, None, symmetric=False))
@given(weights() | weights(dtype=torch.float32), schemes)
def test_quantizing_twice_is_quantizing_once(how: str, w: Tensor, scheme: Scheme) -> None:
    once = NEAREST[how](w, scheme)
    twice = NEAREST[how](once, scheme)
    torch.testing.assert_close(twice, once, rtol=4 * torch.finfo(once.dtype).eps, atol=0)


@each_weight
@given(weights(), schemes)
def test_a_single_column_is_kept(how: str, w: Tensor, scheme: Scheme) -> None:
    column = w[:, :1]
    torch.testing.assert_close(WEIGHTS[how](column, scheme), column, rtol=1e-12, atol=0)


@given(weights(), schemes, st.floats(0.1, 1))
def test_clipped_weights_stay_within_their_share(w: Tensor, scheme: Scheme, share: float) -> None:
    found = round_clipped(w, scheme, bool(scheme.symmetric), share)[0]
    for part, rounded in zip(in_groups(w, scheme), in_groups(found, scheme), strict=True):
        limit = share * part.abs().amax(1, keepdim=True)
        clipped = part.clamp(-limit, limit)
        step = steps(clipped, replace(scheme, group=None))
        assert ((rounded - clipped).abs() <= (0.5 + 1e-8) * step).all()


FLOATS = {torch.float16: 16, torch.float32: 32, torch.float64: 64}


def extreme(dtype: torch.dtype, largest: float | None = None) -> st.SearchStrategy[Tensor]:
    """Tensors of any finite values: subnormal ones, and often the largest."""
    largest = torch.finfo(dtype).max if largest is None else largest
    finite = st.floats(-largest, largest, width=FLOATS[dtype])  # type: ignore[arg-type]
    return weights(finite | st.sampled_from([-largest, largest]), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each_weight
@given(schemes, st.data())
def test_finite_weights_stay_finite(
    how: str, dtype: torch.dtype, scheme: Scheme, data: st.DataObject
) -> None:
    # GPTQ adds up errors in float64: there is no wider type where the weights have this one.
    room = how.startswith("gptq") and dtype == torch.float64
    w = data.draw(extreme(dtype, 1e300 if room else None))
    assert torch.isfinite(WEIGHTS[how](w, scheme)).all()


METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "gptq": {},
    "awq": {"ratios": 2, "clip_steps": 2},
    "smoothquant": {},
    "quarot": {"weights": "rtn"},
    "duquant": {"steps": 1},
}


@given(st.sampled_from(list(METHODS)), bits, st.booleans(), st.floats(0, 65504, width=16))
def test_no_method_stores_an_infinity_for_a_finite_weight(
    method: str, b: int, symmetric: bool, other: float
) -> None:
    """A weight may be the largest of float16 where its input is dead and does no harm."""
    lm = tiny_llada(dtype=torch.float16, n_layers=1)
    mlp: Any = lm.model.get_submodule("model.layers.0.mlp")
    mlp.up_proj.weight[:2] = 0.0
    mlp.down_proj.weight[0, :2] = torch.tensor([65504.0, -other])
    scheme = Scheme(b, 16, None, symmetric)
    quantized = qb.quantize(lm, method, scheme, calibration(lm), **METHODS[method])
    quantized.check_finite(method)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(token_bits, st.sampled_from([1.0, 0.9, 0.5]), st.data())
def test_finite_tokens_stay_finite(
    dtype: torch.dtype, b: int, clip: float, data: st.DataObject
) -> None:
    found = quantize_tokens(data.draw(extreme(dtype)), b, clip)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()


@given(weights(), token_bits, numbers)
def test_zero_tokens_stay_zero_and_constant_ones_are_kept(x: Tensor, b: int, value: float) -> None:
    x[0] = 0.0
    assert (quantize_tokens(x, b)[0] == 0).all()
    x[0] = value
    torch.testing.assert_close(quantize_tokens(x, b)[0], x[0], rtol=1e-12, atol=0)


@given(weights() | weights(dtype=torch.float32), token_bits)
def test_quantizing_a_token_twice_is_quantizing_it_once(x: Tensor, b: int) -> None:
    once = quantize_tokens(x, b)
    rtol = 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(quantize_tokens(once, b), once, rtol=rtol, atol=0)


@given(weights(), st.integers(2, 8), st.integers(2, 8))
def test_more_bits_never_raise_the_bound_on_a_tokens_error(x: Tensor, b: int, other: int) -> None:
    coarse, fine = sorted((b, other))
    step = steps(x, Scheme(coarse, 16, None, symmetric=True))
    assert ((quantize_tokens(x, fine) - x).abs() <= (0.5 + 1e-8) * step).all()


@given(weights(), token_bits, st.floats(0.1, 1))
def test_clipped_tokens_stay_within_their_share_and_keep_their_signs(
    x: Tensor, b: int, clip: float
) -> None:
    found = quantize_tokens(x, b, clip)
    limit = clip * x.abs().amax(1, keepdim=True)
    assert (found.abs() <= limit * (1 + 1e-12)).all()
    assert (found * x.sign() >= 0).all()


def in_groups(w: Tensor, scheme: Scheme) -> tuple[Tensor, ...]:
    return w.split(scheme.group or w.shape[1], dim=1)
