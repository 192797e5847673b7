"""Packed codes one by one, or as the values that they stand for: float32, or bfloat16's bits.

numba has no bfloat16: it is the upper half of a float32, rounded to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

from dllm_qbench.kernels.cpu.compiled import compiled, instruction

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]


@compiled
def expand_rows(packed: Bytes, size: int, bits: int, minus: int, codes: Bytes) -> None:
    """Unpack rows of ``size`` codes.

    Args:
        packed: flat ``[R, ceil(I b / 8)]``.
        minus: what to take from each code, modulo 256.
        codes: flat ``[R, I]``.
    """
    width = (size * bits + 7) // 8
    less = np.uint8(minus)
    for r in range(codes.size // size):
        row = codes[r * size : (r + 1) * size]
        _row(packed[r * width : (r + 1) * width], bits, np.uint8(0), row)
        if minus:
            for i in range(size):
                row[i] = np.uint8(row[i] - less)


@compiled
def values_of_rows(
    packed: Bytes,
    size: int,
    bits: int,
    flip: int,
    group: int,
    scales: Floats,
    zeros: Floats,
    wide: Floats,
    narrow: Halves,
) -> None:
    """Return ``(code - zero) * scale`` of rows.

    Args:
        packed, size, bits: as of :func:`expand_rows`.
        flip: bits of codes of 8 bits to turn: 128 for int8, whose codes are then 0..255.
        scales, zeros: flat ``[R, G]``; zeros are of codes 0..2^b - 1.
        wide, narrow: flat ``[R, I]``; the one of a size other than 0 is written.
    """
    G, width = (size + group - 1) // group, (size * bits + 7) // 8
    codes, row = np.empty(size, np.uint8), np.empty(size, np.float32)
    for r in range(scales.size // G):
        _row(packed[r * width : (r + 1) * width], bits, np.uint8(flip), codes)
        if wide.size:
            row = wide[r * size : (r + 1) * size]
        for g in range(G):
            scale, zero = scales[r * G + g], zeros[r * G + g]
            first, last = g * group, min(size, (g + 1) * group)
            _scaled(codes[first:last], zero, scale, row[first:last])
        if narrow.size:
            to_bfloat16(row, narrow[r * size : (r + 1) * size])


@compiled
def values_of_columns(
    codes: Bytes,
    outputs: int,
    flip: int,
    first: int,
    last: int,
    start: int,
    group: int,
    scales: Floats,
    zeros: Floats,
    wide: Floats,
    narrow: Halves,
) -> None:
    """Return ``(code - zero) * scale`` of a weight of 8 bits whose columns lie together.

    Args:
        codes: flat ``[R, O]``, for the channels ``start``, ``start + 1``, ...
        flip: as of :func:`values_of_rows`.
        first, last: the outputs to take.
        scales, zeros: flat ``[G, O]``.
        wide, narrow: flat ``[R, last - first]``; the one of a size other than 0 is written.
    """
    count, turned = last - first, np.uint8(flip)
    row = np.empty(count, np.float32)
    for r in range(codes.size // outputs):
        if wide.size:
            row = wide[r * count : (r + 1) * count]
        own = codes[r * outputs + first : r * outputs + last]
        place = (start + r) // group * outputs
        scale, zero = scales[place + first : place + last], zeros[place + first : place + last]
        for o in range(count):
            row[o] = (np.float32(own[o] ^ turned) - zero[o]) * scale[o]
        if narrow.size:
            to_bfloat16(row, narrow[r * count : (r + 1) * count])


@instruction
def bfloat16_bits(typing: Any, x: Any) -> Any:
    """Write the bits of a float32 as bfloat16, ties to even, in 32-bit steps (numba's are of 64)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, half = ir.IntType(32), ir.IntType(16)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.lshr(builder.add(builder.add(bits, word(0x7FFF)), odd), word(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, word(0x7FC0), rounded), half)

    return types.uint16(types.float32), emit


@compiled
def to_bfloat16(x: Floats, halves: Halves) -> None:
    """Round to bfloat16."""
    for i in range(x.size):
        halves[i] = bfloat16_bits(x[i])


@compiled
def _scaled(codes: Bytes, zero: Any, scale: Any, values: Floats) -> None:
    for i in range(codes.size):
        values[i] = (np.float32(codes[i]) - zero) * scale


@compiled
def _row(packed: Bytes, bits: int, flip: Any, codes: Bytes) -> None:
    size = codes.size
    if bits == 8:
        for i in range(size):
            codes[i] = packed[i] ^ flip
        return
    if bits == 4:
        for j in range(size // 2):
            codes[2 * j], codes[2 * j + 1] = packed[j] & 15, packed[j] >> 4
        if size % 2:
            codes[-1] = packed[-1] & 15
        return
    mask = np.uint64((1 << bits) - 1)
    for c in range(size // 8):  # eight codes are a whole number of bytes
        word = np.uint64(0)
        for k in range(bits):
            word |= np.uint64(packed[c * bits + k]) << np.uint64(8 * k)
        for j in range(8):
            codes[8 * c + j] = np.uint8((word >> np.uint64(bits * j)) & mask)
    for i in range(size // 8 * 8, size):
        value = 0
        for k in range(i * bits, (i + 1) * bits):
            value |= (packed[k // 8] >> (k % 8) & 1) << (k - i * bits)
        codes[i] = np.uint8(value)
