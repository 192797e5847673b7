"""Faults of packing: no cell stores packed codes, so each brings the law that it breaks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dllm_qbench.kernels import packing
from dllm_qbench.quant.grid import find_grid
from tests.meta.faults.fault import Fault, Plant
from tests.meta.faults.patches import wrapped


def round_trip() -> None:
    """Unpacking undoes packing, and a grid's codes come back as its levels."""
    generator = torch.Generator().manual_seed(0)
    for bits in range(2, 9):
        for signed in (False, True):
            low = -(2 ** (bits - 1)) if signed else 0
            codes = torch.randint(0, 2**bits, (3, 37), generator=generator) + low
            packed = packing.pack_codes(codes, bits, signed)
            assert torch.equal(packing.unpack_codes(packed, bits, 37, signed), codes.int())
            weight = torch.randn(3, 37, generator=generator, dtype=torch.float64)
            grid = find_grid(weight, bits, signed, 16)
            packed = packing.pack_codes(grid.codes(weight), bits, signed)
            found = grid.values(packing.unpack_codes(packed, bits, 37, signed))
            assert torch.equal(found, grid.nearest(weight))


def byte_layout() -> None:
    """A row's bytes are those of one little-endian integer."""
    generator = torch.Generator().manual_seed(1)
    for bits in range(2, 9):
        codes = torch.randint(0, 2**bits, (37,), generator=generator)
        whole = sum(code << (i * bits) for i, code in enumerate(codes.tolist()))
        expected = whole.to_bytes(packing.packed_width(37, bits), "little")
        assert bytes(packing.pack_codes(codes, bits).tolist()) == expected


def first_code_in_the_high_bits(
    sound: Any, codes: Tensor, bits: int, signed: bool = False
) -> Tensor:
    packed: Tensor = sound(codes, bits, signed)
    return ((packed << 4) | (packed >> 4)) if bits == 4 else packed


def offset_forgotten(
    sound: Any, packed: Tensor, bits: int, size: int, signed: bool = False
) -> Tensor:
    found: Tensor = sound(packed, bits, size, False)
    return found


def straddling_codes_cut(sound: Any, codes: Tensor, bits: int, signed: bool = False) -> Tensor:
    low = -(2 ** (bits - 1)) if signed else 0
    stored = codes.long() - low
    room = 8 - (torch.arange(codes.shape[-1]) * bits) % 8  # bits left in the byte it starts in
    cut = stored & ((1 << room.clamp(max=bits)) - 1)
    packed: Tensor = sound(cut + low, bits, signed)
    return packed


def stored_minus_one(sound: Any, codes: Tensor, bits: int, signed: bool = False) -> Tensor:
    low = -(2 ** (bits - 1)) if signed else 0
    packed: Tensor = sound((codes.long() - low - 1) % 2**bits + low, bits, signed)
    return packed


def _fault(name: str, plant: Plant, what: str, probe: Any) -> Fault:
    return Fault(
        f"packing-{name}", "harmful", "rtn", "W4A16-g64", "general", plant, what, probe=probe
    )


FAULTS = (
    _fault(
        "first-code-in-the-high-bits",
        wrapped(packing, "pack_codes", first_code_in_the_high_bits),
        "The first of two 4-bit codes goes into the high half of the byte.",
        byte_layout,
    ),
    _fault(
        "offset-of-signed-codes-forgotten",
        wrapped(packing, "unpack_codes", offset_forgotten),
        "Signed codes are stored plus 2^(b-1), which unpacking does not take off.",
        round_trip,
    ),
    _fault(
        "straddling-codes-lose-their-high-bits",
        wrapped(packing, "pack_codes", straddling_codes_cut),
        "What does not fit into the byte in which a code starts is lost, as with 3-bit codes.",
        round_trip,
    ),
    _fault(
        "codes-stored-minus-one",
        wrapped(packing, "pack_codes", stored_minus_one),
        "Codes are stored minus one, the convention of old GPTQ files for zero points, and read as they are.",
        round_trip,
    ),
)
