"""What a person sees in the terminal: header line, progress of long cells, the table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench import __version__

if TYPE_CHECKING:
    import pytest

    from dllm_qbench.engine.jobs import Setup
    from dllm_qbench.outcomes import Outcome

WIDTH: Final = 100
FIRST_AFTER_S: Final = 2.0
"""A cell that is done sooner shows no progress."""
EVERY_TTY_S: Final = 0.5
EVERY_LOG_S: Final = 30.0

_ORDER: Final = (
    "infra",
    "degraded",
    "improved",
    "inconclusive",
    "changed",
    "informational",
    "equivalent",
)
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
_LEGEND: Final = (
    "Accuracies in %. Drops are relative; each end of an interval is a one-sided 95 % bound.",
)


def header(models: Sequence[str], items: int, baselines: str, execution: str = "fake") -> list[str]:
    """Versions, models, items and where the baselines are; reads no library."""
    versions = [f"dllm-qbench {__version__}"]
    for name in ("torch", "transformers", "lm-eval"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} not installed")
    packed = "" if execution == "fake" else ", weights packed"
    return [
        f"qbench: {', '.join(versions)}",
        f"qbench: model {', '.join(models)}, {items} items a cell, baselines {baselines}{packed}",
    ]


def full_header(setup: Setup, store: str) -> str:
    """How the full tier's cells are measured, and where what they give is kept."""
    items = "all items" if setup.items is None else f"first {setup.items} items"
    return (
        f"qbench: full tier, {setup.profile} settings, {items}, {setup.dtype} on {setup.device}, kept in"
        f" {store}"
    )


def table(outcomes: Sequence[Outcome], width: int = WIDTH) -> list[tuple[str, str | None]]:
    """The summary's lines, worst cell first, each with the colour of its verdict.

    No line is wider than ``width``: gaps shrink first, then the names of cells are cut.
    """
    ranked = sorted(outcomes, key=_rank)
    rows = [*_TITLES, *(_row(outcome) for outcome in ranked)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES[0]))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - gap * (len(widths) - 1)))
    colors = [None, None, *(_COLORS.get(outcome.status, "red") for outcome in ranked)]
    return [(_line(row, widths, gap), color) for row, color in zip(rows, colors, strict=True)]


def _rank(outcome: Outcome) -> tuple[int, float, str]:
    drop = (outcome.verdict or {}).get("drop")
    return (
        _ORDER.index(outcome.status) if outcome.status in _ORDER else 0,
        -drop if drop is not None else 0.0,
        outcome.cell,
    )


def _row(outcome: Outcome) -> tuple[str, ...]:
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
    return (outcome.cell, *accuracies, drop, outcome.band or "-", status)


def _line(row: Sequence[str], widths: Sequence[int], gap: int) -> str:
    cell = row[0] if len(row[0]) <= widths[0] else f"{row[0][: widths[0] - 2]}.."
    cells = [f"{cell:<{widths[0]}}"]
    # Numbers to the right, words to the left.
    for column, text in enumerate(row[1:], start=1):
        cells.append(f"{text:>{widths[column]}}" if column < 4 else f"{text:<{widths[column]}}")
    return (" " * gap).join(cells).rstrip()


def write_summary(
    reporter: pytest.TerminalReporter,
    outcomes: Sequence[Outcome],
    notes: Sequence[str],
    failures: Sequence[str] = (),
) -> None:
    """A table for each model under its own rule, the one with the worst cell first.

    ``-q`` leaves out the legend, ``-qq`` everything but failures: failing cells, and ``failures`` of
    the run as a whole.
    """
    verbosity = reporter.config.get_verbosity()
    shown = outcomes if verbosity > -2 else [outcome for outcome in outcomes if outcome.fails]
    if not shown and not failures:
        return
    for title, of_model in _sections(shown):
        reporter.write_sep("=", title)
        for text, color in table(of_model):
            reporter.write_line(text, **({color: True} if color else {}))
    if verbosity >= 0:
        reporter.write_line("")
        for line in _LEGEND:
            reporter.write_line(line)
    for failure in failures:
        reporter.write_line(failure, red=True)
    for note in notes if shown else ():
        reporter.write_line(note)


def plain_summary(outcomes: Sequence[Outcome], columns: int) -> list[str]:
    """The summary as :func:`write_summary` shows it on a terminal so wide, without colours."""
    lines = []
    for title, of_model in _sections(outcomes):
        lines.append(f" {title} ".center(columns, "="))
        lines += [text for text, _ in table(of_model)]
    return [*lines, "", *_LEGEND]


def _sections(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """The outcomes by model under a title each, the model with the worst cell first."""
    by_model: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=_rank):
        by_model.setdefault(outcome.model, []).append(outcome)
    return [(_title(model, of_model), of_model) for model, of_model in by_model.items()]


def _title(model: str, outcomes: Sequence[Outcome]) -> str:
    items = sorted({outcome.items for outcome in outcomes if outcome.items})
    count = "-".join(str(number) for number in ({items[0], items[-1]} if items else {0}))
    return f"quantization fidelity: {model}, {count} items a cell"


class ProgressLine:
    """Progress of one cell through pytest's own terminal reporter, which knows -q and NO_COLOR.

    On a terminal one line is rewritten in place and erased at the end. In a log there is nothing,
    unless -v asks for more: then a line every half minute.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._start = time.monotonic()
        self._shown_at: float | None = None
        verbosity = config.get_verbosity()
        self._tty = self._reporter is not None and bool(self._reporter.isatty) and verbosity >= 0
        self._on = self._reporter is not None and (self._tty or verbosity > 0)

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show that ``done`` of ``total`` are done with what ``label`` names, if it is time to."""
        now = time.monotonic()
        if not self._on or now - self._start < FIRST_AFTER_S:
            return
        every = EVERY_TTY_S if self._tty else EVERY_LOG_S
        if self._shown_at is not None and now - self._shown_at < every:
            return
        share = 100 * done // total if total else 0
        text = f"  {label}: {share:3d} %, {done} of {total}, {now - self._start:.0f} s"
        self._write(text, first=self._shown_at is None)
        self._shown_at = now

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._tty and self._shown_at is not None:
            self._write("", first=False)

    def _write(self, text: str, first: bool) -> None:
        # While a test runs, pytest captures its output, and the reporter's with it.
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            if first or not self._tty:
                self._reporter.ensure_newline()
            if self._tty:
                self._reporter.rewrite(text, erase=True)
            else:
                self._reporter.write_line(text)
            self._reporter.flush()
