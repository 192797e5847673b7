"""Rounding to integer codes, bit by bit as the reference does, and their packing at 4 bits.

A row's pass over its values is branch-free, so that LLVM makes vector code of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

from dllm_qbench.kernels.cpu.compiled import compiled, instruction
from dllm_qbench.kernels.cpu.registers import has_fma

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]

_TINY = np.finfo(np.float32).tiny
_MAGNITUDE = np.int32(0x7FFFFFFF)
_FAR = np.float32(2.0**90)  # steps within 2^-90..2^90 divide by their reciprocal
_FLOAT, _WORD, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)
_TO_INTEGER = (
    12582912.0  # 1.5 * 2^23: added to |v| < 2^22 it leaves v, ties to even, in the low bits
)


@instruction
def nearest(typing: Any, x: Any, scale: Any, inverse: Any) -> Any:
    """Write RN(x / scale) rounded to an integer, as a byte.

    With r = RN(1 / s) and q = RN(x r), q + r (x - q s), the inner difference exact by a fused
    multiply-add, is RN(x / s) (Markstein, IBM J. Res. Dev. 34, 1990), at a third of a division.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, step, reciprocal = args
        if has_fma:
            quotient = builder.fmul(value, reciprocal)
            rest = builder.fma(builder.fneg(quotient), step, value)
            quotient = builder.fma(rest, reciprocal, quotient)
        else:
            quotient = builder.fdiv(value, step)
        shifted = builder.fadd(quotient, ir.Constant(_FLOAT, _TO_INTEGER))
        return builder.trunc(builder.bitcast(shifted, _WORD), _BYTE)

    return types.uint8(types.float32, types.float32, types.float32), emit


@instruction
def nearest_within(typing: Any, x: Any, scale: Any, low: Any, high: Any, offset: Any) -> Any:
    """Write x / scale clipped to low..high (integers; NaN becomes low), rounded, plus offset."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, step, least, most, more = args
        quotient = builder.fdiv(value, step)
        inside = builder.fcmp_ordered(">", quotient, least)
        quotient = builder.select(inside, quotient, least)
        inside = builder.fcmp_ordered("<", quotient, most)
        quotient = builder.select(inside, quotient, most)
        shifted = builder.fadd(quotient, ir.Constant(_FLOAT, _TO_INTEGER))
        word = builder.add(builder.bitcast(shifted, _WORD), more)
        return builder.trunc(word, _BYTE)

    f32 = types.float32
    return types.uint8(f32, f32, f32, f32, types.int32), emit


@instruction
def smaller(typing: Any, a: Any, b: Any) -> Any:
    """Write the smaller of two int32, in 32 bits: numba's own ``min`` widens them to 64."""
    return types.int32(
        types.int32, types.int32
    ), lambda context, builder, signature, args: builder.select(
        builder.icmp_signed("<", *args), *args
    )


@instruction
def larger(typing: Any, a: Any, b: Any) -> Any:
    """Write the larger of two int32."""
    return types.int32(
        types.int32, types.int32
    ), lambda context, builder, signature, args: builder.select(
        builder.icmp_signed(">", *args), *args
    )


@compiled
def round_rows(
    x: Floats,
    words: Words,
    size: int,
    group: int,
    bits: int,
    symmetric: bool,
    clip: Any,
    codes: Bytes,
    scales: Floats,
    zeros: Bytes,
) -> None:
    """Round rows of ``size`` values.

    Args:
        x: flat ``[M, I]``; ``words`` is the same memory.
        clip: float32; on a symmetric grid divided by its last code.
        codes: flat ``[M, ceil(I b / 8)]``.
        scales, zeros: flat ``[M, G]``; ``zeros`` is written on an asymmetric grid only.
    """
    G = (size + group - 1) // group
    width = (size * bits + 7) // 8
    row = np.empty(size, np.uint8)
    for m in range(x.size // size):
        if bits == 8:
            row = codes[m * width : (m + 1) * width]
        for g in range(G):
            first, last = g * group, min(size, (g + 1) * group)
            values = x[m * size + first : m * size + last]
            bit_patterns = words[m * size + first : m * size + last]
            part = row[first:last]
            if symmetric:
                scales[m * G + g] = _symmetric(values, bit_patterns, bits, clip, part)
            else:
                scales[m * G + g], zeros[m * G + g] = _asymmetric(
                    values, bit_patterns, bits, clip, part
                )
        if bits == 4:
            _pack(row, 8 if symmetric else 0, codes[m * width : (m + 1) * width])


@compiled
def _symmetric(x: Floats, words: Words, bits: int, clip: Any, codes: Bytes) -> Any:
    largest = np.int32(0)
    for i in range(words.size):  # patterns of magnitudes are in their order, NaN above infinity
        largest = larger(largest, words[i] & _MAGNITUDE)
    scale = _float_of(largest) * clip
    if scale < _TINY:
        scale = _TINY
    last = (1 << (bits - 1)) - 1
    if clip * np.float32(last) > np.float32(0.999) and np.float32(1) / _FAR < scale < _FAR:
        inverse = np.float32(1) / scale
        for i in range(x.size):
            codes[i] = nearest(x[i], scale, inverse)
    else:
        top = np.float32(last)
        for i in range(x.size):
            codes[i] = nearest_within(x[i], scale, -top, top, np.int32(0))
    return scale


@compiled
def _asymmetric(x: Floats, words: Words, bits: int, clip: Any, codes: Bytes) -> Any:
    low, high = np.int32(_MAGNITUDE), np.int32(-_MAGNITUDE - 1)
    for i in range(words.size):
        # In the order of their values: negative numbers with all bits but the sign turned.
        key = words[i] ^ ((words[i] >> 31) & _MAGNITUDE)
        low, high = smaller(low, key), larger(high, key)
    least = _float_of(low ^ ((low >> 31) & _MAGNITUDE))
    most = _float_of(high ^ ((high >> 31) & _MAGNITUDE))
    if least > 0:
        least = np.float32(0)
    if most < 0:
        most = np.float32(0)
    least, most = least * clip, most * clip
    last = np.float32((1 << bits) - 1)
    scale = (most - least) / last
    if scale < _TINY:
        scale = _TINY
    zero = np.float32(np.rint(-least / scale))
    if not 0 <= zero <= last:
        zero = np.float32(0)  # of a NaN
    for i in range(x.size):
        codes[i] = nearest_within(x[i], scale, -zero, last - zero, np.int32(zero))
    return scale, np.uint8(zero)


@compiled
def _float_of(word: Any) -> Any:
    return np.int32(word).view(np.float32)


@compiled
def _pack(codes: Bytes, offset: int, packed: Bytes) -> None:
    """Pack codes of 4 bits, two a byte, the first in the low half."""
    more = np.uint8(offset)
    for j in range(codes.size // 2):
        low, high = codes[2 * j] + more, codes[2 * j + 1] + more
        packed[j] = np.uint8((low & 15) | ((high & 15) << 4))
    if codes.size % 2:
        packed[-1] = np.uint8((codes[-1] + more) & 15)
