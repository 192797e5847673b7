"""The Hadamard transform on a GPU, alone or with its result rounded before it leaves the registers.

Legend: a token is BLOCKS blocks that are turned by themselves, each ``[POWER, M]`` (H is the Kronecker
product of Sylvester's matrix of order POWER = 2^LOG and Paley's of order M): LINES lines of M values.
A program holds TOKENS tokens, padded to powers of two: ``[TOKENS, PADDED * POWER, WIDE]``.

- Paley's part is a product with the matrix of +1 and -1 padded to WIDE, on tensor cores, and exact
  there: halves as they are, float32 as the sum of three bfloat16 (24 bits in three times 8), whose
  products with +-1 are exact and are added in float32;
- the power of two is LOG butterflies. Each splits off the lowest bit of an index and puts it back as
  the highest: after LOG times every bit is where it was. Said so, a thread does as many butterflies
  as the bits that lie in its own registers allow, and the compiler exchanges values through shared
  memory only when those are used up: three times for 4096 elements, not twelve.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.kernels import reference
from dllm_qbench.kernels.codes import Codes
from dllm_qbench.kernels.orders import base_matrix
from dllm_qbench.kernels.reference import block_hadamard
from dllm_qbench.kernels.triton.launch import (
    INTERPRETED,
    check_device,
    dot,
    jit,
    narrow,
    power_of_two,
    start,
    warps_for,
)
from dllm_qbench.kernels.triton.rounding import (
    LARGEST_TILE,
    grid,
    largest,
    pair_up,
    quantize,
    stored,
)

_TILE = 2048  # elements that a program takes where tokens are short


def hadamard(x: Tensor, width: int, signs: Tensor | None, inverse: bool) -> Tensor:
    """Turn every ``width`` neighbours, or back; see :func:`dllm_qbench.kernels.hadamard`."""
    check_device("hadamard", x, signs)
    return _turned(x, width, signs, inverse, x.dtype)


def rotate_quantize(x: Tensor, width: int, signs: Tensor | None, bits: int, clip: float) -> Codes:
    """Turn, then round per token; in one pass where a program can hold a token."""
    x = x.detach().float() if x.dtype == torch.float64 else x.detach()
    check_device("rotate_quantize", x, signs)
    if x.numel() == 0:
        return reference.rotate_quantize(x, width, signs, bits, clip)
    blocks, power, m = block_hadamard(width)
    size = x.shape[-1]
    blocks *= size // width
    padded = power_of_two(blocks) * (2 if size == 1 else 1)  # two codes of 4 bits make a byte
    if padded * power * power_of_two(m) > LARGEST_TILE:
        return quantize(_turned(x, width, signs, False, torch.float32), bits, size, True, clip)
    lead, flat = x.shape[:-1], x.reshape(-1, size).contiguous()
    data = flat.new_empty(
        flat.shape[0],
        size if bits == 8 else -(-size // 2),
        dtype=torch.int8 if bits == 8 else torch.uint8,
    )
    scale = flat.new_empty(flat.shape[0], 1, dtype=torch.float32)
    share = clip / (2 ** (bits - 1) - 1)
    _launch(flat, data, scale, signs, (blocks, padded, power, m), False, 1, share, bits)
    return Codes(
        data.view(*lead, data.shape[-1]), scale.view(*lead, 1), None, bits, size, max(1, size)
    )


def _turned(
    x: Tensor, width: int, signs: Tensor | None, inverse: bool, dtype: torch.dtype
) -> Tensor:
    if x.numel() == 0:
        return x.to(dtype, copy=True)
    _, power, m = block_hadamard(width)
    most = LARGEST_TILE // (2 if x.dtype == torch.float64 else 1)
    outer = max(1, power * power_of_two(m) // most)
    apart = x.dtype == torch.float64 and m > 1
    if outer > 1 or apart:
        outer = power if apart else outer
        return _turned_in_two(x, width, signs, inverse, dtype, outer)
    flat = x.reshape(-1, power * m).contiguous()
    out = torch.empty_like(flat, dtype=dtype)
    period = x.shape[-1] // (power * m)
    _launch(flat, out, out, signs, (1, 1, power, m), inverse, period, 1.0, 0)
    return out.view(x.shape)


def _turned_in_two(
    x: Tensor, width: int, signs: Tensor | None, inverse: bool, dtype: torch.dtype, outer: int
) -> Tensor:
    """Turn blocks that no program can hold: their parts, then across the ``outer`` parts.

    In float64 Paley's matrix is a part of its own, and torch's product: not all of Triton's releases
    have a dot of float64.
    """
    _, power, m = block_hadamard(width)
    inner = power * m // outer
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first = None if inverse else signs
    if wide == torch.float64 and m > 1:
        signed = x if first is None else x * first.to(x)
        y = signed.reshape(-1, m) @ _base(m, inverse, x.device, wide)[:m, :m] * m**-0.5
    else:
        y = _turned(x, inner, first, inverse, wide)
    y = y.view(-1, outer, inner).mT.contiguous()
    y = _turned(y, outer, None, inverse, wide).mT.reshape(x.shape)
    if inverse and signs is not None:
        y *= signs.to(y)
    return y.to(dtype)


def _launch(
    flat: Tensor,
    out: Tensor,
    scale: Tensor,
    signs: Tensor | None,
    sizes: tuple[int, int, int, int],
    inverse: bool,
    period: int,
    share: float,
    bits: int,
) -> None:
    blocks, padded, power, m = sizes
    wide = power_of_two(m)
    held = padded * power * wide
    tokens = max(1, _TILE // held)
    if m > 1:
        tokens = max(tokens, 16 // (padded * power))  # a dot takes at least 16 lines
    base = flat if m == 1 else _base(m, inverse, flat.device, flat.dtype)
    own = flat if signs is None else signs.to(flat.device, torch.float32).contiguous()
    start(
        _turn,
        (-(-flat.shape[0] // tokens),),
        flat,
        out,
        scale,
        base,
        own,
        flat.shape[0],
        period,
        share,
        TOKENS=tokens,
        BLOCKS=blocks,
        PADDED=padded,
        POWER=power,
        LOG=power.bit_length() - 1,
        M=m,
        WIDE=wide,
        PART=min(wide, 32),
        FACTOR=(power * m) ** -0.5,  # a constant: an argument would be rounded to float32
        SIGNS=0 if signs is None else 2 if inverse else 1,
        BITS=bits,
        INTERPRET=INTERPRETED,
        # 32 elements a thread. A dot with twice that many spills in 16 warps, which have 128 registers
        # a thread, and with four times that many does not in 8, which have 255.
        warps=warps_for(tokens * held, most=8 if m > 1 and held > 16384 else 16),
        stages=2,
    )


@lru_cache(maxsize=32)
def _base(m: int, inverse: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what a line is multiplied by, ``[WIDE, WIDE]`` with zeros beyond M."""
    matrix = torch.from_numpy(base_matrix(m))
    matrix = matrix if inverse else matrix.T
    wide = power_of_two(m)
    kind = torch.bfloat16 if dtype == torch.float32 else dtype
    return F.pad(matrix, (0, wide - m, 0, wide - m)).to(device, kind).contiguous()


