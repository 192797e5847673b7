"""Comparison of a cell's per-module SQNR profile with the stored one: where it broke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShift:
    """One module's SQNR in dB, stored and seen; ``None`` where it has none."""

    module: str
    stored: float | None
    seen: float | None

    @property
    def size(self) -> float:
        """Distance in dB; infinite when one side lacks the module."""
        if self.stored is None or self.seen is None:
            return float("inf")
        return abs(self.seen - self.stored)

    def __str__(self) -> str:
        if self.seen is None:
            return f"{self.module}: no longer measured (baseline {self.stored:.1f} dB)"
        if self.stored is None:
            return f"{self.module}: {self.seen:.1f} dB, not in the baseline"
        return f"{self.module}: {self.seen:.1f} dB (baseline {self.stored:.1f})"


@dataclass(frozen=True)
class LayerComparison:
    """Modules outside ``tolerance_db`` in either direction, in forward order, of ``modules`` compared.

    An SQNR that rises counts as well: a module that was left unquantized *improves* it.
    """

    shifts: tuple[LayerShift, ...]
    modules: int
    tolerance_db: float

    @property
    def first(self) -> LayerShift | None:
        """The first module in forward order that left its baseline."""
        return self.shifts[0] if self.shifts else None

    @property
    def worst(self) -> LayerShift | None:
        """The module that moved most; the earlier one of equals."""
        return max(self.shifts, key=lambda shift: shift.size) if self.shifts else None


def compare_layers(
    stored: Mapping[str, float], seen: Mapping[str, float], tolerance_db: float
) -> LayerComparison | None:
    """Compare two profiles; ``None`` when either was not measured.

    Forward order is the order of ``seen``; modules that only the baseline has come last.
    """
    if not stored or not seen:
        return None
    modules = [*seen, *(name for name in stored if name not in seen)]
    shifts = [LayerShift(name, stored.get(name), seen.get(name)) for name in modules]
    outside = tuple(shift for shift in shifts if shift.size > tolerance_db)
    return LayerComparison(outside, len(modules), tolerance_db)
