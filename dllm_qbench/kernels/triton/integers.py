"""Integer inputs times integer weights: int8 on tensor cores, sums in int32, scaled in float32.

Legend: M tokens, O outputs, I inputs. A part is a run of inputs for which both sides keep one scale: all
of them where neither has groups.

    y = sum over parts of  s_x s_w  (sum x w - z_x sum w - sum x z_w + n z_x z_w)

x and w are what int8 can hold: codes of 4 bits as they are, unsigned ones of 8 bits minus 128 (and
their zero points too). Each bracket is exact in int32.
"""

from __future__ import annotations

from math import gcd

import torch
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine

from dllm_qbench.kernels import reference
from dllm_qbench.kernels.backend import CannotError
from dllm_qbench.kernels.codes import Codes, PackedWeight
from dllm_qbench.kernels.triton.launch import (
    INTERPRETED,
    check_device,
    jit,
    narrow,
    power_of_two,
    start,
)
from dllm_qbench.kernels.triton.tiles import nibbles, place, programs, tile_for

# How codes lie in memory: int8; uint8, to be shifted by 128; pairs of 4 bits that count from -8, from 0.
_INT8, _UINT8, _SIGNED_PAIRS, _PAIRS = 0, 1, 2, 3
_MOST = (2**31 - 1) // 255**2  # inputs whose products of 255 * 255 int32 can add up


