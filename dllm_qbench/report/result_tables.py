"""The paper's result tables from a run: a table a model, its methods at their bit-widths by tasks.

As arXiv 2508.14896 lays them out: full precision first, then scheme by scheme; tasks by family, and behind
each family the average of its tasks and that average's relative drop. An average is of all tasks that the
table has of the family, and is missing where one of them is. Drops are relative to full precision, in
percent, positive where it is worse (the paper prints them negative). How tables are written is in
``table_files.py``. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final, Literal

from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.paper import CATEGORIES, drop_of_average
from dllm_qbench.report.grid import METHODS, scheme_order
from dllm_qbench.run_view import items_told

FULL_PRECISION: Final = "full precision"
UNTOUCHED: Final = "W16A16"
Kind = Literal["accuracy", "average", "drop"]


@dataclass(frozen=True)
class Value:
    """One number of a table in percent; ``None`` where it is missing.

    Attributes:
        interval: of a drop, where asked for; its lower end is ``None`` where nothing bounds it.
        best: whether no other method of the scheme is better, as numbers are shown.
    """

    number: float | None
    interval: tuple[float | None, float] | None = None
    best: bool = False

    @property
    def shown(self) -> str:
        """With one decimal, as all numbers of a table; a dash where it is missing."""
        if self.number is None:
            return "–"
        return one_decimal(self.number)


@dataclass(frozen=True)
class Column:
    """A task's accuracy, or the average or the drop of a family of tasks."""

    family: str
    kind: Kind
    tasks: tuple[str, ...]

    @property
    def title(self) -> str:
        """What stands above it where the family does not."""
        return self.tasks[0] if self.kind == "accuracy" else f"{self.family} {self.kind}"


@dataclass(frozen=True)
class Row:
    """A quantized model, or full precision, whose drops are all missing."""

    scheme: str
    method: str
    values: tuple[Value, ...]

    @property
    def is_reference(self) -> bool:
        """Whether this is full precision."""
        return (self.scheme, self.method) == (UNTOUCHED, FULL_PRECISION)


@dataclass(frozen=True)
class ResultTable:
    """One model's; ``items`` a task, ``500`` or ``164-1319``. Rows of one scheme follow each other."""

    model: str
    items: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Answers:
    """Right and wrong answers of one cell, by item."""

    cell: str
    ids: tuple[str, ...]
    before: tuple[bool, ...]
    after: tuple[bool, ...]


def result_tables(
    outcomes: Sequence[Outcome],
    tasks: Sequence[str] | None = None,
    intervals: bool = False,
) -> list[ResultTable]:
    """Build a table for each model of a run, in the run's order.

    Args:
        outcomes: of one run, or of several that do not contradict each other. A cell that could not be
            measured is missing in its table.
        tasks: the columns, in order within their families; by default all tasks of the run.
        intervals: give each drop its interval, each end a one-sided 95 % bound.

    Raises:
        QBenchError: a cell twice with different answers, full precision's answers on one task that differ
            from cell to cell, or a task that no cell is about.
    """
    known = dict.fromkeys(outcome.cell.split("/")[-1] for outcome in outcomes)
    if unknown := [task for task in tasks or () if task not in known]:
        raise QBenchError(
            f"tables: no cell is about task {unknown[0]!r}; tasks: {', '.join(known) or 'none'}"
        )
    models: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        models.setdefault(outcome.model, []).append(outcome)
    made = [_table(name, of_model, tasks, intervals) for name, of_model in models.items()]
    return [table for table in made if table.columns]


def one_decimal(number: float) -> str:
    """``12.3``; never ``-0.0``."""
    text = f"{number:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _table(
    model: str, outcomes: Sequence[Outcome], tasks: Sequence[str] | None, intervals: bool
) -> ResultTable:
    cells = _cells(model, outcomes)
    met = list(dict.fromkeys(task for _, _, task in cells))
    columns = _columns(met if tasks is None else [task for task in tasks if task in met], tasks)
    wanted = dict.fromkeys(task for column in columns for task in column.tasks)
    reference = _reference(model, cells)
    rows = [Row(UNTOUCHED, FULL_PRECISION, tuple(_value(c, reference) for c in columns))]
    names = {(method, scheme) for method, scheme, task in cells if task in wanted}
    for method, scheme in sorted(names, key=_row_order):
        of_row = {task: cells.get((method, scheme, task)) for task in wanted}
        values = tuple(
            _drop(c, of_row, intervals) if c.kind == "drop" else _value(c, of_row) for c in columns
        )
        rows.append(Row(scheme, method, values))
    items = items_told(len(one.ids) for (*_, task), one in cells.items() if one and task in wanted)
    return ResultTable(model, items, columns, _with_best(rows, columns))


