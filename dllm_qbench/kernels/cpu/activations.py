"""Transform and rounding of activations, chunk by chunk of rows that stay in cache.

Shapes: M tokens of I channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dllm_qbench.kernels.codes import Codes
from dllm_qbench.kernels.cpu.fused import AT_ONCE, turn_and_round
from dllm_qbench.kernels.cpu.halves import round_halves, turn_halves
from dllm_qbench.kernels.cpu.rounding import round_rows
from dllm_qbench.kernels.cpu.rows import empty, flat, on_cpu, rows_at_once, scratch
from dllm_qbench.kernels.cpu.threads import in_ranges
from dllm_qbench.kernels.cpu.turn import Turn, turn_of
from dllm_qbench.kernels.packing import packed_width


def hadamard(x: Tensor, width: int, signs: Tensor | None, inverse: bool) -> Tensor:
    """Turn every ``width`` neighbours, or back."""
    on_cpu(x, "hadamard")
    if x.numel() == 0:
        return x.clone()
    I = x.shape[-1]  # noqa: E741 (the legend's name)
    x_MI = x.detach().reshape(-1, I)
    made_MI = empty((len(x_MI), I), x.dtype)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    turn = turn_of(width, inverse, dtype)
    before, after = (None, signs) if inverse else (signs, None)
    if x.dtype == torch.bfloat16:
        _turned_halves(x_MI, made_MI, turn, before, after)
        return made_MI.view(x.shape)
    plain = x.dtype == dtype and x_MI.is_contiguous() and before is None

    def work(start: int, stop: int) -> None:
        step = stop - start if plain and after is None else rows_at_once(I)
        wide = None if x.dtype == dtype else scratch((min(step, stop - start), I), dtype)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out = made_MI[first:last]
            own = out if wide is None else wide[: last - first]
            if plain:
                turn(flat(x_MI[first:last]), flat(own))
            else:
                _turn_into(own, x_MI[first:last], before, turn)
            if after is not None:
                own.mul_(after)
            if wide is not None:
                out.copy_(own)

    in_ranges(len(x_MI), I, work)
    return made_MI.view(x.shape)


def _turned_halves(
    x_MI: Tensor, made_MI: Tensor, turn: Turn, before: Tensor | None, after: Tensor | None
) -> None:
    """Turn bfloat16 rows; signs multiply them before or after."""
    I = x_MI.shape[1]  # noqa: E741 (the legend's name)
    src, dst = _bits(x_MI), _bits(made_MI)
    near, far = _signs(before), _signs(after)

    def work(start: int, stop: int) -> None:
        own = slice(start * I, stop * I)
        turn_halves(src[own], dst[own], I, _rows(turn, I), near, far, *turn.arguments)

    in_ranges(len(x_MI), I, work)


def rotate_quantize(x: Tensor, width: int, signs: Tensor | None, bits: int, clip: float) -> Codes:
    """Turn, then round per token."""
    return _rounded(x, x.shape[-1], bits, True, clip, width, signs)


def quantize(x: Tensor, bits: int, group: int, symmetric: bool, clip: float) -> Codes:
    """Round per group."""
    return _rounded(x, group, bits, symmetric, clip, None, None)


def _rounded(
    x: Tensor,
    group: int,
    bits: int,
    symmetric: bool,
    clip: float,
    width: int | None,
    signs: Tensor | None,
) -> Codes:
    """Round ``x``, or with a width what it is turned into."""
    on_cpu(x.detach(), "rotate_quantize" if width else "quantize")
    I, lead, group = x.shape[-1], x.shape[:-1], max(1, group)  # noqa: E741 (the legend's name)
    M, G = lead.numel(), -(-I // group)
    width_of_codes = packed_width(I, bits)
    codes = empty((M, width_of_codes), torch.uint8)
    scale, zero = torch.empty(M, G), torch.empty(M, 0 if symmetric else G, dtype=torch.uint8)
    ratio = np.float32(clip / (2 ** (bits - 1) - 1) if symmetric else clip)
    flat_codes, flat_scale, flat_zero = flat(codes), flat(scale), flat(zero)

    def round_into(values: npt.NDArray[np.float32], first: int, last: int) -> None:
        round_rows(
            values,
            values.view(np.int32),
            I,
            group,
            bits,
            symmetric,
            ratio,
            flat_codes[first * width_of_codes : last * width_of_codes],
            flat_scale[first * G : last * G],
            flat_zero[first * G : last * G],
        )

    def work(start: int, stop: int) -> None:
        if plain and turn is None:
            round_into(flat_x[start * I : stop * I], start, stop)
            return
        if plain and turn is not None and turn.m == 1:
            turn_and_round(
                flat_x[start * I : stop * I],
                I,
                turn.k,
                turn.factor,
                turn.lanes,
                bits,
                ratio,
                flat_codes[start * width_of_codes : stop * width_of_codes],
                flat_scale[start:stop],
            )
            return
        step = min(rows_at_once(I), stop - start)
        turned = scratch((step, I), torch.float32)
        values = flat(turned)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            own = values[: (last - first) * I]
            if plain and turn is not None:
                turn(flat_x[first * I : last * I], own)
            else:
                _turn_into(turned[: last - first], x_MI[first:last], signs, turn)
            round_into(own, first, last)

    def work_on_halves(start: int, stop: int) -> None:
        round_halves(
            halves[start * I : stop * I],
            I,
            _rows(turn, I),
            near,
            turn is not None,
            group,
            bits,
            symmetric,
            ratio,
            flat_codes[start * width_of_codes : stop * width_of_codes],
            flat_scale[start * G : stop * G],
            flat_zero[start * G : stop * G],
            *arguments,
        )

    if x.numel():
        x_MI = x.detach().reshape(M, I)
        turn = None if width is None else turn_of(width, False, torch.float32)
        plain = x.dtype == torch.float32 and x_MI.is_contiguous() and signs is None
        flat_x = flat(x_MI) if plain else flat(torch.empty(0))
        if x.dtype == torch.bfloat16:
            halves, near = _bits(x_MI), _signs(signs)
            arguments = (turn or turn_of(1, False, torch.float32)).arguments
            in_ranges(M, I, work_on_halves)
        else:
            in_ranges(M, I, work)
    data = codes.view(torch.int8) if bits == 8 and symmetric else codes
    return Codes(
        data.view(*lead, width_of_codes),
        scale.view(*lead, G),
        None if symmetric else zero.view(*lead, G),
        bits,
        I,
        group,
    )


def _bits(x: Tensor) -> npt.NDArray[np.uint16]:
    """Return the memory of bfloat16 values, a copy where they are not in order."""
    return flat(x.contiguous().view(torch.uint16))


def _signs(signs: Tensor | None) -> npt.NDArray[np.float32]:
    """Return signs as kernels take them: float32, none where there are none."""
    return flat(torch.empty(0) if signs is None else signs.detach().float().contiguous())


def _rows(turn: Turn | None, size: int) -> int:
    """Return how many rows of bfloat16 are widened at a time: a transform of any m wants more of them."""
    return rows_at_once(size) if turn is not None and turn.m > 1 else max(1, AT_ONCE // size)


def _turn_into(own: Tensor, x: Tensor, signs: Tensor | None, turn: Turn | None) -> None:
    """Convert rows to the data type of ``own``, multiply by signs, and turn them there."""
    if signs is None:
        own.copy_(x)
    else:
        torch.mul(x.to(own.dtype), signs.to(own.dtype), out=own)
    if turn is not None:
        turn(flat(own), flat(own))
