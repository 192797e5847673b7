"""Laws of packing: nothing is lost, nothing is wasted, and the bytes are those of one long integer."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench.kernels.packing import pack_codes, packed_width, unpack_codes
from dllm_qbench.quant.grid import find_grid

widths = st.integers(2, 8)
sizes = st.integers(0, 41)
leading = st.lists(st.integers(0, 3), max_size=2).map(tuple)
seeds = st.integers(0, 2**31 - 1)
int_types = st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])


def lowest(bits: int, signed: bool) -> int:
    return -(2 ** (bits - 1)) if signed else 0


@st.composite
def packable(draw: st.DrawFn) -> tuple[Tensor, int, bool]:
    """Codes ``[..., D]`` over the range that their type has, their bits, and whether signed."""
    bits, signed, shape = draw(widths), draw(st.booleans()), (*draw(leading), draw(sizes))
    generator = torch.Generator().manual_seed(draw(seeds))
    codes = torch.randint(0, 2**bits, shape, generator=generator) + lowest(bits, signed)
    dtype = draw(int_types)
    return codes.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype), bits, signed


@given(packable())
def test_unpacking_undoes_packing(drawn: tuple[Tensor, int, bool]) -> None:
    codes, bits, signed = drawn
    found = unpack_codes(pack_codes(codes, bits, signed), bits, codes.shape[-1], signed)
    assert found.dtype == torch.int32
    assert torch.equal(found, codes.int())


@given(widths, st.booleans(), st.integers(0, 4), seeds)
def test_packing_undoes_unpacking_where_codes_fill_the_bytes(
    bits: int, signed: bool, eights: int, seed: int
) -> None:
    """So every pattern of bytes is in use: the stream is as dense as it can be."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, eights * bits)
    packed = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    assert torch.equal(
        pack_codes(unpack_codes(packed, bits, 8 * eights, signed), bits, signed), packed
    )


@given(packable())
def test_a_row_takes_its_bits_rounded_up_to_bytes(drawn: tuple[Tensor, int, bool]) -> None:
    codes, bits, signed = drawn
    packed = pack_codes(codes, bits, signed)
    size = codes.shape[-1]
    assert packed.dtype == torch.uint8
    assert packed.shape == (*codes.shape[:-1], packed_width(size, bits))
    assert 0 <= 8 * packed.shape[-1] - size * bits < 8


@given(widths, st.booleans(), st.lists(st.integers(0, 255), max_size=41))
def test_bytes_are_those_of_one_little_endian_integer(
    bits: int, signed: bool, drawn: list[int]
) -> None:
    stored = [code % 2**bits for code in drawn]
    whole = sum(code << (i * bits) for i, code in enumerate(stored))
    codes = torch.tensor(stored, dtype=torch.int64) + lowest(bits, signed)
    found = bytes(pack_codes(codes, bits, signed).tolist())
    assert found == whole.to_bytes(-(-len(stored) * bits // 8), "little")


@given(packable())
def test_rows_are_packed_alone(drawn: tuple[Tensor, int, bool]) -> None:
    codes, bits, signed = drawn
    rows = codes.reshape(-1, codes.shape[-1]) if codes.numel() else codes.new_zeros(2, 0)
    alone = [pack_codes(row, bits, signed) for row in rows]
    assert torch.equal(pack_codes(rows, bits, signed), torch.stack(alone))


@given(widths, st.booleans(), st.integers(1, 12), st.integers(1, 30), seeds)
def test_a_grids_codes_come_back_as_its_levels(
    bits: int, symmetric: bool, group: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, size, generator=generator, dtype=torch.float64)
    grid = find_grid(weight, bits, symmetric, group)
    packed = pack_codes(grid.codes(weight), bits, signed=symmetric)
    found = grid.values(unpack_codes(packed, bits, size, signed=symmetric))
    assert torch.equal(found, grid.nearest(weight))


@given(packable(), st.data())
def test_a_code_out_of_range_is_an_error_that_names_it(
    drawn: tuple[Tensor, int, bool], data: st.DataObject
) -> None:
    codes, bits, signed = drawn
    codes = codes.int() if codes.numel() else torch.full((2, 3), lowest(bits, signed)).int()
    low = lowest(bits, signed)
    high = low + 2**bits - 1
    limits = torch.iinfo(codes.dtype)
    bad = data.draw(st.integers(limits.min, low - 1) | st.integers(high + 1, limits.max))
    where = tuple(data.draw(st.integers(0, n - 1)) for n in codes.shape)
    codes[where] = bad
    expected = f"{bits} bits must lie in {low}..{high}, found {bad} at index {where}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        pack_codes(codes, bits, signed)


@given(widths, sizes, st.integers(-2, 2).filter(bool))
def test_a_wrong_width_is_an_error_that_names_both(bits: int, size: int, off: int) -> None:
    width = packed_width(size, bits)
    found = max(width + off, 0)
    if found == width:
        found += 1
    packed = torch.zeros(2, found, dtype=torch.uint8)
    expected = f"tensor [..., {width}], found torch.uint8 with shape [2, {found}]"
    with pytest.raises(ValueError, match=re.escape(expected)):
        unpack_codes(packed, bits, size)


BYTES = torch.zeros(2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_codes(torch.ones(3), 4), "integer tensor [..., D], found torch.float32"),
        (lambda: pack_codes(torch.ones(3).bool(), 4), "integer tensor [..., D], found torch.bool"),
        (lambda: pack_codes(torch.tensor(3), 4), "found torch.int64 with shape []"),
        (
            lambda: pack_codes(torch.ones(3).int(), 1),
            "bits must be an integer from 2 to 8, found 1",
        ),
        (lambda: unpack_codes(BYTES, 9, 2), "bits must be an integer from 2 to 8, found 9"),
        (lambda: unpack_codes(BYTES, 4, -1), "size must be 0 or more codes, found -1"),
        (lambda: unpack_codes(BYTES.int(), 4, 6), "a uint8 tensor [..., 3], found torch.int32"),
    ],
)
def test_what_cannot_be_packed_is_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