@jit
def _turn(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    signs_ptr: tl.tensor,
    count: tl.tensor,
    period: tl.tensor,
    share: tl.tensor,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    POWER: tl.constexpr,
    LOG: tl.constexpr,
    M: tl.constexpr,
    WIDE: tl.constexpr,
    PART: tl.constexpr,
    FACTOR: tl.constexpr,
    SIGNS: tl.constexpr,
    BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    """Turn TOKENS tokens; BITS of 4 or 8: round them too.

    ``signs`` hold for ``period`` tokens. SIGNS: 1, multiply first; 2, multiply last; 0, none.
    """
    SIZE: tl.constexpr = BLOCKS * POWER * M
    HELD: tl.constexpr = PADDED * POWER * WIDE
    start_at = tl.program_id(0).to(tl.int64) * TOKENS
    token = start_at + tl.arange(0, TOKENS)[:, None]
    place = tl.arange(0, HELD)[None, :]
    at = place // WIDE * M + place % WIDE
    there = (token < count) & (at < SIZE) & (place % WIDE < M)
    if M == 1:
        x = tl.load(x_ptr + token * SIZE + at, mask=there, other=0.0)
        y = x if x.dtype == tl.float64 else x.to(tl.float32)
        if SIGNS == 1:
            y *= tl.load(signs_ptr + token % period * SIZE + at, mask=there, other=0.0)
    else:
        LINES: tl.constexpr = PADDED * POWER
        line = tl.arange(0, TOKENS * LINES)[:, None]
        own = start_at + line // LINES
        line_at = line % LINES * M
        line_there = (own < count) & (line_at < SIZE)
        y = tl.full((TOKENS * LINES, WIDE), 0.0, tl.float32)
        for part in range(0, WIDE, PART):
            lane = part + tl.arange(0, PART)
            inside = line_there & (lane[None, :] < M)
            x = tl.load(x_ptr + own * SIZE + line_at + lane[None, :], mask=inside, other=0.0)
            if SIGNS == 1:
                own_signs = signs_ptr + own % period * SIZE + line_at + lane[None, :]
                # exact: a change of sign
                x = narrow(
                    x * tl.load(own_signs, mask=inside, other=0.0),
                    x_ptr.dtype.element_ty,
                    INTERPRET,
                )
            base = tl.load(base_ptr + lane[:, None] * WIDE + tl.arange(0, WIDE)[None, :])
            if x.dtype == tl.float32:
                for _ in tl.static_range(3):
                    leading = x.to(tl.bfloat16)
                    y = dot(leading, base, y, INTERPRET)
                    x -= leading.to(tl.float32)
            else:
                y = dot(x, base, y, INTERPRET)
        y = tl.reshape(y, (TOKENS, HELD))
    if LOG > 0:
        y = tl.reshape(y, (TOKENS * PADDED, POWER // 2, 2, WIDE))
        for _ in tl.static_range(LOG):
            low, high = tl.split(tl.trans(y, (0, 1, 3, 2)))
            y = tl.join(low + high, low - high)  # [.., POWER / 2, WIDE, 2]
            y = tl.reshape(tl.trans(y, (0, 3, 1, 2)), (TOKENS * PADDED, POWER // 2, 2, WIDE))
        y = tl.reshape(y, (TOKENS, HELD))
    y *= FACTOR
    if SIGNS == 2:
        y *= tl.load(signs_ptr + token % period * SIZE + at, mask=there, other=0.0)
    if BITS == 0:
        made = narrow(y, out_ptr.dtype.element_ty, INTERPRET)
        tl.store(out_ptr + token * SIZE + at, made, mask=there)
    else:
        tokens = start_at + tl.arange(0, TOKENS)
        top = largest(y)
        step, zero = grid(top, top, share, BITS, True)
        tl.store(scale_ptr + tokens, step, mask=tokens < count)
        codes = tl.where(there, stored(y, step, zero, BITS, True), 0)
        if BITS == 8:
            tl.store(out_ptr + token * SIZE + at, codes.to(tl.int8), mask=there)
        else:
            half = tl.arange(0, HELD // 2)[None, :]
            made = pair_up(codes, TOKENS, HELD // 2).to(tl.uint8)
            if M == 1:
                pair_at = half
                pair_there = (token < count) & (2 * half < SIZE)
            else:  # M is even: a byte's codes are of one line
                pair_at = half // (WIDE // 2) * (M // 2) + half % (WIDE // 2)
                pair_there = (token < count) & (2 * pair_at < SIZE) & (half % (WIDE // 2) < M // 2)
            tl.store(out_ptr + token * ((SIZE + 1) // 2) + pair_at, made, mask=pair_there)
