"""``qbench run``: the quick tier's cells measured and judged without a test written for them.

Notable:
- a model is loaded, and a quantized one made, when the first of its cells has to be measured;
- with a record file each cell is kept as soon as it is known, and a run that was killed goes on where it
  was (``run_records.py``). What was kept is judged again, which costs nothing: baselines may have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_qbench.baseline_paths import HOME, baseline_path, shipped_baselines
from dllm_qbench.errors import BaselineError, QBenchError
from dllm_qbench.judging import Judge, Rules, checked_tasks, judge_of, measured, told
from dllm_qbench.models.hub import locate
from dllm_qbench.outcomes import Outcome
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.run_records import Kept
from dllm_qbench.run_view import whole_run
from dllm_qbench.terminal import header
from dllm_qbench.terminal_table import Line
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.matrix import MatrixFinding

if TYPE_CHECKING:
    from dllm_qbench.engine.cells import CellRunner
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.progress import RunProgress


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        models: shipped ones, or checkpoint folders.
        quantizers: pairs of a method and a scheme; a method with a colon is a user's function.
        baselines: folder of the models' own; ``None``: those of the working folder, else the shipped.
        records: file to keep outcomes in, and to go on from.
    """

    models: tuple[str, ...]
    quantizers: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]
    items: int = 500
    device: str = "cpu"
    baselines: Path | None = None
    like: str | None = None
    strict: bool = False
    records: Path | None = None

    def __post_init__(self) -> None:
        checked_tasks(self.tasks, self.items)
        if not self.models:
            raise QBenchError("--model is empty, expected one or more models")
        if self.baselines is not None and not self.baselines.is_dir():
            raise QBenchError(f"--baselines: {self.baselines} is no folder")
        if self.records is not None and self.records.is_dir():
            raise QBenchError(f"--records: {self.records} is a folder")

    @property
    def cells(self) -> int:
        """How many cells the run has."""
        return len(self.models) * len(self.quantizers) * len(self.tasks)

    def baseline_file(self, model: str) -> Path:
        """The file of a model's baselines; it need not exist where nothing is shipped for the model."""
        path = baseline_path(self.baselines or HOME, model)
        if self.baselines is not None or path.exists():
            return path
        try:
            return shipped_baselines(model)
        except BaselineError:
            return path


@dataclass(frozen=True)
class Ran:
    """What came of a run: a cell each, how many of them were kept from before, and the whole."""

    models: tuple[str, ...]
    items: int
    baselines: str
    outcomes: tuple[Outcome, ...]
    kept: int
    whole: tuple[MatrixFinding, ...]
    records: Path | None

    @property
    def fails(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.whole or any(outcome.fails for outcome in self.outcomes))

    def lines(self, verbosity: int = 0) -> list[Line]:
        """What a person reads."""
        head = header(self.models, self.items, self.baselines) if verbosity >= 0 else []
        if self.kept and verbosity >= 0:
            head.append(
                f"qbench: {self.kept} of {len(self.outcomes)} cells were measured before, in {self.records}"
            )
        foot = [f"records: {self.records}"] if self.records and verbosity >= -1 else []
        return [
            *((line, None) for line in head),
            *told(self.outcomes, self.whole, verbosity),
            *((line, None) for line in foot),
        ]

    def to_json(self) -> str:
        """The same for a program, with every record."""
        data = {
            "models": self.models,
            "cells": [asdict(outcome) for outcome in self.outcomes],
            "kept": self.kept,
            "whole_run": [finding.text for finding in self.whole],
            "fails": self.fails,
        }
        return json.dumps(data, indent=2, allow_nan=False)


