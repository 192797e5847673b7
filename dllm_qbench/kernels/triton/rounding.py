"""Rounding to 8 or 4 bits, per token or per group, bit for bit as the reference rounds.

Legend: M tokens of I channels in G groups; a program takes ROWS groups, in tiles ``[ROWS, TILE]``.

How the same bits come out:
- the largest magnitude is found among the floats' bits as integers: their order is that of the
  magnitudes, NaN is above infinity and so is never lost, and a warp reduces integers in one step;
- divisions are IEEE's (``/`` on float32 is approximate on a GPU);
- adding 1.5 * 2^23 to a float32 below 2^22 rounds it to an integer, ties to even, and leaves that
  integer in the low bits. Values are clamped first: the ends of a grid are integers, so that
  clamping and rounding may change places.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.standard import _elementwise_max

from dllm_qbench.kernels import reference
from dllm_qbench.kernels.codes import Codes
from dllm_qbench.kernels.triton.launch import (
    check_device,
    jit,
    power_of_two,
    start,
    warps_for,
)

LARGEST_TILE = 32768  # elements that a program holds in registers: 64 a thread of 16 warps
_TILE = 4096  # that a program takes where groups are small


def quantize(x: Tensor, bits: int, group: int, symmetric: bool, clip: float) -> Codes:
    """Round per group; see :func:`dllm_qbench.kernels.quantize`."""
    if x.numel() == 0:
        return reference.quantize(x, bits, group, symmetric, clip)
    check_device("quantize", x.detach())
    G = -(-x.shape[-1] // group)
    if G > 1 and x.shape[-1] % group == 0 and (bits == 8 or group % 2 == 0):
        # Groups that lie side by side are tokens with one group each, which need fewer masks.
        parts = x.detach().unflatten(-1, (G, group))
        made = quantize(parts, bits, group, symmetric, clip)
        zero = None if made.zero is None else made.zero.flatten(-2)
        return Codes(made.data.flatten(-2), made.scale.flatten(-2), zero, bits, x.shape[-1], group)
    lead, size = x.shape[:-1], x.shape[-1]
    flat_MI = x.detach().reshape(-1, size).contiguous()
    M = flat_MI.shape[0]
    tile = min(max(2, power_of_two(group)), LARGEST_TILE)
    rows = max(1, min(256, _TILE // tile))
    # Two codes of a byte must be of one group; groups of an odd size are packed afterwards.
    packed = bits == 4 and (G == 1 or group % 2 == 0)
    codes = flat_MI.new_empty(
        M,
        -(-size // 2) if packed else size,
        dtype=torch.int8 if symmetric and bits == 8 else torch.uint8,
    )
    scale = flat_MI.new_empty(M, G, dtype=torch.float32)
    zero = None if symmetric else flat_MI.new_empty(M, G, dtype=torch.uint8)
    start(
        _quantize,
        (-(-M * G // rows),),
        flat_MI,
        codes,
        scale,
        scale if zero is None else zero,
        M * G,
        size,
        group,
        G,
        clip / (2 ** (bits - 1) - 1) if symmetric else clip,
        ROWS=rows,
        TILE=tile,
        WHOLE=group <= tile,
        FULL=group == size == tile,
        BITS=bits,
        SYMMETRIC=symmetric,
        PACKED=packed,
        warps=warps_for(rows * tile),
    )
    if bits == 4 and not packed:
        pairs = F.pad(codes, (0, size % 2)).unflatten(-1, (-1, 2))
        codes = pairs[..., 0] | (pairs[..., 1] << 4)
    return Codes(
        codes.view(*lead, codes.shape[-1]),
        scale.view(*lead, G),
        None if zero is None else zero.view(*lead, G),
        bits,
        size,
        group,
    )


@jit
def _quantize(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    count: tl.tensor,
    size: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    share: tl.tensor,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    FULL: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    PACKED: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, first = (row // groups).to(tl.int64)[:, None], (row % groups * group)[:, None]
    # channels of this group that there are: the last of a token may be shorter
    most = tl.minimum(group, size - row % groups * group)
    count_here = tl.where(row < count, most, 0)[:, None]
    lane = tl.arange(0, TILE)[None, :]
    at = token * size + first
    # a mask that is the same for neighbours lets them be loaded at once
    there = (row < count)[:, None] if FULL else lane < count_here
    x = tl.load(x_ptr + at + lane, mask=there, other=0.0).to(tl.float32)
    low, high = _range(x, SYMMETRIC)
    if not WHOLE:
        for begin in range(TILE, group, TILE):
            more = lane + begin
            x = tl.load(x_ptr + at + more, mask=more < count_here, other=0.0).to(tl.float32)
            low_here, high_here = _range(x, SYMMETRIC)
            low, high = tl.maximum(low, low_here), tl.maximum(high, high_here)
    step, zero = grid(low, high, share, BITS, SYMMETRIC)
    tl.store(scale_ptr + row, step, mask=row < count)
    if not SYMMETRIC:
        tl.store(zero_ptr + row, zero.to(tl.int32).to(tl.uint8), mask=row < count)
    row_bytes = (size + 1) // 2 if PACKED else size
    if WHOLE:
        codes = stored(x, step, zero, BITS, SYMMETRIC)
        _put(codes_ptr, token * row_bytes, first, codes, 0, count_here, FULL, ROWS, TILE, PACKED)
    else:
        for begin in range(0, group, TILE):
            more = lane + begin
            x = tl.load(x_ptr + at + more, mask=more < count_here, other=0.0).to(tl.float32)
            codes = stored(x, step, zero, BITS, SYMMETRIC)
            _put(
                codes_ptr,
                token * row_bytes,
                first,
                codes,
                begin,
                count_here,
                FULL,
                ROWS,
                TILE,
                PACKED,
            )


@jit
def _range(x: tl.tensor, SYMMETRIC: tl.constexpr) -> tl.tensor:
    """Return ``-min(x, 0)`` and ``max(x, 0)`` of each row as the bits of floats; symmetric: both the
    largest magnitude.
    """
    if SYMMETRIC:
        high = largest(x)
        low = high
    else:  # comparisons with NaN are false: it stays in both
        low, high = largest(tl.where(x > 0, 0.0, x)), largest(tl.where(x < 0, 0.0, x))
    return low, high


@jit
def largest(x: tl.tensor) -> tl.tensor:
    """Return the largest magnitude of each row of ``[R, N]`` float32, as its bits; NaN is above all."""
    return tl.reduce(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1, _elementwise_max)


@jit
def grid(
    low_bits: tl.tensor,
    high_bits: tl.tensor,
    share: tl.tensor,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
) -> tl.tensor:
    """Return the step and the zero point (a float; 0 on a symmetric grid) of each row.

    ``share``: of the largest magnitude that a step takes; asymmetric: of the range that is kept.
    """
    high = high_bits.to(tl.float32, bitcast=True) * share
    if SYMMETRIC:
        step = high
    else:
        low = low_bits.to(tl.float32, bitcast=True) * share
        step = tl.div_rn(high + low, tl.full(high.shape, 2**BITS - 1, tl.float32))
    tiny = 1.1754943508222875e-38  # the smallest normal float32
    step = tl.where(step < tiny, tiny, step)  # NaN stays
    if SYMMETRIC:
        zero = tl.full(step.shape, 0.0, tl.float32)
    else:
        zero = nearest(tl.div_rn(low, step)).to(tl.float32)
    return step, zero


@jit
def nearest(x: tl.tensor) -> tl.tensor:
    """Round float32 below 2^22 to int32, ties to even."""
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@jit
def stored(
    x: tl.tensor, step: tl.tensor, zero: tl.tensor, BITS: tl.constexpr, SYMMETRIC: tl.constexpr
) -> tl.tensor:
    """Return the codes of ``[R, N]`` float32 as they are stored, int32: at 4 bits from 0."""
    scaled = tl.div_rn(x, tl.broadcast_to(step[:, None], x.shape))
    last: tl.constexpr = 2 ** (BITS - 1) - 1 if SYMMETRIC else 2**BITS - 1
    if SYMMETRIC:
        codes = nearest(tl.minimum(tl.maximum(scaled, -last), last))
        codes = codes if BITS == 8 else codes + 8
    else:
        zeros = tl.broadcast_to(zero[:, None], x.shape)
        kept = tl.minimum(tl.maximum(scaled, -zeros), last - zeros)
        codes = nearest(kept) + zeros.to(tl.int32)
    return codes


@jit
def pair_up(codes: tl.tensor, ROWS: tl.constexpr, HALF: tl.constexpr) -> tl.tensor:
    """Return two codes of 4 bits a byte: ``[ROWS, 2 HALF] -> [ROWS, HALF]``, the first one low."""
    low, high = tl.split(tl.reshape(codes, (ROWS, HALF, 2)))
    return low | (high << 4)


@jit
def _put(
    codes_ptr: tl.tensor,
    token_at: tl.tensor,
    first: tl.tensor,
    codes: tl.tensor,
    begin: tl.tensor,
    count: tl.tensor,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PACKED: tl.constexpr,
) -> None:
    """Store the codes of channels ``begin``, ... of a group that begins at ``first``."""
    lane = begin + tl.arange(0, TILE)[None, :]
    there = count > 0 if FULL else lane < count
    codes = tl.where(there, codes, 0)
    if PACKED:
        half = begin // 2 + tl.arange(0, TILE // 2)[None, :]
        made = pair_up(codes, ROWS, TILE // 2)
        at = codes_ptr + token_at + first // 2 + half
        tl.store(
            at, made.to(codes_ptr.dtype.element_ty), mask=count > 0 if FULL else 2 * half < count
        )
    else:
        at = codes_ptr + token_at + first + lane
        tl.store(at, codes.to(codes_ptr.dtype.element_ty), mask=there)
