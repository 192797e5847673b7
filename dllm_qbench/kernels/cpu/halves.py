"""Transform and rounding of bfloat16 rows: widened to float32, worked on and narrowed while in cache.

One compiled call does a thread's whole range. Converting chunks by torch in between takes longer than the
work itself, since threads that come back to Python wait for each other (512 x 4096:
1.8 ms to turn so, 0.6 now; 0.6 in float32).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dllm_qbench.kernels.cpu.compiled import compiled
from dllm_qbench.kernels.cpu.rounding import Bytes, Floats, round_rows
from dllm_qbench.kernels.cpu.turn import aligned_zeros, turn_flat
from dllm_qbench.kernels.cpu.unpacking import Halves, to_bfloat16

Places = npt.NDArray[np.int32]


@compiled
def turn_halves(
    src: Halves,
    dst: Halves,
    size: int,
    rows: int,
    before: Floats,
    after: Floats,
    k: int,
    m: int,
    places: Places,
    paired: bool,
    factor: Any,
    lanes: int,
) -> None:
    """Turn rows of ``size`` values, ``rows`` of them at a time.

    Args:
        src, dst: flat ``[M, I]``, bits of bfloat16.
        before, after: signs ``[I]`` that multiply what goes in and what comes out, or of size 0.
        k, m, places, paired, factor, lanes: as of :class:`dllm_qbench.kernels.cpu.turn.Turn`.
    """
    wide = aligned_zeros(rows * size, after)
    for at in range(0, src.size, rows * size):
        last = min(at + rows * size, src.size)
        own = wide[: last - at]
        _widen(own, src[at:last], before)
        turn_flat(own, own, k, m, places, paired, factor, lanes)
        if after.size:
            _multiply(own, after)
        to_bfloat16(own, dst[at:last])


@compiled
def round_halves(
    src: Halves,
    size: int,
    rows: int,
    before: Floats,
    turned: bool,
    group: int,
    bits: int,
    symmetric: bool,
    clip: Any,
    codes: Bytes,
    scales: Floats,
    zeros: Bytes,
    k: int,
    m: int,
    places: Places,
    paired: bool,
    factor: Any,
    lanes: int,
) -> None:
    """Round rows of ``size`` values, once turned if ``turned``, ``rows`` of them at a time.

    Args:
        src, before: as of :func:`turn_halves`.
        group, bits, symmetric, clip, codes, scales, zeros: as of :func:`round_rows`.
        k, m, places, paired, factor, lanes: as of :class:`dllm_qbench.kernels.cpu.turn.Turn`.
    """
    G, width = (size + group - 1) // group, (size * bits + 7) // 8
    wide = aligned_zeros(rows * size, before)
    M = src.size // size
    for r in range(0, M, rows):
        last = min(r + rows, M)
        own = wide[: (last - r) * size]
        _widen(own, src[r * size : last * size], before)
        if turned:
            turn_flat(own, own, k, m, places, paired, factor, lanes)
        round_rows(
            own,
            own.view(np.int32),
            size,
            group,
            bits,
            symmetric,
            clip,
            codes[r * width : last * width],
            scales[r * G : last * G],
            zeros[r * G : last * G],
        )


@compiled
def _widen(values: Floats, halves: Halves, signs: Floats) -> None:
    """Write bfloat16 values as float32, times signs ``[I]`` where there are any."""
    words = values.view(np.int32)
    for i in range(halves.size):
        words[i] = np.int32(np.uint32(halves[i]) << np.uint32(16))
    if signs.size:
        _multiply(values, signs)


@compiled
def _multiply(values: Floats, signs: Floats) -> None:
    """Multiply rows by ``[I]`` in place."""
    for at in range(0, values.size, signs.size):
        for i in range(signs.size):
            values[at + i] *= signs[i]
