"""``qbench check``: a quantized checkpoint on disk, audited, measured and judged like any other subject.

A cell is judged by its own baseline where the folder has one, else by that of a quantizer ``like`` it,
else by its audits alone: then its drop is told with its interval, and fails nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.baselines import baseline_path, read_baselines, write_cell
from dllm_qbench.errors import BaselineError, QBenchError
from dllm_qbench.outcomes import INFORMATIONAL, Outcome, OutcomeFile
from dllm_qbench.tasks import TASKS
from dllm_qbench.terminal import plain_summary
from dllm_qbench.verdict.alike import find_like, judge_cell
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.matrix import MatrixFinding, judge_matrix

if TYPE_CHECKING:
    from dllm_qbench.engine.cells import CellRunner
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.records import Record

COLUMNS: Final = 100


@dataclass(frozen=True)
class Settings:
    """What to check, and how.

    Attributes:
        path: the checkpoint; ``reference``: name or folder of its full-precision model.
        method: what to call the quantizer in cells; ``None`` takes what the checkpoint says.
        baselines: folder with the model's own; ``like``: ``method/scheme`` of the shipped cell whose band
            holds where it has none.
        update: write the baselines; ``records``: file to keep outcomes in.
    """

    path: Path
    reference: str
    tasks: tuple[str, ...]
    items: int = 500
    device: str = "cpu"
    method: str | None = None
    baselines: Path = Path("baselines")
    like: str | None = None
    strict: bool = False
    update: bool = False
    records: Path | None = None

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise QBenchError(
                f"--tasks is {','.join(self.tasks)!r}, expected one or more of {', '.join(TASKS)}"
            )
        if self.items < 1:
            raise QBenchError(f"--items is {self.items}, expected 1 or more")


@dataclass(frozen=True)
class Checked:
    """What came of a check.

    Attributes:
        recipe: how the checkpoint says that it was made.
        audits, findings: which audits ran, and what they found.
        outcomes: a cell each; ``whole``: what only all cells together show.
        written: baseline files that were written.
    """

    path: Path
    model: str
    recipe: dict[str, Any]
    audits: tuple[str, ...]
    findings: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    whole: tuple[MatrixFinding, ...] = ()
    written: tuple[Path, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.findings or self.whole or any(outcome.fails for outcome in self.outcomes))

    def text(self) -> str:
        """What a person reads: what was found, the table, and why each failing cell fails."""
        lines = [
            f"{self.path}: {self.recipe['method']} {self.recipe['scheme']} of {self.model},"
            f" {self.recipe['parameters'].get('format', 'own format')}",
            f"audits: {', '.join(self.audits)}: {len(self.findings) or 'no'} finding(s)",
            *(f"  {finding}" for finding in self.findings),
            "",
            *plain_summary(self.outcomes, COLUMNS),
        ]
        for outcome in self.outcomes:
            if outcome.fails:
                lines += ["", outcome.message]
        lines += ["", *(f"whole run: {finding.text}" for finding in self.whole)] * bool(self.whole)
        lines += [f"baselines written to {path}: review the change" for path in self.written]
        if any(outcome.status == INFORMATIONAL for outcome in self.outcomes):
            lines.append(
                "informational: no baseline of its own, and none named by --like; only the audits can fail"
            )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for a program, with every record."""
        data = {
            "checkpoint": str(self.path),
            "model": self.model,
            "recipe": self.recipe,
            "audits": self.audits,
            "findings": self.findings,
            "cells": [asdict(outcome) for outcome in self.outcomes],
            "whole_run": [finding.text for finding in self.whole],
            "written": [str(path) for path in self.written],
            "fails": self.fails,
        }
        return json.dumps(data, indent=2, allow_nan=False)


def check(settings: Settings) -> Checked:
    """Read, audit, measure and judge a checkpoint.

    Raises:
        QBenchError: a checkpoint or a reference that cannot be read, an unknown task, baselines that cannot
            be read, or no shipped cell of the name that ``like`` gives.
    """
    from dllm_qbench.checkpoints.reading import read_checkpoint
    from dllm_qbench.engine.cells import CellRunner

    runner = CellRunner(settings.reference, settings.items, settings.device)
    quantized = read_checkpoint(settings.path, runner.lm, settings.method)
    recipe = dict(quantized.recipe or {})
    judges = {task: _judge_of(settings, runner.lm.name, recipe, task) for task in settings.tasks}
    report = runner.audited(quantized)
    kept = OutcomeFile(settings.records) if settings.records is not None else None
    outcomes = []
    written: list[Path] = []
    for task, judged in judges.items():
        outcome = _outcome(settings, runner, quantized, task, judged)
        outcomes.append(outcome)
        if kept is not None:
            kept.append(outcome)
        if settings.update and outcome.to_write:
            written += _write(settings, outcome)
    tests = [outcome.tests for outcome in outcomes]
    whole = judge_matrix([cell for cell in tests if cell is not None])
    return Checked(
        settings.path,
        runner.lm.name,
        recipe,
        report.audits,
        report.findings,
        tuple(outcomes),
        whole,
        tuple(dict.fromkeys(written)),
    )


Judge = Callable[["Record", Callable[[str], str]], Outcome]


def _judge_of(settings: Settings, model: str, recipe: dict[str, Any], task: str) -> Judge:
    """Find what a cell is judged by, before anything is measured."""
    path = baseline_path(settings.baselines, model)
    cell = f"{recipe['method']}/{recipe['scheme']}/{task}"
    own = path.exists() and cell in read_baselines(path).cells
    tests = most_tests(len(settings.tasks))
    like = None
    if settings.like is not None and not own:
        like = find_like(settings.like, task, model)

    def judged(record: Record, look: Callable[[str], str]) -> Outcome:
        if not (settings.update or own or like is not None):
            return _unjudged(record)
        verdict, new = judge_cell(record, path, like, settings.update, tests)
        fails = verdict.fails(settings.strict)
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


def _outcome(
    settings: Settings, runner: CellRunner, quantized: DiffusionLM, task: str, judged: Judge
) -> Outcome:
    recipe = quantized.recipe or {}
    cell, record = f"{recipe['method']}/{recipe['scheme']}/{task}", None
    try:
        record = runner.measure(quantized, task)
        return judged(record, partial(runner.symptom, quantized, task))
    except BaselineError:
        raise  # what it is compared with is unusable: bad input, not a bad checkpoint
    except Exception as error:
        return Outcome.of_error(cell, quantized.name, error, record)


def _write(settings: Settings, outcome: Outcome) -> Sequence[Path]:
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.bands import Band

    path = baseline_path(settings.baselines, outcome.model)
    band = Band.from_dict((outcome.verdict or {})["band"])
    return [path] if write_cell(path, Record.from_dict(outcome.record), band) else []
