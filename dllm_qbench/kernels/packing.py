"""Codes as the bytes that a checkpoint would hold: a dense bit stream, least significant bit first.

Code i of a row takes bits ``i * b`` to ``i * b + b - 1`` of the row's stream, bit k of the stream is
bit ``k % 8`` of byte ``k // 8``, and a code may straddle two bytes. Every row starts at a byte of its
own; the bits behind its last code are 0, and are not looked at on the way back.

Signed codes, those of a symmetric grid, are stored plus 2^(b-1): code 0 is the middle of the stored
range, as in the checkpoints of GPTQ and compressed-tensors. (That range has room for -2^(b-1), which
our symmetric grids do not use.)

Shapes: D codes of b bits each in P = ceil(D b / 8) bytes, ``[..., D] <-> [..., P]``.

>>> pack_codes(torch.tensor([1, 2, 15]), bits=4)  # 0x21, 0x0f
tensor([33, 15], dtype=torch.uint8)
>>> unpack_codes(torch.tensor([33, 15], dtype=torch.uint8), bits=4, size=3)
tensor([ 1,  2, 15], dtype=torch.int32)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FEWEST, _MOST = 2, 8


def packed_width(size: int, bits: int) -> int:
    """Return P, how many bytes ``size`` codes of ``bits`` bits take.

    >>> packed_width(3, bits=4), packed_width(3, bits=8)
    (2, 3)

    Raises:
        ValueError: bits outside 2..8, or a negative size.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not _FEWEST <= bits <= _MOST:
        raise ValueError(
            f"packing: bits must be an integer from {_FEWEST} to {_MOST}, found {bits!r}"
        )
    if size < 0:
        raise ValueError(f"packing: size must be 0 or more codes, found {size}")
    return -(-size * bits // 8)


def pack_codes(codes: Tensor, bits: int, signed: bool = False) -> Tensor:
    """Pack the codes of every row.

    Args:
        codes: integers ``[..., D]``, 0..2^bits - 1; signed -2^(bits-1)..2^(bits-1) - 1.
        bits: 2 to 8 bits a code.
        signed: what :meth:`Grid.codes` returns on a symmetric grid is.

    Returns:
        uint8 ``[..., P]``.

    Raises:
        ValueError: bits outside 2..8, not an integer tensor ``[..., D]``, or a code out of range.
    """
    if not _holds_integers(codes) or codes.dim() == 0:
        raise ValueError(
            f"packing: codes must be an integer tensor [..., D], found {codes.dtype} with shape"
            f" {list(codes.shape)}"
        )
    size = codes.shape[-1]
    width, low = packed_width(size, bits), _lowest(bits, signed)
    high = low + 2**bits - 1
    wide = codes.long()  # an int8 tensor cannot be compared with 255
    outside = (wide < low) | (wide > high)
    if bool(outside.any()):
        where = tuple(int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"packing: {'signed ' if signed else ''}codes of {bits} bits must lie in {low}..{high},"
            f" found {int(wide[where])} at index {where}"
        )
    stored_D = (wide - low).to(torch.uint8)
    stream_Db = (stored_D[..., None] >> _places(bits, codes)) & 1
    stream = F.pad(stream_Db.flatten(-2), (0, 8 * width - size * bits))
    bytes_P8 = stream.reshape(*codes.shape[:-1], width, 8) << _places(8, codes)
    return bytes_P8.sum(-1, dtype=torch.uint8)


def unpack_codes(packed: Tensor, bits: int, size: int, signed: bool = False) -> Tensor:
    """Undo :func:`pack_codes`.

    Args:
        packed: uint8 ``[..., P]``.
        bits, signed: as they were packed.
        size: D, the codes of a row.

    Returns:
        int32 ``[..., D]``.

    Raises:
        ValueError: bits outside 2..8, a negative size, or not a uint8 tensor of the P bytes a row
            that ``size`` codes take.
    """
    width = packed_width(size, bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0 or packed.shape[-1] != width:
        raise ValueError(
            f"packing: {size} codes of {bits} bits are a uint8 tensor [..., {width}], found"
            f" {packed.dtype} with shape {list(packed.shape)}"
        )
    stream_P8 = (packed[..., None] >> _places(8, packed)) & 1
    stream = stream_P8.flatten(-2)[..., : size * bits]
    stored_Db = stream.reshape(*packed.shape[:-1], size, bits) << _places(bits, packed)
    return stored_Db.sum(-1, dtype=torch.int32) + _lowest(bits, signed)


def _lowest(bits: int, signed: bool) -> int:
    return -(2 ** (bits - 1)) if signed else 0


def _places(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)


def _holds_integers(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
