"""Which module a failing cell's error comes from: two SQNR profiles against the stored ones.

The two profiles (``quant/layer_error.py``) answer different questions. The *local* one feeds every
linear with full precision's inputs: a fault inside a linear moves that linear's entry and, after it
and only after it, a little of those that were calibrated on what it put out. The *accumulated* one
follows the quantized model from its ids on, with taps between the linears as well: it also moves where
no linear is at fault (a norm's gain, a rotation of queries and keys, the attention mask, embeddings).

So the module named is the earliest that left its baseline, by its own error where that explains what
is seen and by the accumulated one where nothing before it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

# Of the tolerance: below it, but the error may grow past the tolerance only further down (softmax,
# a sum over channels). Looked at only where no own error left the tolerance first.
_NEAR: Final = 0.5
_MOST_CONTRIBUTORS: Final = 3

By = Literal["own error", "accumulated error", "nothing"]


@dataclass(frozen=True)
class Contributor:
    """A module's part in the change.

    Attributes:
        module: full name.
        share: of all modules' change in relative error power (noise over signal), 0..1.
        stored, seen: SQNR in dB, in the baseline and now.
    """

    module: str
    share: float
    stored: float
    seen: float

    def __str__(self) -> str:
        moved = f"{self.seen:.1f} dB (baseline {self.stored:.1f})"
        return f"{self.module}: {moved}, {100 * self.share:.0f} % of the change"


@dataclass(frozen=True)
class Localisation:
    """Where a cell's error comes from.

    Attributes:
        first: full name of the module named as the origin; ``None`` where nothing moved or nothing
            was measured.
        contributors: up to three modules whose own error left the tolerance, the largest share first;
            by the accumulated error where own errors were not measured. Shares are of relative
            error power, each against its module's own signal: how wrong a module's output is, not
            what that does to the logits.
        by: which profile named ``first``.
        why: one sentence for a maintainer.
    """

    first: str | None
    contributors: tuple[Contributor, ...]
    by: By
    why: str


def locate(
    stored_layer: Mapping[str, float],
    seen_layer: Mapping[str, float],
    stored_local: Mapping[str, float],
    seen_local: Mapping[str, float],
    tolerance_db: float,
    local_tolerance_db: float | None = None,
) -> Localisation:
    """Name the module in which an error starts, and those that make up most of it.

    Args:
        stored_layer, seen_layer: accumulated SQNR in dB by tap, in the baseline and now; in forward
            order now. Taps of only one of the two are not compared; empty: not measured.
        stored_local, seen_local: the same of each linear alone.
        tolerance_db: what a module may move in either direction. An error that shrinks counts as
            well: a linear that was left unquantized.
        local_tolerance_db: the same for the linears alone; by default ``tolerance_db``.
    """
    layer = _shifts(stored_layer, seen_layer)
    local = _shifts(stored_local, seen_local)
    if not layer and not local:
        return Localisation(None, (), "nothing", "no SQNR profile to compare with a baseline's")
    order = list(dict.fromkeys([*seen_layer, *seen_local]))
    place = {name: index for index, name in enumerate(order)}

    own_db = tolerance_db if local_tolerance_db is None else local_tolerance_db
    own = _earliest(local, place, own_db)
    total = _earliest(layer, place, tolerance_db)
    if own is None and total is None:
        why = f"every module's SQNR is within {tolerance_db:g} dB of the baseline's"
        return Localisation(None, (), "nothing", why)
    if total is not None and (own is None or place[total] < place[own]):
        near = _earliest(local, place, _NEAR * own_db)
        own = near if near is not None and place[near] <= place[total] else None

    # The accumulated profile counts an error again at every module behind it: second choice.
    parts = contributors(local, own_db) if local else contributors(layer, tolerance_db)
    if own is not None:
        why = f"fed with full precision's inputs it is at {_moved(stored_local, seen_local, own)}"
        why += _before(order, own, layer, tolerance_db)
        return Localisation(own, parts, "own error", why)
    assert total is not None
    why = f"what reaches it is at {_moved(stored_layer, seen_layer, total)}"
    if local:
        why += f"; no linear up to it errs more on its own{_after(order, total)}"
    return Localisation(total, parts, "accumulated error", why)


def _shifts(
    stored: Mapping[str, float], seen: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return (stored, seen) of what both have, in the order seen."""
    return {name: (stored[name], value) for name, value in seen.items() if name in stored}


def _earliest(
    shifts: Mapping[str, tuple[float, float]], place: Mapping[str, int], least: float
) -> str | None:
    outside = [name for name, (stored, seen) in shifts.items() if abs(seen - stored) > least]
    return min(outside, key=place.__getitem__, default=None)


def contributors(
    shifts: Mapping[str, tuple[float, float]], tolerance_db: float
) -> tuple[Contributor, ...]:
    """Return the modules outside a tolerance by their part in the change, of (stored, seen) in dB.

    At most three, the largest first; shares are of the change of all modules given.
    """
    changes = {name: abs(_power(seen) - _power(stored)) for name, (stored, seen) in shifts.items()}
    total = sum(changes.values())
    outside = [n for n, (stored, seen) in shifts.items() if abs(seen - stored) > tolerance_db]
    outside.sort(key=lambda name: -changes[name])  # stable: the earlier one of equals
    return tuple(
        Contributor(name, changes[name] / total, *shifts[name])
        for name in outside[:_MOST_CONTRIBUTORS]
        if total > 0
    )


def _power(decibel: float) -> float:
    """Return noise over signal."""
    return float(10 ** (-decibel / 10))


def _moved(stored: Mapping[str, float], seen: Mapping[str, float], name: str) -> str:
    return f"{seen[name]:.1f} dB, {stored[name]:.1f} in the baseline"


def _before(
    order: list[str], name: str, layer: Mapping[str, tuple[float, float]], tolerance_db: float
) -> str:
    """Say that all that stands before a module is as it was; nothing where that was not measured."""
    earlier = [other for other in order[: order.index(name)] if other in layer]
    return f"; all before it is within {tolerance_db:g} dB" if earlier else ""


def _after(order: list[str], name: str) -> str:
    """Say between which two modules to look."""
    index = order.index(name)
    if index == 0:
        return ": look at what comes before it, the embeddings included"
    return f": look at what stands between it and {order[index - 1]}"
