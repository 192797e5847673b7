"""The table at the end of a run: one case a block, the one closest to failing first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dllm_qbench.benchmarks.gate import shown
from dllm_qbench.benchmarks.outcome import Outcome

WIDTH: Final = 100
Line = tuple[str, str | None]
_TITLES: Final = ("case, and its rivals", "M", "ms", "times as fast", "limit", "bar", "verdict")
_RIGHT: Final = {1, 2, 4, 5}
_COLORS: Final = {
    "below bar": "red",
    "slower": "red",
    "pass": "green",
    "faster": "green",
    "busy": "yellow",
    "not gated": None,
}
LEGEND: Final = (
    "times as fast: as the rival, median over rounds [95 % interval]; bar: at least so many times.",
    "limit: our time over the least that copying and multiplying at this machine's measured rates takes.",
)


def milliseconds(seconds: float) -> str:
    """Write a time with three digits: ``0.0123``, ``12.3``, ``4510``."""
    value = 1e3 * seconds
    if value >= 100:
        return f"{value:.0f}"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{max(0, min(4, digits))}f}"


def rank(outcome: Outcome) -> tuple[float, float, str]:
    """Sort key: smallest ratio to a bar first, then what has no bar, by what was stored of it."""
    with_bar = [outcome.ratios[bar.rival].median / bar.at_least for bar in outcome.bars
                if bar.rival in outcome.ratios]  # fmt: skip
    if outcome.bars and len(with_bar) < len(outcome.bars):
        with_bar.append(0.0)
    margin = outcome.finding.margin
    return (
        min(with_bar, default=math.inf),
        math.inf if margin is None else margin,
        outcome.case,
    )


def table(outcomes: Sequence[Outcome], width: int = WIDTH) -> list[Line]:
    """Lines of at most ``width`` columns, each with the colour of its case's verdict."""
    rows: list[tuple[tuple[str, ...], str | None]] = [(_TITLES, None)]
    for outcome in sorted(outcomes, key=lambda one: (not one.finding.fails, *rank(one))):
        rows += [(row, _COLORS[outcome.finding.status]) for row in _rows(outcome)]
    widths = [max(len(row[column]) for row, _ in rows) for column in range(len(_TITLES))]
    widths[0] = min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1))
    return [(_line(row, widths), color) for row, color in rows]


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row of the case, one of each rival, the main one first."""
    bars = {bar.rival: f"{bar.at_least:.3g}" for bar in outcome.bars}
    status = "stored" if outcome.stored else outcome.finding.status
    limit = f"{outcome.over_limit:.1f}"
    head = (outcome.case, str(outcome.M), milliseconds(outcome.ours_s))
    rows: list[tuple[str, ...]] = [(*head, "", limit, "", status)]
    for name in sorted(outcome.ratios, key=lambda rival: rival != outcome.main):
        time, found = milliseconds(outcome.rivals_s[name]), shown(outcome.ratios[name])
        rows.append((f"  {name}", "", time, found, "", bars.get(name, ""), ""))
    return rows


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        text = text if len(text) <= width else f"{text[: width - 2]}.."
        cells.append(f"{text:>{width}}" if column in _RIGHT else f"{text:<{width}}")
    return "  ".join(cells).rstrip()
