"""What only a whole run can say: which findings hold when every cell is looked at.

A run of k tests at level alpha each raises k * alpha false alarms on average. Here all tests of a run
are one family, and the chance that an unchanged quantizer is called changed anywhere in it is at most
``ALPHA_RUN``, whatever the dependence between tests: Holm, "A simple sequentially rejective multiple
test procedure", Scandinavian Journal of Statistics 6 (1979) 65-70.

A small loss that shows on no task alone shows on all tasks of one quantized model together: their
items are different, their weights are the same. So each quantized model with several tasks adds one
pooled test to the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dllm_qbench.verdict.statistics import holm, mcnemar_worse

ALPHA_RUN: Final = 0.01
"""Chance of any false alarm in a whole run of an unchanged quantizer, at most."""
POOLED: Final = "pooled answers"
"""Name of the test over all tasks of one quantized model."""


@dataclass(frozen=True)
class CellTests:
    """The tests of one cell (``method/scheme/task``), and its answers against the baseline's.

    ``lost`` and ``gained`` of ``common`` items; ``margin`` is the net loss in items that a benign
    change may have. ``p_values`` holds every test of the cell by name, that of the answers included.
    ``ValueError`` for a p-value outside 0 to 1 and for a cell that is not written in three parts.
    """

    model: str
    cell: str
    p_values: Mapping[str, float]
    lost: int
    gained: int
    common: int
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.cell.count("/") != 2:
            raise ValueError(f"cell {self.cell!r}: expected method/scheme/task")
        for name, value in self.p_values.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"{self.cell} on {self.model}: the p-value of {name!r} is {value}, "
                    "expected a number from 0 to 1"
                )

    @property
    def quantized_model(self) -> tuple[str, str]:
        """Model and ``method/scheme``: what the tasks of one quantized model share."""
        return self.model, self.cell.rpartition("/")[0]


@dataclass(frozen=True)
class MatrixFinding:
    """A hypothesis that the whole run rejects.

    Attributes:
        scope: one cell, or all tasks of one quantized model together.
        cell: ``method/scheme/task``, or ``method/scheme`` for a quantized model.
        test: the name in ``CellTests.p_values``, or ``POOLED``.
        p_value: of this test alone. adjusted: by Holm; at most the run's alpha.
        cells: the cells that the finding rests on.
    """

    scope: Literal["cell", "quantized model"]
    model: str
    cell: str
    test: str
    p_value: float
    adjusted: float
    cells: tuple[str, ...]
    text: str


def cell_alpha(tests_in_run: int) -> float:
    """Level for one test while the rest of its run is unknown: an equal share of ``ALPHA_RUN``.

    What is rejected at this level is rejected by Holm at the end too, if the run has no more tests
    than that; Holm can only add.
    """
    if tests_in_run < 1:
        raise ValueError(f"tests_in_run is {tests_in_run}, expected 1 or more")
    return ALPHA_RUN / tests_in_run


def family_size(cells: Sequence[CellTests]) -> int:
    """Size of the family: every p-value, and a pooled test a quantized model with several tasks."""
    return len(_family(cells, ALPHA_RUN))


def judge_matrix(cells: Sequence[CellTests], alpha: float = ALPHA_RUN) -> tuple[MatrixFinding, ...]:
    """All findings of a run that hold at family-wise level ``alpha``, the surest first.

    The order of ``cells`` does not matter, except among equally sure findings. ``ValueError`` when a
    cell comes twice: its tests would count twice.
    """
    family = _family(cells, alpha)
    adjusted = holm([hypothesis.p_value for hypothesis in family])
    found = [
        _finding(hypothesis, value, alpha)
        for hypothesis, value in zip(family, adjusted, strict=True)
        if value <= alpha
    ]
    return tuple(sorted(found, key=lambda finding: (finding.adjusted, finding.p_value)))


@dataclass(frozen=True)
class _Hypothesis:
    test: str
    p_value: float
    cells: tuple[CellTests, ...]


def _family(cells: Sequence[CellTests], alpha: float) -> list[_Hypothesis]:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}, expected a probability between 0 and 1")
    seen: set[tuple[str, str]] = set()
    models: dict[tuple[str, str], list[CellTests]] = {}
    for cell in cells:
        if (cell.model, cell.cell) in seen:
            raise ValueError(f"{cell.cell} on {cell.model} comes twice; a run has each cell once")
        seen.add((cell.model, cell.cell))
        models.setdefault(cell.quantized_model, []).append(cell)
    family = [
        _Hypothesis(test, p_value, (cell,))
        for cell in cells
        for test, p_value in cell.p_values.items()
    ]
    # One task alone would only be tested twice.
    pooled = [tuple(tasks) for tasks in models.values() if len(tasks) > 1]
    return family + [_Hypothesis(POOLED, _pooled_p_value(tasks), tasks) for tasks in pooled]


def _pooled_p_value(tasks: Sequence[CellTests]) -> float:
    """Exact McNemar on the summed counts: given its discordant pairs, each task's losses are binomial
    with the same share under the hypothesis, so their sum is too.
    """
    return mcnemar_worse(
        sum(task.lost for task in tasks),
        sum(task.gained for task in tasks),
        sum(task.margin for task in tasks),
    )


def _finding(hypothesis: _Hypothesis, adjusted: float, alpha: float) -> MatrixFinding:
    first = hypothesis.cells[0]
    names = tuple(task.cell for task in hypothesis.cells)
    certainty = (
        f"p = {hypothesis.p_value:.1g}, {adjusted:.1g} after Holm over the run, at most {alpha:g}"
    )
    pooled = hypothesis.test == POOLED
    if pooled:
        cell = first.quantized_model[1]
        lost = sum(task.lost for task in hypothesis.cells)
        gained = sum(task.gained for task in hypothesis.cells)
        common = sum(task.common for task in hypothesis.cells)
        margin = sum(task.margin for task in hypothesis.cells)
        allowed = f", {margin:g} more than gained are allowed" if margin else ""
        each = ", ".join(
            f"{task.cell.rpartition('/')[2]} {task.lost}:{task.gained}" for task in hypothesis.cells
        )
        text = (
            f"{cell} on {first.model}: worse than the baseline over its {len(names)} tasks together: "
            f"{lost} answers became wrong and {gained} right on {common} common items{allowed} "
            f"({each}); {certainty}"
        )
    else:
        cell = first.cell
        text = f"{cell} on {first.model}: {hypothesis.test} left its baseline; {certainty}"
    return MatrixFinding(
        scope="quantized model" if pooled else "cell",
        model=first.model,
        cell=cell,
        test=hypothesis.test,
        p_value=hypothesis.p_value,
        adjusted=adjusted,
        cells=names,
        text=text,
    )
