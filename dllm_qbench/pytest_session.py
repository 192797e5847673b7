"""One pytest session: its options, the cells that it judged, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from dllm_qbench.pytest_options import Settings
from dllm_qbench.pytest_report import ReportPage
from dllm_qbench.run_view import whole_run

if TYPE_CHECKING:
    from dllm_qbench.engine.cells import CellRunner
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.outcomes import Outcome, OutcomeFile
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.judge import Verdict
    from dllm_qbench.verdict.matrix import MatrixFinding
    from dllm_qbench.verdict.sequential import Watch

CELL_FIXTURES: Final = frozenset({"qbench_cell", "qbench_job"})
"""A test that uses one of them makes a cell."""
PROPERTY: Final = "qbench"
"""Name of the user property that carries an outcome."""


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
        self.cells_collected = 0
        self.matrix: tuple[MatrixFinding, ...] = ()
        self.wrong: list[str] = []
        self.told: list[str] = []
        self.not_written: list[str] = []
        self.page = None if self.on_worker else ReportPage(self.settings)
        self._runners: dict[str, CellRunner] = {}
        self._file: OutcomeFile | None = None

    def runner(self, model: str) -> CellRunner:
        """Runs cells of a model; made when first needed, because torch comes with it."""
        if model not in self._runners:
            from dllm_qbench.engine.cells import CellRunner

            given = self.settings
            self._runners[model] = CellRunner(model, given.items, given.device, given.execution)
        return self._runners[model]

    def release(self, model: str) -> None:
        """Let go of a model and of all that was made of it: its tests are through."""
        self._runners.pop(model, None)

    def baseline_file(self, model: str) -> Path:
        """Where the baselines of a model are, or are to be."""
        from dllm_qbench.baselines import baseline_path

        return baseline_path(self.settings.baselines, model)

    @property
    def tests_in_run(self) -> int:
        """At most how many tests the run makes."""
        from dllm_qbench.verdict.evidence import most_tests

        return most_tests(self.cells_collected)

    def watch(self, runner: CellRunner, quantized: DiffusionLM, cell: str) -> Watch | None:
        """What may stop a cell early, where that was asked for: the evidence against its baseline.

        ``None`` too where noise alone may lose as much as the smallest loss of interest: such a cell
        would be settled as equivalent by next to nothing.
        """
        if not self.settings.sequential:
            return None
        from dllm_qbench.baselines import read_baselines
        from dllm_qbench.quant.quantize import recipe_hash
        from dllm_qbench.verdict.evidence import are_alike
        from dllm_qbench.verdict.matrix import cell_alpha
        from dllm_qbench.verdict.sequential import DELTA, Sequential, Watch

        if self._borrows(quantized.name, cell) is not None:
            return None
        stored = read_baselines(self.baseline_file(quantized.name)).cell(cell)
        alike = are_alike(recipe_hash(quantized.recipe), runner.provenance, stored)
        margin = (stored.platform if alike else stored.draws).net_loss
        if margin >= DELTA:
            return None
        evidence = Sequential(stored.band, cell_alpha(self.tests_in_run), margin=margin)
        return Watch(evidence, stored.quantized_correct)

    def judge(
        self,
        record: Record,
        watch: Watch | None = None,
        look: Callable[[str], str] | None = None,
        like: str | None = None,
    ) -> Judged:
        """Judge a measured cell; with ``--qbench-update``, against the baseline that it becomes.

        ``look`` says of a module what kind of error it shows; it is asked about a cell that fails.
        ``like`` names a shipped cell whose band holds where there is no baseline yet, and is the first
        band of one that is written.
        """
        from dllm_qbench.outcomes import Outcome
        from dllm_qbench.verdict.alike import find_like, judge_cell

        path = self.baseline_file(record.model)
        name = self._borrows(record.model, record.cell, like)
        other = None if name is None else find_like(name, record.task, record.model)
        update = self.settings.update
        verdict, new = judge_cell(record, path, other, update, self.tests_in_run, watch)
        fails = verdict.fails(self.settings.strict)
        if fails and look is not None and verdict.place is not None and verdict.place.first:
            verdict = replace(verdict, symptom=look(verdict.place.first))
        wrong = verdict.message if fails else None
        if new is not None:
            said = f"{record.cell}: baseline written to {path} (band {new.band})"
            if wrong:
                wrong = f"{said}, but the band it keeps does not allow this: edit it\n{wrong}"
            elif not self.settings.update_pass:
                wrong = f"{said}: review the change, then run without --qbench-update"
        outcome = Outcome.of_verdict(record, verdict, wrong is not None, new is not None)
        return Judged(verdict, outcome, wrong)

    def _borrows(self, model: str, cell: str, like: str | None = None) -> str | None:
        """Return whose band holds for a cell: ``None`` where it has its own, or nothing is alike."""
        from dllm_qbench.baselines import read_baselines

        like = like or self.settings.like
        if like is None:
            return None
        path = self.baseline_file(model)
        return None if path.exists() and cell in read_baselines(path).cells else like

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
            from dllm_qbench.judging import write_baseline

            path = self.baseline_file(outcome.model)
            self.written += map(str, write_baseline(path, outcome))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out the other shards' cells: of those that ``-m`` and ``-k`` have chosen, each shard gets
        its part.
        """
        if self.settings.shard is None:
            return
        from dllm_qbench.engine.merge import shard_of

        cells = [item for item in items if CELL_FIXTURES & {*getattr(item, "fixturenames", ())}]
        ours = {*shard_of([item.nodeid for item in cells], *self.settings.shard)}
        left_out = [item for item in cells if item.nodeid not in ours]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            gone = {*map(id, left_out)}
            items[:] = [item for item in items if id(item) not in gone]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the cells of the run: each test of one makes one, as a rule."""
        names = [getattr(item, "fixturenames", ()) for item in session.items]
        self.cells_collected = sum(bool(CELL_FIXTURES & {*fixtures}) for fixtures in names)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge the run as a whole: what no cell shows alone fails it all the same."""
        if self.outcomes and not self.on_worker:
            self.matrix = whole_run([*self.outcomes.values()])
        not_written = None
        if self.page is not None:
            self.page.take_kernels(session.config)
            not_written = self.page.write(list(self.outcomes.values()), self.wrong)
            self.not_written = [not_written] if not_written else []
        if (self.matrix or not_written) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what an xdist worker measured; without xdist it is known already."""
        from dllm_qbench.outcomes import Outcome

        if report.when == "call":
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self.collect(report.nodeid, Outcome.from_json(str(value)))

    def failures(self) -> list[str]:
        """Lines below the table that are never left out: what fails the run as a whole, and, once
        each, why cells could not be measured.
        """
        errors = [outcome.error for outcome in self.outcomes.values() if outcome.error]
        infra = [
            f"{errors.count(error)} cell(s) not measured: {error}"
            for error in dict.fromkeys(errors)
        ]
        whole = [*(finding.text for finding in self.matrix), *self.wrong]
        return [*(f"whole run: {text}" for text in whole), *infra, *self.not_written]

    def notes(self) -> list[str]:
        """Lines below the table: what was seen on the whole, and what was written."""
        notes = [
            *self.told,
            *(
                f"{self.written.count(path)} baselines written to {path}: review the change"
                for path in sorted(set(self.written))
            ),
        ]
        if self.settings.records and self.outcomes:
            notes.append(f"records: {self.settings.records}")
        return [*notes, *(self.page.said if self.page is not None else ())]
