"""One pytest session: its options, the cells that it judged, and what it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from dllm_qbench.engine.cells import CellRunner
    from dllm_qbench.outcomes import Outcome, OutcomeFile
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.judge import Verdict

PROPERTY: Final = "qbench"
"""Name of the user property that carries an outcome."""


@dataclass(frozen=True)
class Settings:
    """The options of one run; command line before configuration file."""

    models: tuple[str, ...]
    items: int
    baselines: Path
    records: Path | None
    strict: bool
    update: bool
    update_pass: bool

    @classmethod
    def of(cls, config: pytest.Config) -> Settings:
        """Read and check the options; ``pytest.UsageError`` on a bad one."""
        items = _option(config, "items")
        if not str(items).isdecimal() or int(items) < 1:
            raise pytest.UsageError(f"--qbench-items is {items!r}, expected a count of at least 1")
        records = _option(config, "records")
        given = str(_option(config, "model")).split(",")
        models = tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
        if not models:
            raise pytest.UsageError("--qbench-model is empty, expected one or more models")
        update_pass = bool(config.getoption("qbench_update_pass"))
        settings = cls(
            models=models,
            items=int(items),
            baselines=config.rootpath / str(_option(config, "baselines")),
            records=config.invocation_params.dir / str(records) if records else None,
            strict=bool(config.getoption("qbench_strict") or config.getini("qbench_strict")),
            update=bool(config.getoption("qbench_update")) or update_pass,
            update_pass=update_pass,
        )
        if settings.records and settings.records.is_dir():
            raise pytest.UsageError(f"--qbench-records: {settings.records} is a folder")
        if settings.update and not update_pass and _in_ci():
            raise pytest.UsageError(
                "--qbench-update is refused under CI=true, where nobody reviews what it writes; "
                "--qbench-update-pass insists"
            )
        return settings


@dataclass(frozen=True)
class Judged:
    """A cell's verdict, what is reported of it, and why its test fails (``None``: it does not)."""

    verdict: Verdict
    outcome: Outcome
    wrong: str | None


class Run:
    """State of one pytest session; registered as a plugin, to see the reports of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.settings = Settings.of(config)
        self.on_worker = hasattr(config, "workerinput")
        self.outcomes: dict[tuple[str, str, str], Outcome] = {}
        self.written: list[str] = []
        self._runners: dict[str, CellRunner] = {}
        self._file: OutcomeFile | None = None

    def runner(self, model: str) -> CellRunner:
        """Runs cells of a model; made when first needed, because torch comes with it."""
        if model not in self._runners:
            from dllm_qbench.engine.cells import CellRunner

            self._runners[model] = CellRunner(model, self.settings.items)
        return self._runners[model]

    def release(self, model: str) -> None:
        """Let go of a model and of all that was made of it: its tests are through."""
        self._runners.pop(model, None)

    def baseline_file(self, model: str) -> Path:
        """Where the baselines of a model are, or are to be."""
        from dllm_qbench.baselines import baseline_path

        return baseline_path(self.settings.baselines, model)

    def judge(self, record: Record) -> Judged:
        """Judge a measured cell; with ``--qbench-update``, against the baseline that it becomes."""
        from dllm_qbench.baselines import preview_cell
        from dllm_qbench.outcomes import Outcome
        from dllm_qbench.verdict.judge import judge

        path = self.baseline_file(record.model)
        new = preview_cell(path, record) if self.settings.update else None
        verdict = judge(record, new or path)
        wrong = verdict.message if verdict.fails(self.settings.strict) else None
        if new is not None:
            said = f"{record.cell}: baseline written to {path} (band {new.band})"
            if wrong:
                wrong = f"{said}, but the band it keeps does not allow this: edit it\n{wrong}"
            elif not self.settings.update_pass:
                wrong = f"{said}: review the change, then run without --qbench-update"
        outcome = Outcome.of_verdict(record, verdict, wrong is not None, new is not None)
        return Judged(verdict, outcome, wrong)

    def collect(self, test: str, outcome: Outcome) -> None:
        """Keep an outcome, once; write what is to be written, unless on an xdist worker."""
        from dllm_qbench.outcomes import Outcome, OutcomeFile

        # The form that a report carries, to know it again when the report comes.
        outcome = Outcome.from_json(outcome.to_json())
        key = (test, outcome.model, outcome.cell)
        if self.on_worker or self.outcomes.get(key) == outcome:
            return
        self.outcomes[key] = outcome
        if self.settings.records:
            self._file = self._file or OutcomeFile(self.settings.records)
            self._file.append(outcome)
        if outcome.to_write and self.settings.update:
            from dllm_qbench.baselines import write_cell
            from dllm_qbench.records import Record

            path = self.baseline_file(outcome.model)
            if write_cell(path, Record.from_dict(outcome.record)):
                self.written.append(str(path))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what an xdist worker measured; without xdist it is known already."""
        from dllm_qbench.outcomes import Outcome

        if report.when == "call":
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self.collect(report.nodeid, Outcome.from_json(str(value)))

    def notes(self) -> list[str]:
        """Lines below the table: what was written."""
        notes = [
            f"{self.written.count(path)} baselines written to {path}: review the change"
            for path in sorted(set(self.written))
        ]
        if self.settings.records and self.outcomes:
            notes.append(f"records: {self.settings.records}")
        return notes


def _option(config: pytest.Config, name: str) -> Any:
    given = config.getoption(f"qbench_{name}")
    return config.getini(f"qbench_{name}") if given is None else given


def _in_ci() -> bool:
    return os.environ.get("CI", "").strip().lower() in {"1", "true", "yes"}
