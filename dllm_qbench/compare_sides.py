"""The two sides of a comparison, read from wherever they lie. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from dllm_qbench.baselines import CellBaseline, read_baselines
from dllm_qbench.bitsets import item_checks
from dllm_qbench.engine.store import Store
from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import parse_json
from dllm_qbench.outcomes import read_records
from dllm_qbench.paper import PaperCell
from dllm_qbench.paper_files import FINDINGS, read_paper
from dllm_qbench.records import Record
from dllm_qbench.verdict.averages import (
    Task,
    TaskAnswers,
    drop_of_tasks,
    interval_of_tasks,
)
from dllm_qbench.verdict.paper import answers_of, printed_scores, stored_paper
from dllm_qbench.verdict.statistics import Pairs, drop_interval

PAPER: Final = "paper"
"""What is given for the stored scores of the paper."""
Name = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """One cell of one side: answers by item, or the shares that a paper printed.

    ``checks`` and ``seed`` say which items they are, where there are items.
    """

    model: str
    cell: str
    task: Task
    checks: bytes = b""
    seed: int | None = None
    printed: PaperCell | None = None

    @property
    def items(self) -> int:
        """Number of items."""
        return self.task.items

    @property
    def accuracies(self) -> tuple[float, float]:
        """Full precision and quantized, in percent."""
        scores = self.task.scores if isinstance(self.task, TaskAnswers) else self.task
        return 100 * scores.before, 100 * scores.after

    @property
    def drop(self) -> float | None:
        """In percent; ``None`` where full precision answers nothing."""
        return drop_of_tasks([self.task]) if self.accuracies[0] else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Of the drop, 90 %: paired over the items; wider, as if unpaired, where they are not known."""
        if self.drop is None:
            return None
        if not isinstance(self.task, TaskAnswers):
            return interval_of_tasks([self.task])
        return drop_interval(Pairs.count(self.task.before, self.task.after))


@dataclass(frozen=True)
class Side:
    """What one argument of a comparison holds. ``records`` where it is a run."""

    name: str
    cells: dict[Name, Measured]
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()


def read_side(source: str | Path) -> Side:
    """Read one argument of a comparison; ``QBenchError`` says what was expected."""
    path = Path(source)
    if str(source) == PAPER and not path.exists():
        return _paper(None, PAPER)
    if path.is_dir():
        if (path / FINDINGS).is_file():
            return _paper(path, str(path))
        if (path / "records").is_dir():
            return _of_records(str(path), list(Store(path).records()))
        return _of_baselines(str(path), sorted(path.glob("*.json")))
    if not path.is_file():
        raise QBenchError(
            f"{source}: no such file or folder; give a record file, a results store, baselines, or"
            f" {PAPER!r}"
        )
    if path.suffix == ".json":
        data = parse_json(path.read_text(encoding="utf-8"), str(path))
        if isinstance(data, dict) and "record_version" in data:
            return _of_records(str(path), [Record.from_dict(data, str(path))])
        return _of_baselines(str(path), [path])
    return _of_records(str(path), read_records(path))


def _of_records(name: str, records: Sequence[Record]) -> Side:
    """A run's cells; of a cell that was measured several times the last is taken."""
    if not records:
        raise QBenchError(f"{name}: holds no records")
    latest: dict[Name, Record] = {}
    for record in sorted(records, key=lambda r: str(r.provenance.get("date", ""))):
        latest[record.model, record.cell] = record
    notes = []
    if older := len(records) - len(latest):
        notes.append(f"{name}: {older} older record(s) of the same cells are left out")
    if odd := sum(not fit_for_the_paper(record) for record in latest.values()):
        notes.append(
            f"{name}: {odd} record(s) are of stand-ins or of other than the paper's settings; they"
            " play no part in its findings"
        )
    cells = {
        key: Measured(
            record.model,
            record.cell,
            answers_of(record),
            item_checks(record.item_ids),
            record.seed,
        )
        for key, record in latest.items()
    }
    return Side(name, cells, tuple(latest.values()), tuple(notes))


def _of_baselines(name: str, paths: Sequence[Path]) -> Side:
    cells: dict[Name, Measured] = {}
    for path in paths:
        for baseline in read_baselines(path).cells.values():
            cells[baseline.model, baseline.cell] = _of_baseline(baseline)
    if not cells:
        raise QBenchError(f"{name}: holds no baselines (*.json)")
    return Side(name, cells)


def _of_baseline(stored: CellBaseline) -> Measured:
    task = TaskAnswers(range(stored.items), stored.reference_correct, stored.quantized_correct)
    return Measured(stored.model, stored.cell, task, stored.item_checks, stored.items_seed)


def _paper(folder: Path | None, name: str) -> Side:
    paper = stored_paper() if folder is None else read_paper(folder)
    cells = {
        key: Measured(cell.model, cell.cell, printed_scores(cell), printed=cell)
        for key, cell in paper.cells.items()
    }
    return Side(f"{name} ({paper.source})", cells)


def fit_for_the_paper(record: Record) -> bool:
    """Whether a record is of a real model under the paper's settings, as far as it says."""
    origin = record.provenance.get("model", {})
    return not origin.get("stands_in") and origin.get("profile", PAPER) == PAPER
