"""Two sets of measurements side by side, cell by cell: runs, stores, baselines, or the paper.

Drops are relative, in percent of full precision. The difference is the first side's drop minus the
second's: above zero the first is worse. Where both sides answered the same items they are paired; the
paper's own answers are not known, so nothing is paired with them. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import norm

from dllm_qbench.compare_sides import Measured, Name, Side, fit_for_the_paper, read_side
from dllm_qbench.errors import QBenchError
from dllm_qbench.verdict.averages import Difference, Task, TaskAnswers, compare_drops
from dllm_qbench.verdict.matrix import ALPHA_RUN
from dllm_qbench.verdict.paper import stored_paper
from dllm_qbench.verdict.paper_findings import FindingResult, judge_findings
from dllm_qbench.verdict.statistics import holm


@dataclass(frozen=True)
class Row:
    """One cell that both sides have.

    ``p_value`` is two-sided against equal drops; ``adjusted`` after Holm over all rows; ``misprints``
    says which printed averages of the same row of the paper's tables its scores contradict.
    """

    one: Measured
    other: Measured
    difference: Difference | None
    p_value: float
    adjusted: float = 1.0
    misprints: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What can be said of the first side at the family's level; empty: nothing."""
        if self.difference is None:
            return "no drop"
        if self.adjusted > ALPHA_RUN:
            return ""
        return "worse" if self.difference.value > 0 else "better"


@dataclass(frozen=True)
class Comparison:
    """Rows, the worst first; what only one side has; what the paper's findings say of each run."""

    one: str
    other: str
    rows: tuple[Row, ...]
    only_one: tuple[Name, ...]
    only_other: tuple[Name, ...]
    findings: tuple[tuple[str, tuple[FindingResult, ...]], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "one": self.one,
            "other": self.other,
            "rows": [_row_data(row) for row in self.rows],
            "only_one": [{"model": model, "cell": cell} for model, cell in self.only_one],
            "only_other": [{"model": model, "cell": cell} for model, cell in self.only_other],
            "findings": [
                {
                    "run": run,
                    "finding": result.finding.name,
                    "statement": result.finding.statement,
                    "tables": list(result.finding.tables),
                    "status": result.status,
                    "text": result.text,
                }
                for run, results in self.findings
                for result in results
            ],
            "notes": list(self.notes),
        }


def compare_runs(one: str | Path, other: str | Path) -> Comparison:
    """Compare two sides: each a record file, a store, a file or folder of baselines, or ``paper``.

    ``QBenchError`` names what cannot be read, and says so where the two have no cell in common.
    """
    left, right = read_side(one), read_side(other)
    both = [name for name in left.cells if name in right.cells]
    if not both:
        raise QBenchError(
            f"{left.name} and {right.name} have no cell in common: the first has {_some(left)}, the "
            f"second {_some(right)}; cells are compared by model and method/scheme/task"
        )
    rows = [_row(left.cells[name], right.cells[name]) for name in both]
    adjusted = holm([row.p_value for row in rows])
    rows = [replace(row, adjusted=p) for row, p in zip(rows, adjusted, strict=True)]
    # Without a drop first: something is broken there.
    rows.sort(key=lambda r: (r.difference is not None, -r.difference.value if r.difference else 0))
    findings = []
    for side in (left, right):
        fit = [record for record in side.records if fit_for_the_paper(record)]
        if fit:
            findings.append((side.name, judge_findings(fit)))
    return Comparison(
        left.name,
        right.name,
        tuple(rows),
        tuple(sorted(left.cells.keys() - right.cells.keys())),
        tuple(sorted(right.cells.keys() - left.cells.keys())),
        tuple(findings),
        (*_full_precision(rows), *left.notes, *right.notes),
    )


def report(one: str | Path, other: str | Path, form: str = "text") -> str:
    """Compare two sides and render it as ``text``, ``markdown`` or ``json``."""
    from dllm_qbench.compare_text import FORMS

    if form not in FORMS:
        raise QBenchError(f"format {form!r} is unknown; formats: {', '.join(FORMS)}")
    return FORMS[form](compare_runs(one, other))


def _row(one: Measured, other: Measured) -> Row:
    difference, p_value = None, 1.0
    if one.drop is not None and other.drop is not None:
        a, b = _paired(one, other)
        difference = compare_drops([a], [b])
        p_value = min(1.0, 2 * min(difference.p_above, difference.p_below))
    wrong = [
        f"table {row.table} {row.category} {' and '.join(row.misprints)}"
        for side in (one, other)
        if side.printed is not None
        for row in stored_paper().misprints(side.model, side.cell)
    ]
    return Row(one, other, difference, p_value, misprints=tuple(wrong))


def _full_precision(rows: Sequence[Row]) -> list[str]:
    """Say where full precision itself differs, task by task, as if the items were not paired."""
    found: dict[Name, tuple[float, float, float]] = {}
    for row in rows:
        (p, _), (q, _) = row.one.accuracies, row.other.accuracies
        share = (p * row.one.items + q * row.other.items) / (row.one.items + row.other.items) / 100
        error = 100 * math.sqrt(share * (1 - share) * (1 / row.one.items + 1 / row.other.items))
        p_value = 2 * float(norm.sf(abs(p - q) / error)) if error else 1.0
        found[row.one.model, row.one.cell.rpartition("/")[2]] = p, q, p_value
    adjusted = holm([p_value for *_, p_value in found.values()])
    differing = [
        f"{task} on {model} {p:.1f} and {q:.1f} %"
        for ((model, task), (p, q, _)), value in zip(found.items(), adjusted, strict=True)
        if value <= ALPHA_RUN
    ]
    if not differing:
        return []
    return [
        "Full precision itself differs beyond chance, so that it is not only the quantizer that does: "
        + "; ".join(differing)
    ]


def _paired(one: Measured, other: Measured) -> tuple[Task, Task]:
    """Both sides' answers under keys that are equal where the items are."""
    a, b = one.task, other.task
    if not isinstance(a, TaskAnswers) or not isinstance(b, TaskAnswers):
        return a, b
    size = min(a.items, b.items)
    if one.seed != other.seed or one.checks[:size] != other.checks[:size]:
        return replace(a, keys=[(1, key) for key in a.keys]), replace(
            b, keys=[(2, k) for k in b.keys]
        )
    return replace(a, keys=range(a.items)), replace(b, keys=range(b.items))


def _row_data(row: Row) -> dict[str, Any]:
    def side(measured: Measured) -> dict[str, Any]:
        full, quantized = measured.accuracies
        return {
            "items": measured.items,
            "full_precision": full,
            "quantized": quantized,
            "drop": measured.drop,
            "interval": measured.interval,
        }

    return {
        "model": row.one.model,
        "cell": row.one.cell,
        "one": side(row.one),
        "other": side(row.other),
        "difference": None if row.difference is None else asdict(row.difference),
        "p_value": row.p_value,
        "adjusted": row.adjusted,
        "word": row.word,
        "misprints": list(row.misprints),
    }


def _some(side: Side) -> str:
    (model, cell), *rest = sorted(side.cells)
    return f"{len(rest) + 1} such as {cell} on {model}"
