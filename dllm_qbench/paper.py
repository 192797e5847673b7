"""What "Quantization Meets dLLMs" (arXiv 2508.14896) printed: scores, misprints, and what they support.

``baselines/paper`` has a file for each model of its tables and one of findings. Nothing in them was
measured by this project, and no number is demanded of a cell unless the tables support a finding that
demands it: the rest is there to be compared with. ``tools/paper_baselines.py`` writes the files and
``paper_files.py`` reads them, strictly. Drops are relative, in percent of full precision's score,
positive where it is worse. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from dllm_qbench.errors import BaselineError
from dllm_qbench.verdict.bands import Band

CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "general": ("winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag", "mmlu"),
    "math": ("gsm8k", "minerva_math"),
    "code": ("humaneval", "mbpp"),
}
TASK_ITEMS: Final[Mapping[str, int]] = {
    "winogrande": 1267,
    "piqa": 1838,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "hellaswag": 10042,
    "mmlu": 14042,
    "gsm8k": 1319,
    "minerva_math": 5000,
    "humaneval": 164,
    "mbpp": 500,
}
"""Items of the split that lm-eval's definition of each task evaluates, all of which the paper scored."""
AVERAGE_TOLERANCE: Final = 0.11
"""Points: two roundings to a tenth, of the scores and of their average."""
DROP_TOLERANCE: Final = 0.2
"""Points by which a printed drop may miss that of its row's scores, for the same reason."""


@dataclass(frozen=True)
class PaperCell:
    """A printed score (percent) of one quantized model on one task, beside full precision's.

    ``band`` is ``None`` where nothing is demanded of the cell alone; ``why`` says what it rests on, or
    why there is none.
    """

    model: str
    cell: str
    score: float
    full_precision: float
    items: int
    table: int
    band: Band | None
    why: str

    @property
    def drop(self) -> float:
        """Relative drop in percent."""
        return 100.0 * (1.0 - self.score / self.full_precision)


@dataclass(frozen=True)
class PrintedAverage:
    """An average and a drop as printed, beside those of the same row's scores.

    ``quantized`` is ``method/scheme``, ``None`` for full precision. ``misprints`` names which of the
    printed numbers (``average``, ``drop``) the scores contradict.
    """

    model: str
    table: int
    quantized: str | None
    category: str
    tasks: tuple[str, ...]
    average: float
    drop: float | None
    recomputed_average: float
    recomputed_drop: float | None
    misprints: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Tasks of one quantized model (``method/scheme``); its drop is that of their average score."""

    model: str
    quantized: str
    tasks: tuple[str, ...]

    @property
    def category(self) -> str | None:
        """The one that all tasks are of, if there is one."""
        names = [name for name, tasks in CATEGORIES.items() if set(self.tasks) <= set(tasks)]
        return names[0] if names else None

    def __str__(self) -> str:
        return f"{self.quantized} on {self.model} ({tasks_in_words(self.tasks)})"


@dataclass(frozen=True)
class Claim:
    """One inequality about the drop of a group: exactly one of the three, else ``BaselineError``."""

    drop_of: Group
    at_most: float | None = None
    at_least: float | None = None
    above_that_of: Group | None = None

    def __post_init__(self) -> None:
        given = [self.at_most, self.at_least, self.above_that_of]
        if sum(one is not None for one in given) != 1:
            raise BaselineError(
                f"claim about {self.drop_of}: expected one of at_most, at_least and above_that_of"
            )

    @property
    def band(self) -> Band | None:
        """The limit as a band; ``None`` where two groups are compared."""
        if self.at_most is not None:
            return Band("near-lossless", max_drop=self.at_most)
        if self.at_least is not None:
            return Band("collapse", min_drop=self.at_least)
        return None

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"{self.drop_of}: a drop of at most {self.at_most:g} %"
        if self.at_least is not None:
            return f"{self.drop_of}: a drop of at least {self.at_least:g} %"
        return f"{self.drop_of}: a drop above that of {self.above_that_of}"


@dataclass(frozen=True)
class PaperFinding:
    """A statement as inequalities that a run can be held against; ``tables`` says where it stands."""

    name: str
    statement: str
    tables: tuple[int, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Paper:
    """All that is stored of the paper; ``cells`` by model and ``method/scheme/task``.

    Every claim of ``findings`` holds in the tables. ``contradicted`` is what the paper, or a reader of it,
    says too, and what at least one pair of rows contradicts: nothing is demanded there.
    """

    title: str
    arxiv: str
    version: str
    cells: Mapping[tuple[str, str], PaperCell]
    averages: tuple[PrintedAverage, ...]
    findings: tuple[PaperFinding, ...]
    contradicted: tuple[PaperFinding, ...] = ()

    @property
    def source(self) -> str:
        """``arXiv 2508.14896v3``."""
        return f"arXiv {self.arxiv}{self.version}"

    def cell(self, model: str, cell: str) -> PaperCell | None:
        """The printed score of ``method/scheme/task``, if there is one."""
        return self.cells.get((model, cell))

    def drop(self, group: Group) -> float:
        """Drop of the group's average score in percent, from the per-task scores.

        ``BaselineError`` names a task that the tables do not have.
        """
        found = [self.cells.get((group.model, f"{group.quantized}/{t}")) for t in group.tasks]
        for task, cell in zip(group.tasks, found, strict=True):
            if cell is None:
                raise BaselineError(
                    f"{self.source}: no score of {group.quantized} on {group.model} for task {task!r}"
                )
        cells = [cell for cell in found if cell is not None]
        return drop_of_average([c.full_precision for c in cells], [c.score for c in cells])

    def holds(self, claim: Claim) -> bool:
        """Whether a claim holds in the tables."""
        drop = self.drop(claim.drop_of)
        if claim.above_that_of is not None:
            return drop > self.drop(claim.above_that_of)
        return (claim.at_most is None or drop <= claim.at_most) and (
            claim.at_least is None or drop >= claim.at_least
        )

    def misprints(self, model: str, cell: str) -> tuple[PrintedAverage, ...]:
        """Printed averages over this cell's task, of the same quantized model, that are misprints."""
        quantized, _, task = cell.rpartition("/")
        return tuple(
            row
            for row in self.averages
            if row.misprints
            and (row.model, row.quantized) == (model, quantized)
            and task in row.tasks
        )


def drop_of_average(full_precision: Sequence[float], scores: Sequence[float]) -> float:
    """Relative drop, in percent, of the average score over tasks: what the paper's tables print."""
    return 100.0 * (1.0 - fmean(scores) / fmean(full_precision))


def tasks_in_words(tasks: Sequence[str]) -> str:
    """A category's name for all its tasks, else the tasks, general ones in short."""
    for name, of_category in CATEGORIES.items():
        if set(tasks) == set(of_category):
            return name
        if len(tasks) > 1 and set(tasks) < set(of_category):
            left_out = [task for task in of_category if task not in tasks]
            return f"{name} without {' and '.join(left_out)}"
    return ", ".join(tasks)


def misprints(
    average: float, drop: float | None, true_average: float, true_drop: float | None
) -> tuple[str, ...]:
    """Which printed numbers the row's scores contradict, by more than roundings explain."""
    wrong = ["average"] if abs(average - true_average) > AVERAGE_TOLERANCE else []
    if drop is not None and true_drop is not None and abs(drop - true_drop) > DROP_TOLERANCE:
        wrong.append("drop")
    return tuple(wrong)
