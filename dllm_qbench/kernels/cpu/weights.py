"""Packed weights and codes as a product takes them, tile by tile: values, or int8.

Shapes: M tokens, I inputs, O outputs, n of them in a tile, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_qbench.kernels.codes import Codes, PackedWeight
from dllm_qbench.kernels.cpu.rows import empty, flat, targets
from dllm_qbench.kernels.cpu.threads import in_ranges
from dllm_qbench.kernels.cpu.unpacking import expand_rows, values_of_columns, values_of_rows

_WEIGHTS = 2**22  # that are unpacked at a time


class Tiles:
    """The columns ``[I, n]`` of a weight's transpose, unpacked into memory that is used again.

    Attributes:
        step: the most outputs of a tile; all of them where nothing is unpacked.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        """Say what to unpack to: float32, bfloat16, or int8 (:meth:`integers`)."""
        O, I = weight.shape  # noqa: E741 (the legend's names)
        self._weight, self._dtype = weight, dtype
        self._by_column = weight.bits == 8 and weight.data.T.is_contiguous()
        stored = dtype == torch.int8 and weight.bits == 8 and weight.symmetric
        self.step = O if stored else max(1, min(O, _WEIGHTS // max(1, I)))
        self._memory = empty((0 if stored else self.step * I,), dtype)
        if dtype != torch.int8:
            zeros = zeros_of(weight)
            self._flip, self._zeros = _origin(weight.bits, zeros, weight.scale)
            self._scale = weight.scale.contiguous()
            if self._by_column:
                self._scale, self._zeros = self._scale.T.contiguous(), self._zeros.T.contiguous()

    def values(self, outputs: slice) -> Tensor:
        """Return the values of some outputs."""
        weight, n = self._weight, outputs.stop - outputs.start
        I = weight.size  # noqa: E741 (the legend's name)
        made = (
            self._memory[: n * I].view(I, n)
            if self._by_column
            else self._memory[: n * I].view(n, I)
        )
        if not self._by_column:
            data = weight.data[outputs].contiguous()
            scale, zeros = self._scale[outputs], self._zeros[outputs]
            _values(made, data, weight.bits, self._flip, weight.group, scale, zeros)
            return made.T
        data = weight.data.T.view(torch.uint8)

        def work(start: int, stop: int) -> None:
            wide, narrow = targets(made[start:stop])
            values_of_columns(
                flat(data[start:stop]),
                len(weight.scale),
                self._flip,
                outputs.start,
                outputs.stop,
                start,
                weight.group,
                flat(self._scale),
                flat(self._zeros),
                wide,
                narrow,
            )

        in_ranges(I, n, work)
        return made

    def integers(self, outputs: slice) -> Tensor:
        """Return the integers of some outputs, less 128 where they are unsigned of 8 bits."""
        weight, n = self._weight, outputs.stop - outputs.start
        I = weight.size  # noqa: E741 (the legend's name)
        if weight.bits == 8 and weight.symmetric:
            return weight.data.T[:, outputs]
        if weight.bits == 8:
            made = self._memory[: n * I].view(I, n)
            torch.bitwise_xor(weight.data.T[:, outputs], 128, out=made.view(torch.uint8))
            return made
        made = self._memory[: n * I].view(n, I)
        expand(weight.data[outputs].contiguous(), weight.bits, weight.symmetric, made)
        return made.T


def dequantized(codes: Codes, dtype: torch.dtype) -> Tensor:
    """Return the values that codes stand for, float32 or bfloat16 ``[M, I]``."""
    G = codes.scale.shape[-1]
    made_MI = torch.empty(codes.scale.numel() // G, codes.size, dtype=dtype)
    scale_MG = codes.scale.reshape(-1, G)
    zero_MG = None if codes.zero is None else codes.zero.reshape(-1, G)
    flip, zeros_MG = _origin(codes.bits, zero_MG, scale_MG)
    data = codes.data.reshape(len(made_MI), -1).contiguous()
    _values(made_MI, data, codes.bits, flip, codes.group, scale_MG.contiguous(), zeros_MG)
    return made_MI


def zeros_of(weight: PackedWeight) -> Tensor | None:
    """Return what ``weight.zeros()`` does, by a kernel."""
    if weight.zero is None or weight.bits == 8:
        return weight.zero
    made = torch.empty(weight.scale.shape, dtype=torch.uint8)
    expand(weight.zero.contiguous(), weight.bits, False, made)
    return made


def expand(packed: Tensor, bits: int, symmetric: bool, made: Tensor) -> None:
    """Unpack codes of fewer than 8 bits as bytes ``[R, I]``; less 2^(b-1) on a symmetric grid."""
    minus, size = 1 << (bits - 1) if symmetric else 0, made.shape[1]
    codes = made.view(torch.uint8)

    def work(start: int, stop: int) -> None:
        expand_rows(flat(packed[start:stop]), size, bits, minus, flat(codes[start:stop]))

    in_ranges(len(made), size, work)


def _values(
    made: Tensor, data: Tensor, bits: int, flip: int, group: int, scale: Tensor, zeros: Tensor
) -> None:
    stored, size = data.view(torch.uint8), made.shape[1]

    def work(start: int, stop: int) -> None:
        own = slice(start, stop)
        wide, narrow = targets(made[own])
        values_of_rows(
            flat(stored[own]),
            size,
            bits,
            flip,
            group,
            flat(scale[own]),
            flat(zeros[own]),
            wide,
            narrow,
        )

    in_ranges(len(made), size, work)


def _origin(bits: int, zeros: Tensor | None, scale: Tensor) -> tuple[int, Tensor]:
    """Return which bits of a stored code to turn so that it is 0..2^b - 1, and the zero points then."""
    if zeros is not None:
        return 0, zeros.float().contiguous()
    return 128 if bits == 8 else 0, torch.full(scale.shape, float(1 << (bits - 1)))
