"""Seeds for independent random draws.

Every draw (masks of an item, noise of a step, a calibration set) has a seed of its own, derived
from the user's seed and from what the draw is for. So no result depends on the order in which
draws are made.
"""

from __future__ import annotations

import hashlib

_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for the draw named by ``parts``; equal arguments give equal seeds.

    >>> derive(0, "masks", 17) == derive(0, "masks", 17) != derive(0, "masks", 18)
    True
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _BITS)
