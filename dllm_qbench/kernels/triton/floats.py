"""Float inputs times packed weights of 2 to 8 bits: unpacked on the way to the tensor cores.

Legend: M tokens, O outputs, I inputs in G groups. A weight's value is ``(code - zero) * scale``.

Two ways, by M:
- few tokens: one kernel that unpacks in registers, so that the weight is read as it is packed;
- many: each program's rows would unpack the same weights again, which by then costs more than memory
  does. The weight is unpacked once, some rows at a time, and multiplied by the library's product.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.kernels import reference
from dllm_qbench.kernels.codes import PackedWeight
from dllm_qbench.kernels.triton.launch import (
    INTERPRETED,
    check_device,
    dot,
    jit,
    narrow,
    start,
)
from dllm_qbench.kernels.triton.tiles import (
    code_at,
    exact_float,
    nibbles,
    place,
    programs,
    tile_for,
)

# From how many tokens on a weight is unpacked once. Unpacking 4096 x 4096 moves 40 MB, an H100's 12 us;
# its dense product takes 7 us for every 128 tokens. Not yet timed. Float32 has no tensor cores here.
_MANY = {torch.float16: 1024, torch.bfloat16: 1024, torch.float32: 64}
_WEIGHTS_AT_ONCE = 2**26  # that are unpacked at a time


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Multiply float inputs; see :func:`dllm_qbench.kernels.linear`."""
    O, I = weight.shape  # noqa: E741 (the legend's names)
    if x.numel() == 0 or O == 0:
        return reference.linear(x, weight, bias)
    check_device("linear", x, weight.data, bias)
    dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    flat_MI = x.reshape(-1, I).to(dtype).contiguous()
    M = flat_MI.shape[0]
    if _MANY[dtype] <= M:
        return _dense(flat_MI, weight, bias).view(*x.shape[:-1], O).to(x.dtype)
    tile = tile_for(M, O, "float32" if dtype == torch.float32 else "unpacked", x.device)
    grouped = weight.scale.shape[1] > 1
    depth = 32 if dtype == torch.float32 or (grouped and weight.group % 64) else 64
    constants = _constants(weight, depth)
    y = torch.empty(*x.shape[:-1], O, dtype=dtype, device=x.device)
    start(
        _product,
        (programs(M, O, tile),),
        flat_MI,
        *_parts(weight),
        y if bias is None else bias.contiguous(),
        y,
        M,
        O,
        I,
        *_sizes(weight),
        ROWS=tile.rows,
        COLS=tile.cols,
        BIAS=bias is not None,
        **constants,
        warps=tile.warps,
        # a scale for each weight, not for each row, takes as much shared memory as the weights
        stages=tile.stages if constants["ALIKE"] else 2,
    )
    return y.to(x.dtype)


