"""Ray on a real cluster of several nodes on this machine: same records, and lost nodes cost little."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dllm_qbench.engine import ray_engine
from dllm_qbench.engine.jobs import Job, Setup, execute
from dllm_qbench.engine.ray_engine import RayEngine
from dllm_qbench.engine.store import Store
from dllm_qbench.engine.store_format import first_difference
from dllm_qbench.errors import QBenchError
from dllm_qbench.records import Record

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

JOBS = "tests.helpers.ray_jobs:"
NODE: dict[str, Any] = {
    "num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False,
}  # fmt: skip
# What two runs of one cell differ in: when, and how long it took. The commit too, if one was made between.
DIFFERS = frozenset({"date", "seconds", "commit"})


@pytest.fixture(scope="module", autouse=True)
def _ray() -> None:
    """Skip these tests, and not the collection of others beside them, where Ray is not installed."""
    pytest.importorskip("ray", reason="Ray comes with the extra 'ray'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose head node has one CPU, and notices in seconds that a node is gone."""
    from ray.cluster_utils import Cluster

    look = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 10_000,
        "health_check_failure_threshold": 5,
    }
    made = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": look})
    yield made
    made.shutdown()


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[RayEngine]:
    with RayEngine(cluster.address, gpus_per_cell=0, retries=2) as made:
        yield made


def numbered(count: int, log: Path, **members: Any) -> list[dict[str, Any]]:
    return [{"n": n, "log": str(log), **members} for n in range(count)]


