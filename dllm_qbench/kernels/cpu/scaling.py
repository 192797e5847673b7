"""Integer sums as the result's values: zero points taken out, scaled, with the bias, in one pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dllm_qbench.kernels.cpu.compiled import compiled
from dllm_qbench.kernels.cpu.unpacking import to_bfloat16

Words = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@compiled
def scale_rows(
    totals: Words,
    outputs: int,
    first: int,
    x_scale: Floats,
    x_zero: Words,
    x_sum: Words,
    w_scale: Floats,
    w_zero: Words,
    w_rest: Words,
    shifted: bool,
    bias: Floats,
    wide: Floats,
    narrow: npt.NDArray[np.uint16],
) -> None:
    """Return ``(total - x_zero w_rest - w_zero x_sum) x_scale w_scale + bias``.

    Args:
        totals: flat ``[M, n]``, for the outputs ``first`` to ``first + n - 1`` of ``outputs``.
        x_scale, x_zero, x_sum: ``[M]``, the sum of each row's integers.
        w_scale, w_zero: ``[n]``; ``w_rest [n]``: the sum of an output's integers less I zero points.
        shifted: whether any zero point is not 0.
        bias: ``[n]``, or of size 0.
        wide, narrow: flat ``[M, outputs]``; the one of a size other than 0 is written, narrow as
            bfloat16.
    """
    n = w_scale.size
    row = np.empty(n, np.float32)
    for m in range(x_scale.size):
        total, place = totals[m * n : (m + 1) * n], m * outputs + first
        if wide.size:
            row = wide[place : place + n]
        scale, zero, sum_ = x_scale[m], x_zero[m], x_sum[m]
        if shifted:
            for o in range(n):
                exact = np.int32(total[o] - zero * w_rest[o] - w_zero[o] * sum_)
                row[o] = np.float32(exact) * scale * w_scale[o]
        else:
            for o in range(n):
                row[o] = np.float32(total[o]) * scale * w_scale[o]
        if bias.size:
            for o in range(n):
                row[o] += bias[o]
        if narrow.size:
            to_bfloat16(row, narrow[place : place + n])
