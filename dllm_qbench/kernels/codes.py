"""What kernels hand on: rounded tensors as integer codes with their scales.

Shapes: M tokens, I inputs, O outputs, G = ceil(I / group) groups. A code q of a group with step
``scale`` and zero point ``zero`` stands for ``(q - zero) * scale``; on a symmetric grid zero is 0.

Layouts:
- 8 bits, symmetric: int8; asymmetric: uint8;
- fewer: a dense bit stream, least significant bit first, every row starting at a byte of its own
  (:mod:`dllm_qbench.kernels.packing`). At 4 bits, code 2i is the low half of byte i. Symmetric codes are
  stored plus 2^(b-1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm_qbench.kernels.packing import pack_codes, packed_width, unpack_codes


@dataclass(frozen=True, eq=False)
class Codes:
    """A rounded tensor ``[..., I]``.

    Attributes:
        data: at 8 bits int8 (asymmetric: uint8) ``[..., I]``; below, uint8 ``[..., ceil(I b / 8)]``.
        scale: float32 ``[..., G]``, positive.
        zero: uint8 ``[..., G]``; ``None`` on a symmetric grid.
        bits: of a code.
        size: I.
        group: channels that share a scale; I where each token has one.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    size: int
    group: int

    @property
    def symmetric(self) -> bool:
        """Whether zero points are 0."""
        return self.zero is None

    def integers(self) -> Tensor:
        """Return the codes one by one, ``[..., I]``: int8, or uint8 on an asymmetric grid."""
        if self.bits == 8:
            return self.data
        found = unpack_codes(self.data, self.bits, self.size, signed=self.symmetric)
        return found.to(torch.int8 if self.symmetric else torch.uint8)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values that the codes stand for, ``[..., I]``, computed in float32."""
        wide = self.integers().float()
        if self.zero is not None:
            wide = wide - per_channel(self.zero.float(), self.group, self.size)
        return (wide * per_channel(self.scale, self.group, self.size)).to(dtype)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight ``[O, I]`` as a product reads it.

    Attributes:
        data: at 8 bits int8 (asymmetric: uint8) ``[O, I]``, of any strides: a CPU's product is faster
            on columns that lie together; below, uint8 ``[O, ceil(I b / 8)]``.
        scale: float32 ``[O, G]``.
        zero: packed like codes of ``bits`` bits, uint8 ``[O, ceil(G b / 8)]``; ``None`` on a
            symmetric grid.
        bits, size, group: as of :class:`Codes`.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    size: int
    group: int

    @property
    def symmetric(self) -> bool:
        """Whether zero points are 0."""
        return self.zero is None

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)``."""
        return self.scale.shape[0], self.size

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        parts = (self.data, self.scale, self.zero)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits in memory for each of the ``O * I`` weights, scales and zero points included."""
        return 8 * self.bytes / max(1, self.shape[0] * self.size)

    def zeros(self) -> Tensor | None:
        """Return the zero points one by one, uint8 ``[O, G]``, or ``None``."""
        if self.zero is None:
            return None
        return unpack_codes(self.zero, self.bits, self.scale.shape[1]).to(torch.uint8)

    def codes(self, rows: slice = slice(None)) -> Codes:
        """Return some of the rows as :class:`Codes`."""
        zeros = self.zeros()
        zeros = None if zeros is None else zeros[rows]
        return Codes(self.data[rows], self.scale[rows], zeros, self.bits, self.size, self.group)

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> Tensor:
        """Return the values of some of the rows, ``[O, I]``."""
        return self.codes(rows).dequantize(dtype)

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return it on a device, laid out as that device's products read it."""
        data, zero = self.data.to(device), None if self.zero is None else self.zero.to(device)
        data = laid_out(data) if self.bits == 8 else data
        return replace(self, data=data, scale=self.scale.to(device), zero=zero)


def pack_weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int | None = None
) -> PackedWeight:
    """Pack a weight's codes for :func:`dllm_qbench.kernels.linear` and ``linear_quantized``.

    Args:
        codes: integers ``[O, I]``: 0..2^bits - 1; on a symmetric grid -2^(bits-1)..2^(bits-1) - 1.
        scale: ``[O, G]``.
        zero: integers ``[O, G]``, 0..2^bits - 1; ``None`` says that the grid is symmetric.
        bits: 2 to 8.
        group: weights of a row that share a scale; ``None``: all of them.

    Raises:
        ValueError: shapes that do not fit, bits outside 2..8, a code or a zero point out of range.
    """
    if codes.dim() != 2:
        raise ValueError(f"pack_weight: codes must be [O, I], found {list(codes.shape)}")
    O, I = codes.shape  # noqa: E741 (the legend's names)
    group = max(1, I if group is None else min(group, I))
    expected = [O, -(-I // group)]
    for name, part in (("scale", scale), ("zero", zero)):
        if part is not None and list(part.shape) != expected:
            raise ValueError(
                f"pack_weight: {name} of codes {[O, I]} in groups of {group} must be {expected},"
                f" found {list(part.shape)}"
            )
    packed_width(I, bits)  # refuses bits
    signed = zero is None
    packed = pack_codes(codes, bits, signed)
    if bits == 8:
        packed = laid_out((packed ^ 0x80).view(torch.int8) if signed else packed)
    zeros = None if zero is None else pack_codes(zero, bits)
    return PackedWeight(packed, scale.detach().float(), zeros, bits, I, group)


def laid_out(codes_OI: Tensor) -> Tensor:
    """Lay out codes of 8 bits as products on their device read them: the outputs of an input side by
    side on a CPU, the inputs of an output elsewhere.
    """
    if codes_OI.device.type == "cpu":
        return codes_OI.T.contiguous().T
    return codes_OI.contiguous()


def per_channel(per_group: Tensor, group: int, size: int) -> Tensor:
    """Give every channel what its group has: ``[..., G] -> [..., I]``."""
    if per_group.shape[-1] == 1:
        return per_group
    return per_group.repeat_interleave(group, dim=-1)[..., :size]
