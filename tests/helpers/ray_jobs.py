"""Small functions that Ray's workers run in tests: ``(jobs, store_folder)`` to ``(index, result)``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_qbench.errors import QBenchError

Results = Iterator[tuple[int, dict[str, Any]]]
Jobs = Sequence[Mapping[str, Any]]


def echo(jobs: Jobs, store_folder: str | None) -> Results:
    """Give each job back, with what the worker sees; the log says what was run."""
    for index, job in enumerate(jobs):
        note(job)
        if seconds := job.get("sleep"):
            time.sleep(seconds)
        yield index, {"record": {"job": dict(job), "threads": os.environ["OMP_NUM_THREADS"]}}


def die(jobs: Jobs, store_folder: str | None) -> Results:
    """Kill the worker at a job that says so, as long as its file is not there."""
    for index, job in enumerate(jobs):
        note(job)
        if job.get("die") and not Path(job["die"]).exists():
            time.sleep(job.get("sleep", 0))
            if job.get("once"):
                Path(job["die"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield index, {"record": {"n": job["n"]}}


def fail(jobs: Jobs, store_folder: str | None) -> Results:
    """Raise at a job that says so."""
    for index, job in enumerate(jobs):
        note(job)
        if job.get("fail"):
            raise QBenchError(f"job {job['n']} is wrong")
        yield index, {"record": {"n": job["n"]}}


def stop(jobs: Jobs, store_folder: str | None) -> Results:
    """End after the first job."""
    yield 0, {"record": {"n": jobs[0]["n"]}}


def note(job: Mapping[str, Any]) -> None:
    if "log" in job:
        with Path(job["log"]).open("a") as stream:
            stream.write(f"{job['n']}\n")


def cells(jobs: Jobs, store_folder: str | None) -> Results:
    """Run real cells; the log says on which node each was begun.

    On a node that the file ``doomed`` names, a cell that was begun never ends.
    """
    import ray

    from dllm_qbench.engine.jobs import execute_dicts

    node = ray.get_runtime_context().get_node_id()
    for index, job in enumerate(jobs):
        log = Path(str(job["log"]))
        with log.open("a") as stream:
            stream.write(f"{node} {job['job']['scheme']}/{job['job']['task']}\n")
        if node == Path(str(job["doomed"])).read_text():
            time.sleep(600)  # the node goes first
        for _, result in execute_dicts([job["job"]], store_folder):
            yield index, result