def _dense(x_MI: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Unpack some rows at a time, and multiply by what torch has."""
    O, I = weight.shape  # noqa: E741 (the legend's names)
    step, parts = max(1, _WEIGHTS_AT_ONCE // I), []
    for first in range(0, O, step):
        last = min(O, first + step)
        w_OI = x_MI.new_empty(last - first, I)
        start(
            _unpack,
            (-(-(last - first) // 32), -(-I // 128)),
            w_OI,
            *_parts(weight),
            first,
            last,
            I,
            *_sizes(weight),
            COLS=32,
            **_constants(weight, 128),
            warps=4,
        )
        own = None if bias is None else bias[first:last].to(x_MI.dtype)
        parts.append(F.linear(x_MI, w_OI, own))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _parts(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    zero = weight.scale if weight.zero is None else weight.zero
    return weight.data.contiguous(), weight.scale.contiguous(), zero.contiguous()


def _sizes(weight: PackedWeight) -> tuple[int, ...]:
    zero_bytes = 0 if weight.zero is None else weight.zero.shape[1]
    groups = weight.scale.shape[1]
    return weight.data.shape[1], groups, weight.group, zero_bytes


def _constants(weight: PackedWeight, depth: int) -> dict[str, Any]:
    grouped = weight.scale.shape[1] > 1
    return {
        "BITS": weight.bits,
        "ZERO": weight.zero is not None,
        "GROUPED": grouped,
        # whether the inputs that a step takes are all of one group
        "ALIKE": not grouped or weight.group % depth == 0,
        "EVEN": weight.size % depth == 0,
        "DEPTH": depth,
        "INTERPRET": INTERPRETED,
    }


@jit
def _product(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    O: tl.tensor,  # noqa: E741
    I: tl.tensor,  # noqa: E741
    row_bytes: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    zero_bytes: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BIAS: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIKE: tl.constexpr,
    EVEN: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    first_row, first_col = place(M, O, ROWS, COLS)
    row, col = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    # Beyond the ends other rows are read again, which needs no mask; they are not stored.
    own_row, own_col = (row % M).to(tl.int64), (col % O).to(tl.int64)
    x_at = x_ptr + (own_row * I)[:, None]
    total = tl.full((ROWS, COLS), 0.0, tl.float32)
    for begin in range(0, I, DEPTH):
        lane = begin + tl.arange(0, DEPTH)[None, :]
        x = tl.load(x_at + lane) if EVEN else tl.load(x_at + lane, mask=lane < I, other=0.0)
        w = _values(
            w_ptr, scale_ptr, zero_ptr, own_col[:, None], begin, I, row_bytes, groups,
            group, zero_bytes, COLS, BITS, ZERO, GROUPED, ALIKE, EVEN, DEPTH,
        )  # fmt: skip
        w = narrow(w, x_ptr.dtype.element_ty, INTERPRET)
        total = dot(x, tl.trans(w), total, INTERPRET)
    if not GROUPED:  # codes are exact in every float type: scaled at the end
        total *= tl.load(scale_ptr + own_col)[None, :]
    if BIAS:
        total += tl.load(bias_ptr + own_col).to(tl.float32)[None, :]
    there = (row < M)[:, None] & (col < O)[None, :]
    made = narrow(total, y_ptr.dtype.element_ty, INTERPRET)
    tl.store(y_ptr + own_row[:, None] * O + own_col[None, :], made, mask=there)


@jit
def _unpack(
    out_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    I: tl.tensor,  # noqa: E741
    row_bytes: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    zero_bytes: tl.tensor,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIKE: tl.constexpr,
    EVEN: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    """Write the values of the rows from ``first`` to ``last``."""
    row = first + tl.program_id(0) * COLS + tl.arange(0, COLS)[:, None]
    own, begin = tl.minimum(row, last - 1).to(tl.int64), tl.program_id(1) * DEPTH
    w = _values(
        w_ptr, scale_ptr, zero_ptr, own, begin, I, row_bytes, groups,
        group, zero_bytes, COLS, BITS, ZERO, GROUPED, ALIKE, EVEN, DEPTH,
    )  # fmt: skip
    if not GROUPED:
        w *= tl.load(scale_ptr + own)
    lane = begin + tl.arange(0, DEPTH)[None, :]
    made = narrow(w, out_ptr.dtype.element_ty, INTERPRET)
    tl.store(out_ptr + (own - first) * I + lane, made, mask=(row < last) & (lane < I))


@jit
def _values(
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    row: tl.tensor,
    begin: tl.tensor,
    limit: tl.tensor,
    row_bytes: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    zero_bytes: tl.tensor,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIKE: tl.constexpr,
    EVEN: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """Return DEPTH weights of the rows ``[COLS, 1]`` as float32, 0 beyond the last; scaled where there
    are groups.
    """
    lane = begin + tl.arange(0, DEPTH)[None, :]
    there = lane < limit
    row_at = row * row_bytes
    if BITS == 8:
        at = w_ptr + row_at + lane
        code = tl.load(at) if EVEN else tl.load(at, mask=there, other=0)
        if not ZERO:  # int8: counted from -128
            code = code.to(tl.uint8, bitcast=True) ^ 0x80
    elif BITS == 4:
        code = nibbles(w_ptr, row_at, begin, limit, EVEN, COLS, DEPTH)
    else:
        code = code_at(w_ptr, row_at, lane, there, BITS)
    if ALIKE:
        own = tl.minimum(begin // group, groups - 1)
    else:
        own = tl.minimum(lane // group, groups - 1)
    if ZERO:
        # one for each row even where it is the same: the interpreter cannot mask by a scalar
        own_zero = tl.broadcast_to(own, row.shape) if ALIKE else own
        zero = code_at(zero_ptr, row * zero_bytes, own_zero, row >= 0, BITS).to(tl.float32)
    else:
        zero = 2 ** (BITS - 1)
    value = exact_float(code) - (zero + 8388608.0)
    if GROUPED:
        value *= tl.load(scale_ptr + row * groups + own)
    return value if EVEN else tl.where(there, value, 0.0)