def begun(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def test_every_job_of_every_group_gives_its_own_result(engine: RayEngine, tmp_path: Path) -> None:
    groups = [numbered(3, tmp_path / "log", group=g) for g in range(2)]
    found = list(engine.submit(groups, JOBS + "echo"))
    assert sorted((group, index) for group, index, _ in found) == [
        (g, n) for g in range(2) for n in range(3)
    ]
    for group, index, result in found:
        assert result == {"record": {"job": groups[group][index], "threads": "1"}}


def test_results_come_as_they_are_made(engine: RayEngine, tmp_path: Path) -> None:
    jobs = numbered(2, tmp_path / "log")
    jobs[1]["sleep"] = 600
    results = engine.submit([jobs], JOBS + "echo")
    assert next(results)[:2] == (0, 0)


def test_lost_worker_is_replaced_and_what_came_is_not_run_again(
    engine: RayEngine, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    jobs = numbered(4, log)
    jobs[2] |= {"die": str(tmp_path / "died"), "once": True, "sleep": 0.5}
    found = list(engine.submit([jobs], JOBS + "die"))
    assert found == [(0, n, {"record": {"n": n}}) for n in range(4)]
    assert begun(log) == [0, 1, 2, 2, 3]


def test_job_that_kills_its_worker_each_time_is_given_up_and_the_others_are_not(
    engine: RayEngine, tmp_path: Path
) -> None:
    """At once: the worker then takes the first job's result along, and that one is not to blame."""
    jobs = numbered(3, tmp_path / "log")
    jobs[1]["die"] = str(tmp_path / "never")
    found = {index: result for _, index, result in engine.submit([jobs], JOBS + "die")}
    assert found[0] == {"record": {"n": 0}}
    assert found[2] == {"record": {"n": 2}}
    assert found[1]["error"].startswith("its worker was lost 3 times: ")


def test_what_a_function_raises_is_told_and_not_tried_again(
    engine: RayEngine, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    jobs = numbered(3, log)
    jobs[1]["fail"] = True
    found = list(engine.submit([jobs], JOBS + "fail"))
    wrong = {"error": "job 1 is wrong", "kind": "QBenchError"}
    assert found == [(0, 0, {"record": {"n": 0}}), (0, 1, wrong), (0, 2, wrong)]
    assert begun(log) == [0, 1]


def test_job_without_a_result_and_a_function_that_is_not_there_are_told(engine: RayEngine) -> None:
    ended = list(engine.submit([[{"n": 0}, {"n": 1}]], JOBS + "stop"))
    assert ended[1] == (
        0, 1, {"error": f"{JOBS}stop ended without a result for it", "kind": "QBenchError"},
    )  # fmt: skip
    ((_, _, absent),) = engine.submit([[{"n": 0}]], JOBS + "absent")
    assert absent["kind"] == "AttributeError"


def test_results_survive_the_caller(engine: RayEngine, tmp_path: Path) -> None:
    log, keep = tmp_path / "log", Store(tmp_path / "store")
    jobs = numbered(3, log)
    first = engine.submit([jobs], JOBS + "echo", keep=keep, state={"weights": "a"})
    came = [next(first), next(first)]  # and then the caller dies
    again = list(engine.submit([jobs], JOBS + "echo", keep=keep, state={"weights": "a"}))
    assert again[:2] == came
    assert [index for _, index, _ in again] == [0, 1, 2]
    runs = Counter(begun(log))
    assert runs[0] == runs[1] == 1
    other = list(engine.submit([jobs[:1]], JOBS + "echo", keep=keep, state={"weights": "b"}))
    assert other == again[:1]
    assert Counter(begun(log))[0] == 2
    with pytest.raises(QBenchError, match="keep without state"):
        next(engine.submit([jobs], JOBS + "echo", keep=keep))


def test_cells_that_no_node_can_take_any_more_are_told(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_PATIENCE", 1.0)
    monkeypatch.setattr(ray_engine, "_LOOK", 0.5)
    large = cluster.add_node(**{**NODE, "num_cpus": 2})
    cluster.wait_for_nodes()
    jobs = numbered(3, tmp_path / "log")
    jobs[1]["sleep"] = 600
    with RayEngine(cluster.address, gpus_per_cell=0, cpus_per_cell=2) as engine:
        results = engine.submit([jobs], JOBS + "echo")
        _, first, result = next(results)
        assert (first, result["record"]["threads"]) == (0, "2")
        cluster.remove_node(large, allow_graceful=False)
        rest = {index: result["error"] for _, index, result in results}
    assert rest == dict.fromkeys((1, 2), "no node of the Ray cluster has 2 CPU, 0 GPU")


def test_resources_that_no_node_has_are_an_error_at_once(cluster: Cluster) -> None:
    with pytest.raises(QBenchError, match="no node of the Ray cluster has 1 CPU, 64 GPU"):
        RayEngine(cluster.address, gpus_per_cell=64)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "cannot be reached: .*is it up"),
        ("nonsense", "expected host:port, or 'auto'"),
        ("ray://127.0.0.1:1", "Ray's client cannot stream"),
    ],
)
def test_cluster_that_cannot_be_reached_is_an_error(address: str, message: str) -> None:
    with pytest.raises(QBenchError, match=message):
        RayEngine(address, gpus_per_cell=0)


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(QBenchError, match=r"pip install 'dllm-qbench\[ray\]'"):
        RayEngine(None, 0)


def test_all_cells_complete_when_a_node_disappears_and_records_are_those_of_one_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    setup = Setup(items=16, audits="cheap")
    jobs = [
        Job("llada-embedded", "rtn", scheme, task, setup)
        for scheme in ("W4A16-g64", "W8A8")
        for task in ("general", "math")
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = dict(execute(jobs))
    finally:
        torch.set_num_threads(threads)
    log = tmp_path / "log"
    groups = [
        [
            {"job": job.to_dict(), "log": str(log), "doomed": str(tmp_path / "doomed")}
            for job in jobs
            if job.scheme == scheme
        ]
        for scheme in ("W4A16-g64", "W8A8")
    ]
    doomed = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    (tmp_path / "doomed").write_text(doomed.node_id)
    found: dict[Job, Any] = {}
    with RayEngine(cluster.address, gpus_per_cell=0) as engine:
        for group, index, result in engine.submit(groups, JOBS + "cells", str(tmp_path / "store")):
            if not found:
                lost = at_work(log, doomed.node_id, {result["record"]["scheme"] + "/general"})
                cluster.remove_node(doomed, allow_graceful=False)
            job = Job.from_dict(groups[group][index]["job"])
            assert job not in found
            found[job] = Record.from_dict(result["record"])
    assert set(found) == set(jobs)
    for job, record in expected.items():
        assert isinstance(record, Record)
        assert first_difference(record.to_dict(), found[job].to_dict(), DIFFERS) is None
    # What the node that disappeared was at was begun again elsewhere, and nothing else was.
    started = [line.split() for line in log.read_text().splitlines()]
    again = [cell for node, cell in started if cell == lost]
    assert [len(again), len(started)] == [2, len(jobs) + 1]


def at_work(log: Path, node: str, done: set[str]) -> str:
    """Wait until a node has begun a cell that is not done, and return it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.split()[0] == node and line.split()[1] not in done:
                return line.split()[1]
        time.sleep(0.02)
    raise AssertionError("the node did not begin anything in a minute")
