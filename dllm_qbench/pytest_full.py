"""The full tier in a pytest session: cells of real models, by name, run here or on a Ray cluster.

A cell is a :class:`dllm_qbench.engine.jobs.Job`. What runs it is chosen once a session; what its record is
judged by depends on what there is: a measured baseline of the model, else what the paper's tables
support, else nothing, and then the cell is told and not judged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dllm_qbench.engine.jobs import Job

if TYPE_CHECKING:
    from dllm_qbench.engine.job_runner import JobRunner
    from dllm_qbench.evaluation.evaluate import Progress
    from dllm_qbench.outcomes import Outcome
    from dllm_qbench.pytest_options import Settings
    from dllm_qbench.pytest_session import Run
    from dllm_qbench.records import Record


def pick_device(config: pytest.Config, settings: Settings) -> None:
    """Give an xdist worker a GPU of its own; must come before torch is imported.

    Raises:
        pytest.UsageError: more workers than GPUs; told where the workers are started, too.
    """
    if not settings.device.startswith("cuda"):
        return
    from dllm_qbench.engine.devices import choose_device
    from dllm_qbench.errors import QBenchError

    worker: Any = getattr(config, "workerinput", None)
    workers = config.getoption("numprocesses", None) if worker is None else worker["workercount"]
    if not workers:
        return
    name = "gw0" if worker is None else str(worker["workerid"])
    try:
        chosen = choose_device(name, int(workers), os.environ, device=settings.device)
    except QBenchError as error:
        raise pytest.UsageError(f"--qbench-device {settings.device}: {error}") from error
    if worker is not None:
        os.environ.update(chosen)


class FullTier:
    """Runs and judges the full tier's cells of one session."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._runner: JobRunner | None = None
        self._subject: tuple[str, str, str] | None = None
        self._cluster: Any = None

    def job(self, model: str, method: str, scheme: str, task: str) -> Job:
        """Return a cell as this session measures it."""
        return Job(model, method, scheme, task, self._run.settings.setup)

    def run(
        self, model: str, method: str, scheme: str, task: str, progress: Progress | None
    ) -> tuple[Outcome, str | None]:
        """Measure a cell, or read it from the store, and judge it; errors become its outcome.

        Returns the outcome, and why the cell's test fails (``None``: it does not).
        """
        from dllm_qbench.outcomes import Outcome

        job = self.job(model, method, scheme, task)
        record = None
        try:
            record = self._measure(job, progress)
            outcome, wrong = self._judge(job, record)
        except Exception as error:
            outcome, wrong = Outcome.of_error(job.cell, Path(model).name, error, record), None
        return outcome, wrong or (outcome.message if outcome.fails else None)

    def _measure(self, job: Job, progress: Progress | None) -> Record:
        if self._cluster is not None:
            found: Record = self._cluster.result(job)
            return found
        from dllm_qbench.engine.job_runner import JobRunner
        from dllm_qbench.engine.store import Store

        if self._runner is None or not self._runner.fits(job):
            self._runner = None  # the last model goes before the next one comes
            self._runner = JobRunner(job.model, job.setup, Store(self._run.settings.store))
        if self._subject != job.subject:
            self._runner.release_quantized()
            self._subject = job.subject
        return self._runner.run(job, progress)

    def _judge(self, job: Job, record: Record) -> tuple[Outcome, str | None]:
        from dllm_qbench.baselines import read_baselines
        from dllm_qbench.outcomes import Outcome

        path = self._run.baseline_file(record.model)
        stored = path.is_file() and record.cell in read_baselines(path).cells
        if record.provenance.get("model", {}).get("stands_in"):
            why = "a stand-in of another size than the model whose name it bears"
            return Outcome.of_measurement(record, f"not judged: {why}"), None
        if job.setup.profile != "paper":
            why = f"measured with {job.setup.profile} settings, not the paper's"
            return Outcome.of_measurement(record, f"not judged: {why}"), None
        if stored or self._run.settings.update:
            judged = self._run.judge(record)
            return judged.outcome, judged.wrong
        return self._judge_by_paper(record), None

    def _judge_by_paper(self, record: Record) -> Outcome:
        from dllm_qbench.outcomes import Outcome
        from dllm_qbench.verdict.paper import judge_against_paper

        found = judge_against_paper(record, tests_in_run=self._run.tests_in_run)
        if found is None:
            why = "no baseline of its own, and the paper has no such cell: told, not judged"
            return Outcome.of_measurement(record, why)
        return Outcome.of_measurement(record, found.message, found.status, found.band)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """With Ray, send all cells out at once: each test then waits for its own."""
        settings = self._run.settings
        if settings.engine != "ray" or session.config.option.collectonly or self._run.on_worker:
            return
        params = [
            item.callspec.params
            for item in session.items
            if "qbench_job" in getattr(item, "fixturenames", ()) and hasattr(item, "callspec")
        ]
        jobs = [
            self.job(
                *(str(given[name]) for name in ("qbench_full_model", "method", "scheme", "task"))
            )
            for given in params
        ]
        if not jobs:
            return
        from dllm_qbench.engine.cluster import Cluster
        from dllm_qbench.errors import QBenchError

        try:
            self._cluster = Cluster(
                jobs, settings.store, settings.ray_address, settings.gpus_per_cell
            )
        except QBenchError as error:
            raise pytest.UsageError(f"--qbench-engine=ray: {error}") from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hold the run against the paper's findings, which compare cells; let go of the cluster."""
        if self._cluster is not None:
            self._cluster.close()
        if self._run.on_worker:
            return
        records = [
            outcome.record
            for outcome in self._run.outcomes.values()
            if outcome.record is not None and self._is_the_papers(outcome.record)
        ]
        if not records:
            return
        from dllm_qbench.records import Record
        from dllm_qbench.verdict.paper_findings import judge_findings

        for found in judge_findings([Record.from_dict(record) for record in records]):
            if found.status == "does not hold":
                self._run.wrong.append(f"the paper's finding {found.finding.name}: {found.text}")
            elif found.status == "holds":
                self._run.told.append(f"the paper's finding {found.finding.name}: holds here too")
        if self._run.wrong and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _is_the_papers(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of a real model under the paper's settings."""
        origin = record["provenance"].get("model")
        paper = self._run.settings.setup.profile == "paper"
        return paper and isinstance(origin, Mapping) and not origin.get("stands_in")
