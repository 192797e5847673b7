"""Per-item answers in few characters, as the baselines store them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence


def pack_bits(values: Sequence[bool]) -> str:
    """One bit per value, most significant bit first, the last byte padded with zeros, in base64."""
    packed = bytearray((len(values) + 7) // 8)
    for index, value in enumerate(values):
        packed[index // 8] |= value << (7 - index % 8)
    return encode(packed)


def unpack_bits(text: str, items: int) -> tuple[bool, ...]:
    """Inverse of ``pack_bits``; ``ValueError`` when the length or the padding does not fit."""
    packed = decode(text, (items + 7) // 8)
    values = tuple(bool(byte >> (7 - bit) & 1) for byte in packed for bit in range(8))
    if any(values[items:]):
        raise ValueError(f"bits beyond the {items} items are set")
    return values[:items]


def item_checks(item_ids: Sequence[str]) -> bytes:
    """One check byte per item. Any prefix can be compared, so item counts may differ."""
    # A model's answer is checked like an id, and may hold half a surrogate pair.
    raw = (item_id.encode("utf-8", "surrogatepass") for item_id in item_ids)
    return bytes(hashlib.sha256(item).digest()[0] for item in raw)


def encode(raw: bytes | bytearray) -> str:
    """Base64 as text."""
    return base64.b64encode(raw).decode()


def decode(text: str, size: int) -> bytes:
    """Inverse of ``encode``; ``ValueError`` when it is not base64 or not ``size`` bytes long."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"not base64: {error}") from error
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes in base64, expected {size} for the cell's items")
    return raw
