"""Laws of finding a grid from a weight's levels: what was rounded on a grid is found to lie on one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench.quant.grid import find_grid
from dllm_qbench.subjects.levels import Levels, find_levels

GROUPS = st.sampled_from((8, 16, 48))


def drawn(seed: int, rows: int, size: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def given_back(found: Levels, weight: Tensor) -> Tensor:
    """Round a weight on what was found, without this package's grid."""
    spread = [
        t.repeat_interleave(found.group, 1)[:, : weight.shape[1]] for t in (found.scale, found.zero)
    ]
    scale, zero = spread
    return ((weight.double() / scale).round() + zero - zero) * scale


@given(
    seed=st.integers(0, 2**20),
    bits=st.integers(2, 8),
    group=GROUPS,
    symmetric=st.booleans(),
    scale=st.floats(1e-4, 1e4),
)
def test_every_weight_lies_on_the_grid_that_is_found(
    seed: int, bits: int, group: int, symmetric: bool, scale: float
) -> None:
    weight = drawn(seed, 6, 96) * scale
    rounded = find_grid(weight, bits, symmetric, group).nearest(weight)
    found = find_levels(rounded, bits, group, symmetric)
    assert found is not None
    assert found.symmetric == symmetric
    torch.testing.assert_close(given_back(found, rounded), rounded.double(), rtol=1e-6, atol=0.0)
    steps = (rounded.double() / found.scale.repeat_interleave(found.group, 1)).round()
    within = steps.unflatten(1, (-1, group))
    assert int((within.amax(-1) - within.amin(-1)).amax()) <= 2**bits - 1


@given(seed=st.integers(0, 2**20), bits=st.integers(2, 6), group=GROUPS)
def test_a_grid_reaching_one_code_further_down_is_found_and_said(
    seed: int, bits: int, group: int
) -> None:
    weight = drawn(seed, 6, 96)
    q = 2 ** (bits - 1)
    steps = weight.unflatten(1, (-1, group)).abs().amax(-1, keepdim=True) / (q - 0.5)
    codes = (weight.unflatten(1, (-1, group)) / steps).round().clamp(-q, q - 1)
    found = find_levels((codes * steps).flatten(1), bits, group)
    assert found is not None
    assert found.symmetric
    assert found.full_range == bool((codes == -q).any())


@given(
    seed=st.integers(0, 2**20),
    bits=st.integers(2, 5),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_a_weight_that_was_not_rounded_has_none(seed: int, bits: int, dtype: torch.dtype) -> None:
    assert find_levels(drawn(seed, 6, 96).to(dtype), bits, 32) is None


@given(seed=st.integers(0, 2**20), bits=st.integers(3, 5))
def test_groups_that_share_a_scale_are_said_to_be_larger(seed: int, bits: int) -> None:
    weight = drawn(seed, 24, 128)
    rounded = find_grid(weight, bits, True, 64).nearest(weight)
    found = find_levels(rounded, bits, 32, True)
    assert found is not None
    assert found.group in (
        32,
        64,
    )  # 32 where some group's widest scale is a multiple of its neighbour's
    assert find_levels(rounded, bits, 64, True).group == 64  # type: ignore[union-attr]


@given(seed=st.integers(0, 2**20))
def test_smaller_groups_than_said_are_none(seed: int) -> None:
    weight = drawn(seed, 24, 128)
    assert find_levels(find_grid(weight, 4, True, 32).nearest(weight), 4, 128) is None


def test_zeros_are_on_any_grid() -> None:
    found = find_levels(torch.zeros(3, 16), 4, 8)
    assert found is not None
    assert bool((found.scale > 0).all())
