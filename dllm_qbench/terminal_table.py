"""The summary's table: a row a cell, the worst first, in at most 100 columns.

What tells rows apart is never cut: the scheme and the task of a cell stay whole, only a long method is
shortened, in its middle and so that no two methods look alike. Where even that does not fit, the name
gets a line of its own above its figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from dllm_qbench.run_view import rank

if TYPE_CHECKING:
    from dllm_qbench.outcomes import Outcome

WIDTH: Final = 100
Line = tuple[str, str | None]
"""A line of text and the colour of its verdict, as pytest names colours."""

_COLORS: Final = {
    "equivalent": "green",
    "informational": None,
    "changed": "yellow",
    "inconclusive": "yellow",
}
_TITLES: Final = (
    ("", "full", "", "drop in % of full", "", ""),
    ("cell", "precision", "quantized", "precision", "band", "verdict"),
)
_NARROW: Final = (
    ("", "full", "quan-", "drop in %", "", ""),
    ("cell", "prec.", "tized", "of full prec.", "band", "verdict"),
)
_NUMBERS: Final = range(1, 4)
"""Columns that stand to the right; words stand to the left."""
_INDENT: Final = 8
"""Where figures begin below a name that has a line of its own."""
_LEAST: Final = 6
"""Characters of a method that is shortened; with fewer nobody would know it again."""
_SHARES: Final = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""How much of a shortened method may come from its beginning: tried until all differ."""


def table(outcomes: Sequence[Outcome], width: int = WIDTH) -> list[Line]:
    """The lines of the table with its titles, the worst cell first; none is wider than ``width``."""
    ranked = sorted(outcomes, key=rank)
    figures = [_figures(outcome) for outcome in ranked]
    colors = [color_of(outcome.status) for outcome in ranked]
    cells = [outcome.cell for outcome in ranked]
    names: Mapping[str, str] = {}
    for titles, gap in ((_TITLES, 2), (_TITLES, 1), (_NARROW, 2), (_NARROW, 1)):
        widths = [
            max(len(row[column]) for row in (*(title[1:] for title in titles), *figures))
            for column in range(len(titles[0]) - 1)
        ]
        room = width - sum(widths) - gap * len(widths)
        names = short_names(cells, room) or {}
        if all(names.get(cell) == cell for cell in cells):
            break
    first = max(map(len, ("cell", *names.values()))) if names else _INDENT
    lines: list[Line] = [(_line(title, first, widths, gap), None) for title in titles]
    for cell, row, color in zip(cells, figures, colors, strict=True):
        if not names:
            lines += [(part, color) for part in _wrapped(cell, width)]
        lines.append((_line((names.get(cell, ""), *row), first, widths, gap), color))
    return lines


def color_of(status: str) -> str | None:
    """The colour of a verdict; red where it is a failing one."""
    return _COLORS.get(status, "red")


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many cells have each verdict, the worst first: ``1 degraded, 3 equivalent``."""
    statuses = [outcome.status for outcome in sorted(outcomes, key=rank)]
    return ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))


def short_names(cells: Sequence[str], room: int) -> dict[str, str] | None:
    """Each cell's name in at most ``room`` characters; ``None`` where they cannot be told apart so.

    >>> short_names(["llmcompressor-rtn/W8A8/math"], 22)
    {'llmcompressor-rtn/W8A8/math': 'llmco..r-rtn/W8A8/math'}
    """
    longest: dict[str, int] = {}
    for cell in cells:
        method, _, rest = cell.partition("/")
        longest[method] = max(longest.get(method, 0), len(rest) + 1)
    rooms = {method: room - rest for method, rest in longest.items()}
    if any(space < min(_LEAST, len(method)) for method, space in rooms.items()):
        return None
    for share in _SHARES:
        short = {method: _shortened(method, space, share) for method, space in rooms.items()}
        if len(set(short.values())) == len(short):
            return {
                cell: f"{short[cell.partition('/')[0]]}{cell[len(cell.partition('/')[0]) :]}"
                for cell in cells
            }
    return None


def _shortened(text: str, room: int, share: float = 0.5) -> str:
    """The text with its middle left out if it is too long; ``share`` of what stays is its beginning."""
    if len(text) <= room:
        return text
    kept = room - 2
    head = min(kept - 1, max(1, round(kept * share)))
    return f"{text[:head]}..{text[len(text) - (kept - head) :]}"


def _figures(outcome: Outcome) -> tuple[str, ...]:
    """What stands beside a cell's name."""
    record, verdict = outcome.record, outcome.verdict
    accuracies = [
        f"{100 * record[name]:.1f}" if record else "-"
        for name in ("reference_accuracy", "quantized_accuracy")
    ]
    drop = "-"
    if verdict and verdict["drop"] is not None:
        low, high = verdict["interval"]
        drop = f"{verdict['drop']:.1f} [{low:.1f}, {high:.1f}]"
    status = "not judged" if record and not verdict else outcome.status
    if outcome.to_write:
        status = "written"
    return (*accuracies, drop, outcome.band or "-", status)


def _line(row: Sequence[str], first: int, widths: Sequence[int], gap: int) -> str:
    cells = [f"{row[0]:<{first}}"]
    for column, (text, width) in enumerate(zip(row[1:], widths, strict=True), start=1):
        cells.append(f"{text:>{width}}" if column in _NUMBERS else f"{text:<{width}}")
    return (" " * gap).join(cells).rstrip()


def _wrapped(text: str, width: int) -> Iterator[str]:
    for start in range(0, len(text), width):
        yield text[start : start + width]
