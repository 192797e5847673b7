"""What a benchmark found: what is saved in pytest-benchmark's file, shown at the end, and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dllm_qbench.benchmarks.gate import Bar, Expected, Finding
from dllm_qbench.benchmarks.ratios import Ratio
from dllm_qbench.errors import QBenchError

KEY: Final = "qbench"
"""Name of the entry in pytest-benchmark's ``extra_info``."""


@dataclass(frozen=True)
class Outcome:
    """One case as it was measured and judged. Times are seconds a call.

    Attributes:
        case: its name, which states M.
        operation, M, I, O, dtype: what was run; O is 0 where there is no weight.
        backend: that ran it.
        moved: bytes that it has to read and write.
        operations: additions and multiplications that it has to make, and ``kind`` the data type that
            they are made in.
        ours_s: median over the rounds; ``rivals_s`` of the rivals.
        ratios: ``rival's time / our time``, by rival.
        left_out: rivals that were not timed, with the reason.
        limit_s: the least time that the machine's measured limits allow.
        error: how far ours is from the exact result, in the unit of the case.
        bars, expected, finding: what it was held against, and what came of it.
        attempts: how often it was measured; ``rounds``: of the last time.
        megahertz: mean clock right after, where the system says it.
        gated: whether the case is one of those whose ratio is to be stored.
        stored: whether it was written to the baselines just now.
    """

    case: str
    operation: str
    M: int
    I: int  # noqa: E741 (the legend's names)
    O: int  # noqa: E741
    dtype: str
    backend: str
    moved: int
    operations: int
    kind: str
    ours_s: float
    rivals_s: Mapping[str, float]
    ratios: Mapping[str, Ratio]
    left_out: Mapping[str, str]
    limit_s: float
    error: float
    bars: tuple[Bar, ...]
    expected: Expected | None
    finding: Finding
    attempts: int
    rounds: int
    megahertz: float | None
    gated: bool
    stored: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], place: str) -> Outcome:
        """Undo :meth:`to_dict`; ``QBenchError`` names the place of what cannot be read."""
        try:
            expected = data["expected"]
            return cls(
                **{
                    **data,
                    "ratios": {name: Ratio(**found) for name, found in data["ratios"].items()},
                    "bars": tuple(Bar(**bar) for bar in data["bars"]),
                    "expected": None if expected is None else Expected(**expected),
                    "finding": Finding(**data["finding"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise QBenchError(f"{place}: not a benchmark of this version: {error!r}") from error

    @property
    def over_limit(self) -> float:
        """How many times the least possible time ours takes."""
        return self.ours_s / self.limit_s

    @property
    def main(self) -> str | None:
        """The rival that is spoken of first: that of a bar, or the stored one, or any."""
        named = [bar.rival for bar in self.bars]
        if self.expected is not None:
            named.append(self.expected.rival)
        return next((name for name in (*named, *self.ratios) if name in self.ratios), None)
