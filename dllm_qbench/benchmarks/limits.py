"""What the machine can do at most: bytes copied and operations multiplied a second, measured here and now.

A roofline has two kinds of roofs: no kernel moves bytes faster than a copy does, and none multiplies
faster than the best matrix product of its type. Both are the best of a few tries, because a limit is
what is possible and not what is usual. Nothing here is timed in turn with a kernel; ratios to a copy
in a benchmark's own rounds are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

CACHED_BYTES: Final = 2**24
"""Data up to this size may stay in a cache from one call to the next."""
_TRIES: Final = 5
_TRY_S: Final = 0.3
"""Tries go on for so long: on a busy machine the first few of a short copy are all disturbed."""
_SIDES: Final = (1024, 1536)
_GPU_SIDES: Final = (4096, 8192)


@dataclass(frozen=True)
class Roofs:
    """Measured limits.

    Attributes:
        cached: bytes read and written a second by a copy of data that fits a cache.
        memory: the same for data that does not.
        operations: of each data type's best matrix product, a second; an addition and a
            multiplication are two.
    """

    cached: float
    memory: float
    operations: Mapping[str, float]

    def bandwidth(self, moved: int) -> float:
        """Bytes a second for a kernel that moves so many."""
        return self.cached if moved <= CACHED_BYTES else self.memory

    def seconds(self, moved: int, operations: int, dtype: str) -> float:
        """The least time that a kernel can take which moves and multiplies so much."""
        by_copy = moved / self.bandwidth(moved)
        peak = self.operations.get(dtype)
        return by_copy if peak is None else max(by_copy, operations / peak)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cached": self.cached,
            "memory": self.memory,
            "operations": dict(self.operations),
        }


def measure_roofs(device: str) -> Roofs:
    """Measure both copies on a device, in about a second; brings torch."""
    wait = _wait(device)
    sizes = (CACHED_BYTES // 4, 2**30 if device.startswith("cuda") else 2**28)
    cached, memory = (_copy(size, device, wait) for size in sizes)
    return Roofs(max(cached, memory), memory, {})


def with_peak(roofs: Roofs, kind: str, device: str) -> Roofs:
    """Return the roofs with the best matrix product of a data type measured too, if it was not."""
    if kind in roofs.operations:
        return roofs
    sides = _GPU_SIDES if device.startswith("cuda") else _SIDES
    rate = _product(kind, device, sides, _wait(device))
    return roofs if rate is None else replace(roofs, operations={**roofs.operations, kind: rate})


def _wait(device: str) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def _copy(size: int, device: str, wait: Callable[[], object]) -> float:
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best(lambda: target.copy_(source), wait)


def _product(
    kind: str, device: str, sides: tuple[int, ...], wait: Callable[[], object]
) -> float | None:
    """Return operations a second of the best square product, ``None`` where there is none."""
    import torch

    dtype: torch.dtype = getattr(torch, kind)
    rates = []
    for side in sides:
        a = torch.ones(side, side, device=device).to(dtype)
        b = a.T.contiguous().T if device.startswith("cuda") else a
        multiply = partial(torch._int_mm if dtype == torch.int8 else torch.mm, a, b)
        try:
            rates.append(2 * side**3 / _best(multiply, wait))
        except (RuntimeError, NotImplementedError):
            return None
    return max(rates)


def _best(call: Callable[[], object], wait: Callable[[], object]) -> float:
    found: list[float] = []
    call()
    while len(found) < _TRIES or sum(found) < _TRY_S:
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)
