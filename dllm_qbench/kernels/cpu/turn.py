"""Hadamard transforms of flat float arrays, a piece that stays in cache at a time.

Legend: H of order n = P m with P = 2^k; L lanes of a register; R rows of m numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dllm_qbench.kernels.cpu.compiled import compiled
from dllm_qbench.kernels.cpu.registers import LANES
from dllm_qbench.kernels.cpu.vectors import (
    across,
    ask,
    columns,
    looked_up,
    pairs,
    rows,
    signed_sums,
    within,
)
from dllm_qbench.kernels.orders import base_matrix
from dllm_qbench.kernels.reference import block_hadamard

Floats = npt.NDArray[Any]
_NEAR = 8  # stages that are done on 256 neighbours in registers
_LINE = 64  # bytes
_ROWS = 64  # rows of m numbers that are turned together at least


@dataclass(frozen=True, eq=False)
class Turn:
    """A transform of every ``n`` neighbours of a flat array.

    Attributes:
        k, m: n = 2^k m.
        places: where the sums of m's base are in a table of them; see :func:`_looked_up_places`.
        paired: whether the base is of Paley's second kind.
        factor: n^-0.5.
        lanes: L of the data type.
    """

    k: int
    m: int
    places: npt.NDArray[np.int32]
    paired: bool
    factor: Any
    lanes: int

    @property
    def arguments(self) -> tuple[int, int, npt.NDArray[np.int32], bool, Any, int]:
        """What :func:`turn_flat` takes after its arrays."""
        return self.k, self.m, self.places, self.paired, self.factor, self.lanes

    def __call__(self, src: Floats, dst: Floats) -> None:
        """Turn ``src`` into ``dst``, flat arrays of a size that n divides; they may be the same."""
        if self.m == 1:  # asked here too: what is not needed is not compiled
            turn_power(dst, src, self.k, self.factor, self.lanes)
        else:
            _turn_paley(dst, src, self.m, self.k, self.places, self.paired, self.factor, self.lanes)


@cache
def turn_of(width: int, inverse: bool, dtype: torch.dtype) -> Turn:
    """Return the transform of a width, in blocks where it is no known order."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    _, power, m = block_hadamard(width)
    lanes = LANES[dtype.itemsize]
    places, paired = np.zeros(0, np.int32), False
    if m > 1:
        base = base_matrix(m).T if inverse else base_matrix(m)
        half = (base[::2, ::2] + base[::2, 1::2]) // 2
        block, diagonal = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        paired = np.array_equal(
            base, np.kron(half, block) + np.kron(np.eye(m // 2, dtype=np.int8), diagonal)
        )
        own = half + np.eye(m // 2, dtype=np.int8) if paired else base
        places = _looked_up_places(own, lanes)
    return Turn(power.bit_length() - 1, m, places, paired, kind((power * m) ** -0.5), lanes)


def _looked_up_places(base: npt.NDArray[Any], lanes: int) -> npt.NDArray[np.int32]:
    """Say for each output and each four inputs which of their 16 signed sums it adds.

    Returns:
        Offsets into a table ``[groups, 16, L]``, flattened from ``[outputs / 4, groups, 4]``. Sizes
        that 4 does not divide are filled up: inputs of 0, outputs that nobody reads.
    """
    size = -(-len(base) // 4) * 4
    signs = np.ones((size, size), np.int64)
    signs[: len(base), : len(base)] = base
    negative = (signs < 0).reshape(size, size // 4, 4) @ np.array([1, 2, 4, 8])
    offsets = (np.arange(size // 4) * 16 + negative) * lanes
    by_group: npt.NDArray[np.int32] = (
        offsets.reshape(size // 4, 4, size // 4).transpose(0, 2, 1).astype(np.int32)
    )
    return by_group.ravel()


@compiled
def _near(
    dst: Floats, d: int, src: Floats, s: int, count: int, bits: int, factor: Any, lanes: int
) -> None:
    """Do the first ``bits`` stages on ``count`` numbers and multiply by ``factor``."""
    for i in range(0, count, max(lanes, 1 << bits)):
        if bits == 0:
            within(dst, d + i, src, s + i, factor, 0)
        elif bits == 1:
            within(dst, d + i, src, s + i, factor, 1)
        elif bits == 2:
            within(dst, d + i, src, s + i, factor, 2)
        elif bits == 3:
            within(dst, d + i, src, s + i, factor, 3)
        elif bits == 4:
            within(dst, d + i, src, s + i, factor, 4)
        elif bits == 5:
            within(dst, d + i, src, s + i, factor, 5)
        elif bits == 6:
            within(dst, d + i, src, s + i, factor, 6)
        elif bits == 7:
            within(dst, d + i, src, s + i, factor, 7)
        else:
            within(dst, d + i, src, s + i, factor, 8)


@compiled
def _row(
    dst: Floats, d: int, src: Floats, s: int, count: int, k: int, factor: Any, lanes: int
) -> None:
    """Turn every 2^k of ``count`` numbers: small distances first, then 16 times as far a pass."""
    one = dst.dtype.type(1)
    done = min(k, _NEAR)
    _near(dst, d, src, s, count, done, factor if done == k else one, lanes)
    while done < k:
        bits, step = min(k - done, 4), 1 << done
        done += bits
        own = factor if done == k else one
        for block in range(d, d + count, step << bits):
            for i in range(block, block + step, lanes):
                if bits == 4:
                    across(dst, i, step, own, 4)
                elif bits == 3:
                    across(dst, i, step, own, 3)
                elif bits == 2:
                    across(dst, i, step, own, 2)
                else:
                    across(dst, i, step, own, 1)


@compiled
def turn_flat(
    dst: Floats,
    src: Floats,
    k: int,
    m: int,
    places: npt.NDArray[np.int32],
    paired: bool,
    factor: Any,
    lanes: int,
) -> None:
    """Turn every 2^k m neighbours of ``src``, whose size that divides; ``dst`` may be ``src``.

    Args:
        k, m, places, paired, factor, lanes: as of :class:`Turn`.
    """
    if m == 1:
        turn_power(dst, src, k, factor, lanes)
    else:
        _turn_paley(dst, src, m, k, places, paired, factor, lanes)


@compiled
def turn_power(dst: Floats, src: Floats, k: int, factor: Any, lanes: int) -> None:
    """Turn every 2^k neighbours of ``src``, whose size that divides, and multiply by ``factor``."""
    size = dst.size
    if k > _NEAR:
        for at in range(0, size, 1 << k):
            _row(dst, at, src, at, 1 << k, k, factor, lanes)
        return
    unit = max(lanes, 1 << k)
    whole = size // unit * unit
    _row(dst, 0, src, 0, whole, k, factor, lanes)
    if whole < size:
        rest = np.zeros(unit, dst.dtype)
        rest[: size - whole] = src[whole:]
        _row(rest, 0, rest, 0, unit, k, factor, lanes)
        dst[whole:] = rest[: size - whole]


@compiled
def _turn_paley(
    dst: Floats,
    src: Floats,
    m: int,
    k: int,
    places: npt.NDArray[np.int32],
    paired: bool,
    factor: Any,
    lanes: int,
) -> None:
    """Turn rows of m numbers by the base, then every 2^k of them by butterflies.

    The rows of a piece are held side by side, ``[m, R]``: a register holds one place of L rows.
    """
    R, size = max(1 << k, _ROWS), lanes * m
    stride = R + lanes  # not a power of two: its rows would share few sets of a cache
    turned = aligned_zeros((m + 4) * stride, dst)
    block, inputs = aligned_zeros(size, dst), aligned_zeros(size + 4 * lanes, dst)
    sums, differences = aligned_zeros(inputs.size, dst), aligned_zeros(inputs.size, dst)
    table = aligned_zeros(inputs.size * 4, dst)
    for at in range(0, dst.size, R * m):
        count = min(R, (dst.size - at) // m)
        # Through a block of L rows, for memory is read and written fastest from end to end.
        for r in range(0, count, lanes):
            first, last = at + r * m, at + min(r + lanes, count) * m
            _copy(block, src[first:last])
            for j in range(0, m, 4):
                columns(inputs, j * lanes, lanes, block, j, m)
            near = (src, last, dst, first)
            _base(
                turned, r, stride, inputs, sums, differences, table, m, places, paired, near, lanes
            )
        for j in range(m):
            _row(turned, j * stride, turned, j * stride, R, k, factor, lanes)
        for r in range(0, count, lanes):
            first, last = at + r * m, at + min(r + lanes, count) * m
            for j in range(0, m, 4):
                rows(block, j, m, turned, j * stride + r, stride)
            _copy(dst[first:last], block)


@compiled
def _copy(dst: Floats, src: Floats) -> None:
    for i in range(min(dst.size, src.size)):
        dst[i] = src[i]


@compiled
def aligned_zeros(size: int, like: Floats) -> Floats:
    """Return zeros at an address that a cache line starts at: a register then is one line."""
    whole = np.zeros(size + _LINE, like.dtype)
    first = -whole.ctypes.data % _LINE // whole.itemsize
    return whole[first : first + size]


@compiled
def _base(
    turned: Floats,
    r: int,
    stride: int,
    inputs: Floats,
    sums: Floats,
    differences: Floats,
    table: Floats,
    m: int,
    places: npt.NDArray[np.int32],
    paired: bool,
    near: tuple[Floats, int, Floats, int],
    lanes: int,
) -> None:
    """Multiply L rows by the base, four inputs at a time: 16 sums of them serve every output.

    Paley's second kind is C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]. With u = x0 + x1 and
    v = x0 - x1 that is C u + v and C v - u; with 1 on the diagonal of C, which has a 0 there, it is
    (C + I) u - 2 x1 and (C + I) v - 2 x0: half of the work.

    Meanwhile the rows of ``near``'s first array that come next are fetched, and the lines of its
    second that these rows will be written to: there are four for every four outputs.
    """
    src, s, dst, d = near
    one = turned.dtype.type(1)
    if not paired:
        groups = m // 4
        for g in range(groups):
            signed_sums(table, g * 16 * lanes, inputs, 4 * g * lanes, lanes)
        for q in range(groups):
            ask(src, s + 4 * q * lanes, dst, d + 4 * q * lanes)
            looked_up(
                turned,
                4 * q * stride + r,
                stride,
                sums,  # zeros
                0,
                0,
                one,
                table,
                places,
                4 * q * groups,
                groups,
            )
        return
    for j in range(m // 2):
        pairs(sums, differences, j * lanes, inputs, 2 * j * lanes)
    groups = (m // 2 + 3) // 4
    for side in range(2):
        taken = sums if side == 0 else differences
        for g in range(groups):
            signed_sums(table, g * 16 * lanes, taken, 4 * g * lanes, lanes)
        for q in range(groups):
            ask(src, s + (8 * q + 4 * side) * lanes, dst, d + (8 * q + 4 * side) * lanes)
            looked_up(
                turned,
                (8 * q + side) * stride + r,
                2 * stride,
                inputs,
                (8 * q + 1 - side) * lanes,
                2 * lanes,
                -(one + one),
                table,
                places,
                4 * q * groups,
                groups,
            )
