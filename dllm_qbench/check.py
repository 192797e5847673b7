"""``qbench check``: a quantized checkpoint on disk, audited, measured and judged like any other subject."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_qbench.baselines import baseline_path
from dllm_qbench.judging import (
    Rules,
    checked_tasks,
    judge_of,
    measured,
    told,
    write_baseline,
)
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.run_view import whole_run
from dllm_qbench.terminal_table import Line
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.matrix import MatrixFinding

if TYPE_CHECKING:
    from dllm_qbench.evaluation.evaluate import Progress


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
        checked_tasks(self.tasks, self.items)


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

    def text(self, verbosity: int = 0) -> str:
        """What a person reads: what was found, the table, and why each failing cell fails."""
        return "\n".join(text for text, _ in self.lines(verbosity))

    def lines(self, verbosity: int = 0) -> list[Line]:
        """The same, each line with its colour; quiet, what is well goes unsaid."""
        head = [
            f"{self.path}: {self.recipe['method']} {self.recipe['scheme']} of {self.model},"
            f" {self.recipe['parameters'].get('format', 'own format')}",
            f"audits: {', '.join(self.audits)}: {len(self.findings) or 'no'} finding(s)",
            *(f"  {finding}" for finding in self.findings),
        ]
        shown = head if verbosity >= 0 or self.findings else []
        written = [f"baselines written to {path}: review the change" for path in self.written]
        return [
            *((text, None) for text in shown),
            *([("", None)] * (verbosity >= 0)),
            *told(self.outcomes, self.whole, verbosity),
            *((text, None) for text in written),
        ]

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


def check(settings: Settings, progress: Progress | None = None) -> Checked:
    """Read, audit, measure and judge a checkpoint; ``progress`` is told what is being done.

    Raises:
        QBenchError: a checkpoint or a reference that cannot be read, an unknown task, baselines that cannot
            be read, or no shipped cell of the name that ``like`` gives.
    """
    from dllm_qbench.checkpoints.reading import read_checkpoint
    from dllm_qbench.engine.cells import CellRunner

    say = progress or (lambda done, total, label: None)
    say(0, 0, f"{settings.path}: reading")
    runner = CellRunner(settings.reference, settings.items, settings.device)
    quantized = read_checkpoint(settings.path, runner.lm, settings.method)
    recipe = dict(quantized.recipe or {})
    model, path = runner.lm.name, baseline_path(settings.baselines, runner.lm.name)
    rules = Rules(most_tests(len(settings.tasks)), settings.like, settings.strict, settings.update)
    judges = {
        task: judge_of(rules, path, model, f"{recipe['method']}/{recipe['scheme']}/{task}")
        for task in settings.tasks
    }
    say(0, 0, f"{settings.path}: auditing")
    report = runner.audited(quantized)
    kept = OutcomeFile(settings.records) if settings.records is not None else None
    outcomes = []
    written: list[Path] = []
    for task, judged in judges.items():
        outcome = measured(runner, quantized, task, judged, progress)
        outcomes.append(outcome)
        if kept is not None:
            kept.append(outcome)
        if settings.update and outcome.to_write:
            written += write_baseline(path, outcome)
    return Checked(
        settings.path,
        model,
        recipe,
        report.audits,
        report.findings,
        tuple(outcomes),
        whole_run(outcomes),
        tuple(dict.fromkeys(written)),
    )