def run(settings: Settings, progress: RunProgress | None = None) -> Ran:
    """Measure and judge every cell, or take it from the record file of a run that was not through.

    Raises:
        QBenchError: a model or a quantizer that cannot be loaded, or baselines that cannot be read. What
            goes wrong with one cell only is that cell's outcome.
    """
    say = progress or (lambda done, total, label: None)
    for model in settings.models:
        locate(model)
    say(0, 0, "loading torch")
    kept = Kept(settings.records, _what_measures(settings)) if settings.records else None
    rules = Rules(most_tests(settings.cells), settings.like, settings.strict)
    outcomes: list[Outcome] = []
    files: dict[str, None] = {}
    reused = 0
    for model in settings.models:
        say(0, 0, f"{model}: loading")
        of_model = _OfModel(settings, model, rules)
        files[str(of_model.path)] = None
        for cell in of_model.cells():
            record = None
            if kept is not None:
                record = kept.record(of_model.name, cell.name, settings.items, of_model.fingerprint)
            if record is not None:
                outcomes.append(cell.judged(record, cell.symptom))
                reused += 1
                continue
            if progress is not None:
                progress.begin(len(outcomes), settings.cells, len(outcomes) - reused)
            outcomes.append(cell.measure(progress))
            if kept is not None:
                kept.keep(outcomes[-1])
    if kept is not None:
        kept.finish(outcomes)
    whole = whole_run(outcomes)
    told_of = ", ".join(files)
    return Ran(
        settings.models, settings.items, told_of, tuple(outcomes), reused, whole, settings.records
    )


def _what_measures(settings: Settings) -> dict[str, object]:
    """What records of a run depend on beside model, cell and recipe: code, libraries, device, items."""
    from dllm_qbench.engine.store import code_version
    from dllm_qbench.evaluation.provenance import device_name, versions
    from dllm_qbench.models.loading import usable_device
    from dllm_qbench.run_records import source_version
    from dllm_qbench.subjects.quantizers import find_subject

    subjects = {method for method, _ in settings.quantizers if ":" in method}
    return {
        "code": code_version(),
        "subjects": {name: source_version(find_subject(name)) for name in sorted(subjects)},
        "versions": versions(),
        "device": device_name(usable_device(settings.device)),
        "items": settings.items,
    }


class _OfModel:
    """The cells of one model, and what they share."""

    def __init__(self, settings: Settings, model: str, rules: Rules) -> None:
        from dllm_qbench.engine.cells import CellRunner

        self._settings, self._rules = settings, rules
        self.runner: CellRunner = CellRunner(model, settings.items, settings.device)
        self.path = settings.baseline_file(self.runner.lm.name)

    @property
    def name(self) -> str:
        return self.runner.lm.name

    @property
    def fingerprint(self) -> str:
        return self.runner.lm.fingerprint()

    def cells(self) -> Iterator[_Cell]:
        """Every cell, with what it is judged by: bad input is found before anything is measured."""
        from dllm_qbench.subjects.quantizers import Subject

        found = []
        for method, scheme in self._settings.quantizers:
            subject = Subject.of(method) if ":" in method else None
            called = method if subject is None else subject.method
            quantizer = _Quantizer(self.runner, method, scheme)
            for task in self._settings.tasks:
                cell = f"{called}/{Scheme.parse(scheme)}/{task}"
                judged = judge_of(self._rules, self.path, self.name, cell)
                found.append(_Cell(cell, task, quantizer, judged, self.runner))
        yield from found


class _Quantizer:
    """A quantized model that is made when it is needed, once."""

    def __init__(self, runner: CellRunner, method: str, scheme: str) -> None:
        self._runner, self._method, self._scheme = runner, method, scheme

    @cached_property
    def made(self) -> DiffusionLM:
        if ":" in self._method:
            return self._runner.subject(self._method, self._scheme)
        return self._runner.quantized(self._method, self._scheme)


@dataclass(frozen=True)
class _Cell:
    """One cell to be measured."""

    name: str
    task: str
    quantizer: _Quantizer
    judged: Judge
    runner: CellRunner

    def measure(self, progress: Callable[[int, int, str], None] | None) -> Outcome:
        say = progress or (lambda done, total, label: None)
        try:
            say(0, 0, f"{self.name}: quantizing")
            quantized = self.quantizer.made
            say(0, 0, f"{self.name}: auditing")
            self.runner.audited(quantized)
        except Exception as error:
            return Outcome.of_error(self.name, self.runner.lm.name, error, None)
        return measured(self.runner, quantized, self.task, self.judged, progress)

    def symptom(self, module: str) -> str:
        return self.runner.symptom(self.quantizer.made, self.task, module)
