"""A comparison as text, Markdown and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dllm_qbench.compare import Comparison, Row
from dllm_qbench.compare_sides import Measured
from dllm_qbench.verdict.averages import Difference
from dllm_qbench.verdict.matrix import ALPHA_RUN

WIDTH: Final = 100
_SHOWN: Final = 12  # cells that only one side has
_LEAST: Final = 12  # columns that a cell's name gets in any case


def render_table(rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """The rows as lines of at most ``width`` columns; cells' names are cut where they must be.

    ``#``: a printed average over this cell's task is a misprint.
    """
    table = [("cell", "drop, first", "drop, second", "difference", "first is")]
    for row in rows:
        name = row.one.cell + (" #" if row.misprints else "")
        table.append((name, _drop(row.one), _drop(row.other), _points(row.difference), row.word))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    widths[0] = max(_LEAST, min(widths[0], width - sum(widths[1:]) - gap * (len(widths) - 1)))
    lines = []
    for name, *numbers, word in table:
        shown = name if len(name) <= widths[0] else f"{name[: widths[0] - 2]}.."
        cells = [f"{shown:<{widths[0]}}"]
        cells += [f"{text:>{size}}" for text, size in zip(numbers, widths[1:], strict=False)]
        lines.append((" " * gap).join([*cells, word]).rstrip())
    return lines


def as_text(comparison: Comparison, width: int = WIDTH) -> str:
    """Plain text: a table a model, the one with the worst cell first."""
    lines = _wrapped(f"first:  {comparison.one}", width) + _wrapped(
        f"second: {comparison.other}", width
    )
    for model, rows in _by_model(comparison.rows).items():
        lines += ["", f" {model}, {_items(rows)} ".center(width, "=")[:width].rstrip()]
        lines += render_table(rows, width)
    lines += ["", *(line for note in _notes(comparison) for line in _wrapped(note, width))]
    for run, results in comparison.findings:
        lines += ["", *_wrapped(f"the paper's findings in {run}:", width)]
        for result in results:
            lines += _wrapped(
                f"- {result.finding.statement}: {result.status} ({result.text})", width
            )
    return "\n".join(lines)


def as_markdown(comparison: Comparison) -> str:
    """Markdown, with accuracies."""
    lines = [f"First: {comparison.one}  ", f"Second: {comparison.other}", ""]
    for model, rows in _by_model(comparison.rows).items():
        lines += [
            f"### {model}, {_items(rows)}",
            "",
            "| cell | first: full, quantized | drop | second: the same | drop | difference | first is |",
            "|---|---:|---:|---:|---:|---:|---|",
        ]
        for row in rows:
            cells = [
                f"`{row.one.cell}`{' #' if row.misprints else ''}",
                _accuracies(row.one),
                _drop(row.one),
                _accuracies(row.other),
                _drop(row.other),
                _points(row.difference),
                row.word,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [f"{note}  " for note in _notes(comparison)]
    for run, results in comparison.findings:
        lines += [
            "",
            f"### The paper's findings in {run}",
            "",
            "| finding | | why |",
            "|---|---|---|",
        ]
        lines += [f"| {r.finding.statement} | {r.status} | {r.text} |" for r in results]
    return "\n".join(lines)


def as_json(comparison: Comparison) -> str:
    """All of it, for machines."""
    return json.dumps(comparison.to_dict(), indent=2, allow_nan=False)


FORMS: Final[Mapping[str, Callable[[Comparison], str]]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
}


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.one.model, []).append(row)
    return found


def _items(rows: Sequence[Row]) -> str:
    """How many items a cell each side has, as ranges."""
    sizes = []
    for side in (sorted({r.one.items for r in rows}), sorted({r.other.items for r in rows})):
        sizes.append(str(side[0]) if len(side) == 1 else f"{side[0]}-{side[-1]}")
    return f"{sizes[0]} and {sizes[1]} items a cell"


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        "Drops in % of full precision; differences in points, first minus second; each end of an interval"
        f" is a one-sided 95 % bound. 'worse' and 'better' hold at {100 * ALPHA_RUN:g} % over all rows"
        " together (Holm)."
    ]
    unpaired = sum(1 for row in comparison.rows if row.difference and not row.difference.paired)
    if unpaired:
        notes.append(
            f"{unpaired} of {len(comparison.rows)} differences are of unpaired items, and their intervals"
            " the wider for it."
        )
    wrong = sorted(
        {f"{row.one.model}: {text}" for row in comparison.rows for text in row.misprints}
    )
    if wrong:
        notes.append(
            "# The paper's printed averages contradict its own rows here, and are not used: "
            + "; ".join(wrong)
        )
    for where, names in (("first", comparison.only_one), ("second", comparison.only_other)):
        if names:
            shown = ", ".join(f"{cell} on {model}" for model, cell in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            notes.append(f"Only in the {where}: {shown}{more}.")
    return [*notes, *comparison.notes]


def _drop(measured: Measured) -> str:
    if measured.drop is None or measured.interval is None:
        return "-"
    low, high = measured.interval
    return f"{measured.drop:.1f} [{low:.1f}, {high:.1f}]"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    low, high = difference.interval
    return f"{difference.value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _accuracies(measured: Measured) -> str:
    full, quantized = measured.accuracies
    return f"{full:.1f}, {quantized:.1f}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
