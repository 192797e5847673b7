"""What all generated problems share, and on which side of the split one is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A prompt with its answer; ``near_misses`` are answers that are wrong in one place."""

    kind: str
    key: str
    prompt: str
    answer: str
    near_misses: tuple[str, ...] = ()
    tests: tuple[tuple[int, int], ...] = ()


def held_out(key: str) -> bool:
    """Say whether the problem with this key is on the test side of the split."""
    return hashlib.sha256(key.encode()).digest()[0] % 5 == 0