def linear_quantized(
    codes: Codes, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Multiply integer inputs; see :func:`dllm_qbench.kernels.linear_quantized`."""
    O, I = weight.shape  # noqa: E741 (the legend's names)
    lead = codes.scale.shape[:-1]
    if codes.scale.numel() == 0 or O == 0 or I == 0:
        return reference.linear_quantized(codes, weight, bias, dtype)
    check_device("linear_quantized", codes.data, weight.data, bias)
    if I > _MOST:
        raise CannotError(
            f"linear_quantized: the triton backend adds products of at most {_MOST} inputs in int32,"
            f" found {I}; choose backend 'torch'"
        )
    G = codes.scale.shape[-1]
    part = gcd(codes.group if G > 1 else 0, weight.group if weight.scale.shape[1] > 1 else 0) or I
    x_MI, x_kind = _readable(codes, part)
    w_OI, w_kind = _readable(weight.codes(), part)
    # Tensor cores read int8 with the inputs side by side; a weight packed on a CPU lies otherwise.
    x_MI, w_OI = x_MI.reshape(-1, x_MI.shape[-1]).contiguous(), w_OI.contiguous()
    M = x_MI.shape[0]
    x_zero, w_zero = codes.zero, weight.zeros()
    scales = (codes.scale.contiguous(), weight.scale.contiguous())
    plain = x_kind == w_kind == _INT8 and part == I and x_zero is w_zero is None
    tile = tile_for(M, O, "int8" if plain else "unpacked", x_MI.device)
    depth = min(128, max(32, power_of_two(part)))
    y = torch.empty(*lead, O, dtype=dtype, device=x_MI.device)
    start(
        _product,
        (programs(M, O, tile),),
        x_MI,
        w_OI,
        y,
        *scales,
        scales[0] if x_zero is None else x_zero.contiguous(),
        scales[1] if w_zero is None else w_zero.contiguous(),
        y if bias is None else bias.contiguous(),
        M,
        O,
        I,
        x_MI.stride(0),
        w_OI.stride(0),
        G,
        weight.scale.shape[1],
        codes.group,
        weight.group,
        part,
        X=x_kind,
        W=w_kind,
        X_ZERO=x_zero is not None,
        W_ZERO=w_zero is not None,
        PARTS=part < I,
        EVEN=part % depth == 0 and I % part == 0,
        BIAS=bias is not None,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=depth,
        INTERPRET=INTERPRETED,
        warps=tile.warps,
        stages=tile.stages,
    )
    return y


def _readable(codes: Codes, part: int) -> tuple[Tensor, int]:
    """Return data that the kernel can read, and how it lies."""
    if codes.bits == 8:
        return codes.data, _INT8 if codes.symmetric else _UINT8
    if codes.bits == 4 and (part % 2 == 0 or part == codes.size):
        return codes.data, _SIGNED_PAIRS if codes.symmetric else _PAIRS
    return codes.integers().to(torch.int8), _INT8


@jit
def _product(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    w_scale_ptr: tl.tensor,
    x_zero_ptr: tl.tensor,
    w_zero_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    M: tl.tensor,
    O: tl.tensor,  # noqa: E741
    I: tl.tensor,  # noqa: E741
    x_stride: tl.tensor,
    w_stride: tl.tensor,
    x_groups: tl.tensor,
    w_groups: tl.tensor,
    x_group: tl.tensor,
    w_group: tl.tensor,
    part: tl.tensor,
    X: tl.constexpr,
    W: tl.constexpr,
    X_ZERO: tl.constexpr,
    W_ZERO: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    first_row, first_col = place(M, O, ROWS, COLS)
    row, col = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    # Beyond the ends other rows are read again, which needs no mask; they are not stored.
    own_row, own_col = (row % M).to(tl.int64), (col % O).to(tl.int64)
    x_at, w_at = (own_row * x_stride)[:, None], (own_col * w_stride)[:, None]
    exact = tl.full((ROWS, COLS), 0, tl.int32)
    total = tl.full((ROWS, COLS), 0.0, tl.float32)
    x_sum, w_sum = tl.full((ROWS,), 0, tl.int32), tl.full((COLS,), 0, tl.int32)
    steps = (part + DEPTH - 1) // DEPTH
    for step in range((I + part - 1) // part * steps):
        if PARTS:
            begin = step // steps * part + step % steps * DEPTH
            limit = tl.minimum((step // steps + 1) * part, I)
        else:
            begin = step * DEPTH
            limit = I
        x = _int8(x_ptr, x_at, begin, limit, X, EVEN, ROWS, DEPTH)
        w = _int8(w_ptr, w_at, begin, limit, W, EVEN, COLS, DEPTH)
        exact = tl.dot(x, tl.trans(w), exact, out_dtype=tl.int32)
        if W_ZERO:
            x_sum += tl.reduce(x.to(tl.int32), 1, _sum_combine)
        if X_ZERO:
            w_sum += tl.reduce(w.to(tl.int32), 1, _sum_combine)
        if PARTS:  # every step by itself: its scales, and zero points, may be its own
            x_own = own_row * x_groups + tl.minimum(begin // x_group, x_groups - 1)
            w_own = own_col * w_groups + tl.minimum(begin // w_group, w_groups - 1)
            count = tl.maximum(tl.minimum(limit - begin, DEPTH), 0)
            exact = _without_zeros(
                exact, x_sum, w_sum, count, x_zero_ptr + x_own, w_zero_ptr + w_own, X, W,
                X_ZERO, W_ZERO,
            )  # fmt: skip
            scale = tl.load(x_scale_ptr + x_own)[:, None] * tl.load(w_scale_ptr + w_own)[None, :]
            total += exact.to(tl.float32) * scale
            exact = tl.full((ROWS, COLS), 0, tl.int32)
            x_sum, w_sum = tl.full((ROWS,), 0, tl.int32), tl.full((COLS,), 0, tl.int32)
    if not PARTS:
        exact = _without_zeros(
            exact, x_sum, w_sum, I, x_zero_ptr + own_row, w_zero_ptr + own_col, X, W,
            X_ZERO, W_ZERO,
        )  # fmt: skip
        total = exact.to(tl.float32) * tl.load(x_scale_ptr + own_row)[:, None]
        total *= tl.load(w_scale_ptr + own_col)[None, :]
    if BIAS:
        total += tl.load(bias_ptr + own_col).to(tl.float32)[None, :]
    there = (row < M)[:, None] & (col < O)[None, :]
    made = narrow(total, y_ptr.dtype.element_ty, INTERPRET)
    tl.store(y_ptr + own_row[:, None] * O + own_col[None, :], made, mask=there)


@jit
def _int8(
    ptr: tl.tensor,
    row_at: tl.tensor,
    begin: tl.tensor,
    limit: tl.tensor,
    KIND: tl.constexpr,
    EVEN: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """Read D codes of R rows as int8, 0 from channel ``limit`` on."""
    lane = begin + tl.arange(0, D)[None, :]
    if KIND >= 2:
        codes = nibbles(ptr, row_at, begin, limit, EVEN, R, D).to(tl.int8)
        if KIND == 2:
            codes -= 8
    else:
        at = ptr + row_at + lane
        codes = tl.load(at) if EVEN else tl.load(at, mask=lane < limit, other=0)
        if KIND == 1:
            codes = (codes ^ 0x80).to(tl.int8, bitcast=True)
    if KIND > 0 and not EVEN:
        codes = tl.where(lane < limit, codes, 0)
    return codes


@jit
def _without_zeros(
    exact: tl.tensor,
    x_sum: tl.tensor,
    w_sum: tl.tensor,
    count: tl.tensor,
    x_zero_at: tl.tensor,
    w_zero_at: tl.tensor,
    X: tl.constexpr,
    W: tl.constexpr,
    X_ZERO: tl.constexpr,
    W_ZERO: tl.constexpr,
) -> tl.tensor:
    """Take the zero points out of sums of products; see the formula above."""
    if X_ZERO:
        x_zero = tl.load(x_zero_at).to(tl.int32)
        if X == 1:
            x_zero -= 128
        exact -= x_zero[:, None] * w_sum[None, :]
    if W_ZERO:
        w_zero = tl.load(w_zero_at).to(tl.int32)
        if W == 1:
            w_zero -= 128
        exact -= x_sum[:, None] * w_zero[None, :]
    if X_ZERO and W_ZERO:
        exact += count * x_zero[:, None] * w_zero[None, :]
    return exact