def _cells(model: str, outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str], _Answers | None]:
    """The answers of each method, scheme and task; ``None`` where they could not be measured."""
    found: dict[tuple[str, str, str], _Answers | None] = {}
    for outcome in outcomes:
        parts = outcome.cell.split("/")
        if len(parts) != 3 or not all(parts):
            raise QBenchError(
                f"tables: cell {outcome.cell!r} on {model}: expected method/scheme/task"
            )
        key = (parts[0], parts[1], parts[2])
        now, before = _answers(outcome), found.get(key)
        if now is not None and before is not None and now != before:
            raise QBenchError(
                f"tables: {outcome.cell} on {model} is there twice, with different answers: give the"
                " records of one run"
            )
        found[key] = before if now is None else now
    return found


def _answers(outcome: Outcome) -> _Answers | None:
    record: Mapping[str, Any] | None = outcome.record
    if record is None:
        return None
    names = ("item_ids", "reference_correct", "quantized_correct")
    return _Answers(outcome.cell, *(tuple(record[name]) for name in names))


def _columns(met: Sequence[str], given: Sequence[str] | None) -> tuple[Column, ...]:
    """Families in the paper's order, then tasks of none in the run's; a family's tasks in the paper's."""
    family = {task: name for name, of_family in CATEGORIES.items() for task in of_family}
    paper = list(family)
    if given is None:
        met = sorted(met, key=lambda task: paper.index(task) if task in paper else len(paper))
    by_family: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for task in met:
        by_family.setdefault(family.get(task, task), []).append(task)
    columns = []
    for name, tasks in by_family.items():
        columns += [Column(name, "accuracy", (task,)) for task in tasks]
        if len(tasks) > 1:
            columns.append(Column(name, "average", tuple(tasks)))
        if tasks:
            columns.append(Column(name, "drop", tuple(tasks)))
    return tuple(columns)


def _reference(
    model: str, cells: Mapping[tuple[str, str, str], _Answers | None]
) -> dict[str, _Answers]:
    """Full precision's answers by task, as those of a model that lost nothing."""
    found: dict[str, _Answers] = {}
    for (*_, task), one in cells.items():
        if one is None:
            continue
        other = found.setdefault(task, replace(one, after=one.before))
        if (one.ids, one.before) != (other.ids, other.before):
            raise QBenchError(
                f"tables: full precision of {model} answers {task} in two ways, {_told(one)} and"
                f" {_told(other)}: give the records of one run, on the same items"
            )
    return found


def _told(one: _Answers) -> str:
    return f"{sum(one.before)} of {len(one.before)} right ({one.cell})"


def _value(column: Column, answers: Mapping[str, _Answers | None]) -> Value:
    """The accuracy of a column's tasks, which full precision has too; its drop is none."""
    found = _all_of(column, answers)
    if not found or column.kind == "drop":
        return Value(None)
    return Value(fmean(100.0 * sum(one.after) / len(one.after) for one in found))


def _drop(column: Column, answers: Mapping[str, _Answers | None], interval: bool) -> Value:
    found = _all_of(column, answers)
    if not any(any(one.before) for one in found):
        return Value(None)  # not measured; or nothing was right that could be lost
    before, after = ([fmean(getattr(one, side)) for one in found] for side in ("before", "after"))
    return Value(drop_of_average(before, after), _interval(found) if interval else None)


def _all_of(column: Column, answers: Mapping[str, _Answers | None]) -> list[_Answers]:
    """The answers of all of a column's tasks; of none, where some are missing."""
    found = [one for task in column.tasks if (one := answers.get(task)) is not None]
    return found if len(found) == len(column.tasks) else []


def _interval(found: Sequence[_Answers]) -> tuple[float | None, float]:
    """Of one task as verdicts give it, of several as the paper's findings are judged."""
    from dllm_qbench.verdict.averages import TaskAnswers, interval_of_tasks
    from dllm_qbench.verdict.statistics import Pairs, drop_interval

    if len(found) == 1:
        return drop_interval(Pairs.count(found[0].before, found[0].after))
    low, high = interval_of_tasks([TaskAnswers(one.ids, one.before, one.after) for one in found])
    return (None if low == float("-inf") else low), high


def _row_order(row: tuple[str, str]) -> tuple[Any, ...]:
    method, scheme = row
    known = METHODS.index(method) if method in METHODS else len(METHODS)
    return scheme_order(scheme), scheme, known, method


def _with_best(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Mark the best of each scheme and column, all of them where they are shown alike."""
    marked = []
    for row in rows:
        rivals = [other for other in rows if other.scheme == row.scheme and not other.is_reference]
        values = []
        for at, (value, column) in enumerate(zip(row.values, columns, strict=True)):
            others = [
                float(other.values[at].shown)
                for other in rivals
                if other.values[at].number is not None
            ]
            best = False
            if value.number is not None and not row.is_reference and len(others) > 1:
                first = min(others) if column.kind == "drop" else max(others)
                best = float(value.shown) == first
            values.append(replace(value, best=best))
        marked.append(replace(row, values=tuple(values)))
    return tuple(marked)
