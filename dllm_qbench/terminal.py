"""What a person sees in the terminal: header lines, and the summary at the end.

Most runs are well, and say so in a line for each model; a row is for a cell that is worth a look. ``-v``
has a row for every cell, ``-q`` only for those that fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from dllm_qbench import __version__
from dllm_qbench.run_view import items_told, rank
from dllm_qbench.terminal_table import WIDTH, Line, counts, short_names, table

if TYPE_CHECKING:
    import pytest

    from dllm_qbench.engine.jobs import Setup
    from dllm_qbench.outcomes import Outcome

__all__ = [
    "full_header",
    "header",
    "plain_summary",
    "summary_lines",
    "table",
    "write_summary",
]

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


def write_summary(
    reporter: pytest.TerminalReporter,
    outcomes: Sequence[Outcome],
    notes: Sequence[str],
    failures: Sequence[str] = (),
) -> None:
    """A section for each model under its own rule, the one with the worst cell first.

    What is left out is counted, and ``-v`` lists it. ``-q`` lists failing cells only, ``-qq`` shows
    nothing but failures: failing cells, and ``failures`` of the run as a whole.
    """
    verbosity = reporter.config.get_verbosity()
    sections = list(_sections(outcomes, verbosity))
    for title, lines in sections:
        reporter.write_sep("=", title)
        for text, color in lines:
            reporter.write_line(text, **({color: True} if color else {}))
    for line in _legend(sections, verbosity):
        reporter.write_line(line)
    for failure in failures:
        reporter.write_line(failure, red=True)
    for note in notes if sections else ():
        reporter.write_line(note)


def plain_summary(outcomes: Sequence[Outcome], columns: int, verbosity: int = 0) -> list[str]:
    """The summary as :func:`write_summary` shows it on a terminal so wide, without colours."""
    return [text for text, _ in summary_lines(outcomes, columns, verbosity)]


def summary_lines(outcomes: Sequence[Outcome], columns: int, verbosity: int = 0) -> list[Line]:
    """The same with the colour of each line."""
    sections = list(_sections(outcomes, verbosity))
    lines: list[Line] = []
    for title, of_model in sections:
        lines += [(f" {title} ".center(columns, "="), None), *of_model]
    return [*lines, *((line, None) for line in _legend(sections, verbosity))]


Section = tuple[str, list[Line]]


def _sections(outcomes: Sequence[Outcome], verbosity: int) -> Iterator[Section]:
    """What is told of each model under its title, the model with the worst cell first."""
    by_model: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=rank):
        by_model.setdefault(outcome.model, []).append(outcome)
    for model, of_model in by_model.items():
        listed = [outcome for outcome in of_model if _is_listed(outcome, verbosity)]
        lines = table(listed) if listed else []
        if verbosity == -1:
            plural = "s" * (len(of_model) > 1)
            lines.append((f"{len(of_model)} cell{plural}: {counts(of_model)}", None))
        elif verbosity == 0 and len(listed) < len(of_model):
            hidden = [outcome for outcome in of_model if not _is_listed(outcome, verbosity)]
            lines.append((_told(hidden, more=bool(listed)), None))
        if lines:
            yield _title(model, of_model), lines


def _is_listed(outcome: Outcome, verbosity: int) -> bool:
    """Whether a cell gets a row: all do with ``-v``, those worth a look without, failing ones with ``-q``."""
    if verbosity == 0:
        return outcome.fails or outcome.status != "equivalent"
    return verbosity > 0 or outcome.fails


def _told(outcomes: Sequence[Outcome], more: bool) -> str:
    """The line for cells without a row, all equivalent, with the largest drop among them."""
    size = len(outcomes)
    if more:
        begin = f"{size} more cell{'s' * (size > 1)} equivalent"
    else:
        begin = f"all {size} cells equivalent" if size > 1 else "the only cell is equivalent"
    end = "; -v lists " + ("them" if size > 1 else "it")
    drops = {
        outcome.cell: outcome.verdict["drop"]
        for outcome in outcomes
        if outcome.verdict and outcome.verdict["drop"] is not None
    }
    if not drops:
        return begin + end
    cell = max(drops, key=lambda name: drops[name])
    drop = f", {'the largest' if size > 1 else 'its'} drop {drops[cell]:.1f} %"
    name = (short_names([cell], WIDTH - len(begin + drop + end) - 3) or {}).get(cell)
    return begin + drop + (f" ({name})" if name else "") + end


def _legend(sections: Sequence[Section], verbosity: int) -> list[str]:
    """How to read a table, where there is one; a blank line above what else is told."""
    if verbosity < 0 or not sections:
        return []
    return ["", *_LEGEND] if any(len(lines) > 1 for _, lines in sections) else []


def _title(model: str, outcomes: Sequence[Outcome]) -> str:
    items = items_told(outcome.items for outcome in outcomes)
    return f"quantization fidelity: {model}, {items} items a cell"
