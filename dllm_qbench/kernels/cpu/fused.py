"""Transform and rounding of a row while it is in the level-1 cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from dllm_qbench.kernels.cpu.compiled import compiled
from dllm_qbench.kernels.cpu.rounding import Bytes, Floats, round_rows
from dllm_qbench.kernels.cpu.turn import aligned_zeros, turn_power

AT_ONCE = 4096  # elements: 16 KiB of float32, half of a level-1 cache


@compiled
def turn_and_round(
    x: Floats,
    size: int,
    k: int,
    factor: Any,
    lanes: int,
    bits: int,
    ratio: Any,
    codes: Bytes,
    scales: Floats,
) -> None:
    """Turn every 2^k neighbours of rows of ``size`` values, and round each on a symmetric grid.

    Args:
        x: flat ``[M, I]``.
        k, factor, lanes: as of :class:`dllm_qbench.kernels.cpu.turn.Turn`.
        bits, ratio, codes, scales: as of :func:`round_rows`.
    """
    rows, width, M = max(1, AT_ONCE // size), (size * bits + 7) // 8, scales.size
    turned, zeros = aligned_zeros(rows * size, x), np.empty(0, np.uint8)
    for m in range(0, M, rows):
        last = min(m + rows, M)
        own = turned[: (last - m) * size]
        turn_power(own, x[m * size : last * size], k, factor, lanes)
        round_rows(
            own,
            own.view(np.int32),
            size,
            size,
            bits,
            True,
            ratio,
            codes[m * width : last * width],
            scales[m:last],
            zeros,
        )
