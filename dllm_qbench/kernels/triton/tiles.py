"""What the products share: which tile a program takes, and how it reads packed codes.

Legend: a program computes ``[ROWS, COLS]`` of the ``[M, O]`` outputs, DEPTH of the I inputs at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton.language as tl

from dllm_qbench.kernels.triton.launch import INTERPRETED, jit, power_of_two


@dataclass(frozen=True)
class Tile:
    """The part of the outputs that a program computes, and what it takes for that."""

    rows: int
    cols: int
    warps: int
    stages: int


# The larger, the fewer times a weight is unpacked and an input is read; tensor cores want 64 rows.
# Chosen by what fits an H100's registers and shared memory; not yet timed on one.
_LARGEST = (Tile(128, 256, 8, 3),)
_TENSOR_CORES = (
    Tile(128, 128, 8, 4),
    Tile(64, 128, 4, 4),
    Tile(64, 64, 4, 4),
    Tile(32, 64, 4, 4),
    Tile(16, 64, 4, 4),
    Tile(16, 32, 2, 4),
)
# Float32 is multiplied by plain units, out of registers.
_PLAIN = (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2))


def tile_for(M: int, O: int, kind: str, device: torch.device) -> Tile:  # noqa: E741
    """Return the largest tile that keeps three quarters of a GPU's processors busy, or the smallest.

    Tiles of twice the rows or columns that there are would be computed for nothing.

    Args:
        kind: "int8" where both sides are read as they are; "unpacked" where a program holds codes in
            registers as well; "float32".
    """
    choices = {"int8": _LARGEST + _TENSOR_CORES, "unpacked": _TENSOR_CORES, "float32": _PLAIN}[kind]
    useful = [
        tile
        for tile in choices
        if tile.rows <= max(16, power_of_two(M)) and tile.cols <= max(64, power_of_two(O))
    ]
    for tile in useful:
        if 4 * programs(M, O, tile) >= 3 * _processors(device):
            return tile
    return useful[-1]


def programs(M: int, O: int, tile: Tile) -> int:  # noqa: E741
    """Return how many programs compute ``[M, O]`` outputs."""
    return -(-M // tile.rows) * -(-O // tile.cols)


@cache
def _processors(device: torch.device) -> int:
    if INTERPRETED:
        return 1  # one program at a time: the fewer, the better
    return torch.cuda.get_device_properties(device).multi_processor_count


@jit
def place(M: tl.tensor, O: tl.tensor, ROWS: tl.constexpr, COLS: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return the tile of this program: first row, first column.

    Neighbouring programs take eight tiles of rows for one of columns, so that what they read of
    both is still in the cache.
    """
    tall, broad = (M + ROWS - 1) // ROWS, (O + COLS - 1) // COLS
    program = tl.program_id(0)
    band = program // (8 * broad)
    height = tl.minimum(tall - band * 8, 8)
    inside = program % (8 * broad)
    return (band * 8 + inside % height) * ROWS, inside // height * COLS


@jit
def nibbles(
    ptr: tl.tensor,
    row_at: tl.tensor,
    begin: tl.tensor,
    limit: tl.tensor,
    EVEN: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """Read codes of 4 bits, ``[R, D]`` uint8 from channel ``begin`` (even) of rows at ``[R, 1]``."""
    byte = begin // 2 + tl.arange(0, D // 2)[None, :]
    at = ptr + row_at + byte
    pair = tl.load(at) if EVEN else tl.load(at, mask=2 * byte < limit, other=0)
    return tl.reshape(tl.join(pair & 15, pair >> 4), (R, D))


@jit
def code_at(
    ptr: tl.tensor, row_at: tl.tensor, index: tl.tensor, there: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """Read codes of BITS bits one by one from a dense stream, int32; rows begin at ``row_at``."""
    bit = index * BITS
    at = ptr + row_at + bit // 8
    shift = bit % 8
    code = tl.load(at, mask=there, other=0).to(tl.int32)
    if 8 % BITS != 0:  # may reach into the next byte
        code |= tl.load(at + 1, mask=there & (shift + BITS > 8), other=0).to(tl.int32) << 8
    return (code >> shift) & (2**BITS - 1)


@jit
def exact_float(code: tl.tensor) -> tl.tensor:
    """Return 2^23 + an integer from 0 to 2^23 - 1 as float32: a bit operation, where a conversion
    would take four times as long. Subtracting 2^23 + zero gives the exact difference.
    """
    return (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
