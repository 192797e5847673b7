"""Bands: what is allowed for a cell. Drops are relative, in percent of full precision's score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from dllm_qbench.errors import BaselineError

Kind = Literal["near-lossless", "graceful", "collapse"]

MARGINS: Final = (1.0, 2.5)
"""Proposed limits for near-lossless cells, tried in this order."""
COLLAPSE: Final = 20.0
"""A cell whose drop is surely at least this is proposed as a collapse."""
SLACK: Final = 2.0
"""Points by which a proposed graceful band is wider than the measured interval, at each end."""


@dataclass(frozen=True)
class Band:
    """The allowed drop; a limit that the kind does not use is ``None``.

    ``near-lossless``: at most ``max_drop``. ``graceful``: from ``min_drop`` to ``max_drop``.
    ``collapse``: at least ``min_drop``. Raises ``BaselineError`` on any other combination.
    """

    kind: Kind
    min_drop: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BaselineError(
                f"kind is {self.kind!r}, expected one of {', '.join(get_args(Kind))}"
            )
        used = {"min_drop": self.kind != "near-lossless", "max_drop": self.kind != "collapse"}
        for name, wanted in used.items():
            value = getattr(self, name)
            if wanted and value is None:
                raise BaselineError(f"{name} is missing, a {self.kind} band needs it")
            if not wanted and value is not None:
                raise BaselineError(f"{name} is {value!r}, a {self.kind} band has none")
            if value is not None and (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
                or value > 100
            ):
                raise BaselineError(f"{name} is {value!r}, expected a finite percentage up to 100")
        if (
            self.min_drop is not None
            and self.max_drop is not None
            and self.min_drop > self.max_drop
        ):
            raise BaselineError(f"min_drop {self.min_drop:g} is above max_drop {self.max_drop:g}")

    def __str__(self) -> str:
        if self.kind == "near-lossless":
            return f"near-lossless <={self.max_drop:g}"
        if self.kind == "collapse":
            return f"collapse >={self.min_drop:g}"
        return f"graceful {self.min_drop:g}..{self.max_drop:g}"

    def sentence(self) -> str:
        """The band in words, for messages."""
        if self.kind == "near-lossless":
            return f"near-lossless: a drop of at most {self.max_drop:g} %"
        if self.kind == "collapse":
            return f"collapse: a drop of at least {self.min_drop:g} %"
        return f"graceful: a drop of {self.min_drop:g} to {self.max_drop:g} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the limits that the kind does not use."""
        limits = {"min_drop": self.min_drop, "max_drop": self.max_drop}
        return {"kind": self.kind, **{k: v for k, v in limits.items() if v is not None}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Band:
        """Inverse of ``to_dict``."""
        return cls(data["kind"], data.get("min_drop"), data.get("max_drop"))


def propose(interval: tuple[float, float]) -> Band:
    """Propose a band for a cell that has none, from the interval of its measured drop.

    ``near-lossless`` with the first of ``MARGINS`` that the upper bound does not exceed;
    ``collapse`` with ``COLLAPSE`` when the lower bound reaches it; else ``graceful``: the interval,
    wider by ``SLACK`` at each end, rounded outwards to half points. A person reviews a proposal.
    """
    low, high = interval
    for margin in MARGINS:
        if high <= margin:
            return Band("near-lossless", max_drop=margin)
    if low >= COLLAPSE:
        return Band("collapse", min_drop=COLLAPSE)
    return Band(
        "graceful",
        math.floor(2 * (low - SLACK)) / 2,
        min(100.0, math.ceil(2 * (high + SLACK)) / 2),
    )
