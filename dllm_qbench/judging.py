"""Cells of a command, measured and judged outside of pytest: what ``qbench run`` and ``check`` share.

A cell is judged by its own baseline where the model's file has one, else by that of a quantizer ``like``
it, else by its audits alone: then its drop is told with its interval, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_qbench.baselines import read_baselines, write_cell
from dllm_qbench.errors import BaselineError, QBenchError
from dllm_qbench.outcomes import INFORMATIONAL, Outcome
from dllm_qbench.tasks import TASKS
from dllm_qbench.terminal import summary_lines
from dllm_qbench.terminal_table import WIDTH, Line
from dllm_qbench.verdict.alike import find_like, judge_cell

if TYPE_CHECKING:
    from dllm_qbench.engine.cells import CellRunner
    from dllm_qbench.evaluation.evaluate import Progress
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.matrix import MatrixFinding

Judge = Callable[["Record", Callable[[str], str]], Outcome]
"""Makes an outcome of a record; asks what kind of error a module shows where the cell fails."""


@dataclass(frozen=True)
class Rules:
    """By what cells are judged.

    Attributes:
        tests: how many statistical tests the run makes at most.
        like: ``method/scheme`` of the shipped cell whose band holds for cells without a baseline.
        update: judge a cell by the baseline that it would become.
    """

    tests: int
    like: str | None = None
    strict: bool = False
    update: bool = False


def judge_of(rules: Rules, path: Path, model: str, cell: str) -> Judge:
    """Find what a cell is judged by, before anything is measured.

    Args:
        path: the file of the model's baselines; it need not exist.
        cell: ``method/scheme/task``.

    Raises:
        BaselineError: the file cannot be read, or no shipped cell has the name that ``like`` gives.
    """
    own = path.exists() and cell in read_baselines(path).cells
    like = None
    if rules.like is not None and not own:
        like = find_like(rules.like, cell.rpartition("/")[2], model)

    def judged(record: Record, look: Callable[[str], str]) -> Outcome:
        if not (rules.update or own or like is not None):
            return _unjudged(record)
        verdict, new = judge_cell(record, path, like, rules.update, rules.tests)
        fails = verdict.fails(rules.strict)
        if fails and verdict.place is not None and verdict.place.first:
            verdict = replace(verdict, symptom=look(verdict.place.first))
        made = Outcome.of_verdict(record, verdict, fails, new is not None)
        return replace(made, verdict={**(made.verdict or {}), "message": verdict.message})

    return judged


def _unjudged(record: Record) -> Outcome:
    """A cell with nothing to be judged by: its audits may fail it all the same."""
    if not record.audit_findings:
        return Outcome.of_measurement(record, "no baseline of its own, and no like cell named")
    text = "\n".join(f"  audit {finding}" for finding in record.audit_findings)
    return Outcome.of_measurement(record, text, status="degraded")


def measured(
    runner: CellRunner,
    quantized: DiffusionLM,
    task: str,
    judged: Judge,
    progress: Progress | None = None,
) -> Outcome:
    """Measure a cell and judge it; an error becomes its outcome, but for one of the baselines."""
    recipe = quantized.recipe or {}
    cell, record = f"{recipe['method']}/{recipe['scheme']}/{task}", None
    try:
        record = runner.measure(quantized, task, progress)
        return judged(record, partial(runner.symptom, quantized, task))
    except BaselineError:
        raise  # what it is compared with is unusable: bad input, not a bad quantizer
    except Exception as error:
        return Outcome.of_error(cell, quantized.name, error, record)


def write_baseline(path: Path, outcome: Outcome) -> Sequence[Path]:
    """Write an outcome as its cell's baseline; the file, where it changed."""
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.bands import Band

    band = Band.from_dict((outcome.verdict or {})["band"])
    return [path] if write_cell(path, Record.from_dict(outcome.record), band) else []


def told(
    outcomes: Sequence[Outcome], whole: Sequence[MatrixFinding], verbosity: int = 0
) -> list[Line]:
    """What a person reads of judged cells: the summary, why each failing one fails, the whole run."""
    lines = summary_lines(outcomes, WIDTH, verbosity)
    for outcome in outcomes:
        if outcome.fails:
            lines += [("", None), *((text, None) for text in outcome.message.splitlines())]
    if whole:
        lines += [("", None), *((f"whole run: {finding.text}", "red") for finding in whole)]
    if verbosity >= 0 and any(outcome.status == INFORMATIONAL for outcome in outcomes):
        lines.append(
            (
                "informational: no baseline of its own, and none named by --like; only the audits can fail",
                None,
            )
        )
    return lines


def checked_tasks(tasks: Sequence[str], items: int) -> None:
    """Raise ``QBenchError`` unless the tasks are known ones, at least one, and so are the items."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise QBenchError(
            f"--tasks is {','.join(tasks)!r}, expected one or more of {', '.join(TASKS)}"
        )
    if items < 1:
        raise QBenchError(f"--items is {items}, expected 1 or more")
