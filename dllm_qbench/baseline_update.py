"""``qbench baseline update``: a run's records become baselines, as by ``--qbench-update``. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baseline_diff import CellDiff, diff_cell
from dllm_qbench.baseline_paths import in_ci
from dllm_qbench.baselines import baseline_path, preview_cell, read_baselines, write_cell
from dllm_qbench.compare_sides import fit_for_the_paper
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.summary_files import read_outcomes
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.judge import judge


@dataclass(frozen=True)
class CellUpdate:
    """One cell: where it goes, the baseline that it becomes, and what that changes.

    Attributes:
        new: ``None`` where nothing changed.
        change: ``None`` for a cell that had no baseline.
        broken: what the band that is kept does not allow; empty: nothing.
    """

    path: Path
    record: Record
    band: Band | None
    new: CellBaseline | None
    change: CellDiff | None
    broken: str = ""

    def lines(self) -> list[str]:
        """What a person reads; nothing of a cell that stays as it is."""
        if self.new is None:
            return []
        if self.change is None:
            lines = [
                f"{self.record.cell} on {self.record.model}",
                f"  new          band {self.new.band}",
            ]
        else:
            lines = self.change.lines()
        return [*lines, *([f"  but          {self.broken}"] if self.broken else [])]


@dataclass(frozen=True)
class Update:
    """What an update does, or would do."""

    cells: tuple[CellUpdate, ...]
    written: tuple[Path, ...] = ()

    @property
    def changed(self) -> tuple[CellUpdate, ...]:
        """The cells that are not what is stored."""
        return tuple(cell for cell in self.cells if cell.new is not None)

    @property
    def broken(self) -> bool:
        """Whether a band does not allow what was measured."""
        return any(cell.broken for cell in self.changed)

    def lines(self) -> list[str]:
        """What a person reads."""
        lines = [line for cell in self.cells for line in cell.lines()]
        lines.append(f"{len(self.changed)} of {len(self.cells)} cells change")
        return lines + [f"baselines written to {path}: review the change" for path in self.written]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "cells": [
                {
                    "model": cell.record.model,
                    "cell": cell.record.cell,
                    "file": str(cell.path),
                    "new": cell.change is None,
                    "band": str((cell.new or cell).band),
                    "change": None if cell.change is None else asdict(cell.change),
                    "broken": cell.broken or None,
                }
                for cell in self.changed
            ],
            "measured": len(self.cells),
            "written": [str(path) for path in self.written],
        }


def plan(records: Path, folder: Path) -> Update:
    """Read a run's records, and find what they would change; nothing is written.

    Raises:
        QBenchError: the file cannot be read or holds no record, or one that no baseline may be made of.
        BaselineError: a cell would shrink to fewer items, or its file cannot be read.
    """
    latest = {(o.model, o.cell): o for o in read_outcomes(records) if o.record is not None}
    if not latest:
        raise QBenchError(f"{records}: holds no records")
    return Update(tuple(_planned(outcome, folder, str(records)) for outcome in latest.values()))


def write(update: Update) -> Update:
    """Write what was planned, each file atomically, cell by cell.

    Raises:
        QBenchError: under ``CI=true``, where nobody reviews it.
    """
    if in_ci():
        raise QBenchError(
            "baseline update is refused under CI=true, where nobody reviews what it writes; --dry-run shows"
            " what would change"
        )
    for cell in update.changed:
        write_cell(cell.path, cell.record, cell.band)
    return Update(update.cells, _unique(cell.path for cell in update.changed))


def _planned(outcome: Outcome, folder: Path, source: str) -> CellUpdate:
    record = Record.from_dict(outcome.record, f"{source}: {outcome.cell}")
    _check(record, source)
    path = baseline_path(folder, record.model)
    known = read_baselines(path).cells if path.exists() else {}
    stored = known.get(record.cell)
    # A new cell that was judged like another one has that one's band.
    given = (outcome.verdict or {}).get("band") if outcome.to_write and stored is None else None
    band = None if given is None else Band.from_dict(given)
    new = preview_cell(path, record, band)
    change = None if stored is None or new is None else diff_cell(stored, new)
    broken = ""
    if new is not None:
        verdict = judge(record, new)
        if verdict.fails():
            broken = f"its band {new.band} does not allow this: {verdict.findings[0].text}"
    return CellUpdate(path, record, band, new, change, broken)


def _check(record: Record, source: str) -> None:
    execution = record.provenance.get("execution", "fake")
    if execution != "fake":
        raise QBenchError(
            f"{source}: {record.cell} on {record.model} was measured on {execution} weights; baselines are of"
            " fake quantization"
        )
    if not fit_for_the_paper(record):
        raise QBenchError(
            f"{source}: {record.cell} on {record.model} is of a stand-in, or of other settings than the"
            " published ones; a baseline of it would mislead"
        )


def _unique(paths: Iterable[Path]) -> tuple[Path, ...]:
    found: Sequence[Path] = list(dict.fromkeys(paths))
    return tuple(found)
