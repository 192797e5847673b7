"""A session's cells on a cluster, with a stand-in for Ray: who waits for what, and what errors become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dllm_qbench.engine import cluster
from dllm_qbench.engine.jobs import Job, Setup
from dllm_qbench.errors import QBenchError, TaskError
from dllm_qbench.models.hub import MissingWeights
from tests.helpers.records import make_record

JOBS = [
    Job("one", method, scheme, task)
    for method, scheme in (("rtn", "W8A8"), ("gptq", "W4A16-g64"))
    for task in ("math", "code")
]


class Engine:
    """Answers groups backwards, last job first."""

    made: ClassVar[list[Engine]] = []

    def __init__(self, address: str | None, gpus: float) -> None:
        self.address, self.gpus, self.closed = address, gpus, False
        self.said: dict[str, dict[str, Any]] = {}
        self.made.append(self)

    def submit(
        self, groups: Sequence[Sequence[dict[str, Any]]], run: str, store: str
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        module, _, function = run.partition(":")
        assert callable(getattr(__import__(module, fromlist=["x"]), function))
        for number in reversed(range(len(groups))):
            for place in reversed(range(len(groups[number]))):
                job = Job.from_dict(groups[number][place])
                record = make_record(cell=job.cell, model=job.model).to_dict()
                yield number, place, self.said.get(job.cell, {"record": record})

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RayEngine", Engine)
    monkeypatch.setattr(Engine, "made", [])


def test_each_job_gets_its_own_record_whatever_the_order(tmp_path: Path) -> None:
    on_their_way = cluster.Cluster(JOBS, tmp_path)
    assert [on_their_way.result(job).cell for job in JOBS] == [job.cell for job in JOBS]
    assert on_their_way.result(JOBS[0]).cell == JOBS[0].cell
    on_their_way.close()
    assert Engine.made[0].closed


def test_gpus_are_asked_for_only_where_a_job_needs_one(tmp_path: Path) -> None:
    cluster.Cluster(JOBS, tmp_path, "host:1", gpus=0.5)
    cluster.Cluster([Job("one", "rtn", "W8A8", "math", Setup(device="cuda"))], tmp_path, gpus=0.5)
    assert [(engine.address, engine.gpus) for engine in Engine.made] == [
        ("host:1", 0.0),
        (None, 0.5),
    ]


def test_an_error_is_of_the_kind_that_it_was_there(tmp_path: Path) -> None:
    on_their_way = cluster.Cluster(JOBS, tmp_path)
    Engine.made[0].said = {
        JOBS[0].cell: {"error": "no weights", "kind": "MissingWeights"},
        JOBS[1].cell: {"error": "no data", "kind": "TaskError"},
        JOBS[2].cell: {"error": "1 / 0", "kind": "ZeroDivisionError"},
    }
    with pytest.raises(MissingWeights, match=r"^no weights$"):
        on_their_way.result(JOBS[0])
    with pytest.raises(TaskError, match=r"^no data$"):
        on_their_way.result(JOBS[1])
    with pytest.raises(QBenchError, match=r"^ZeroDivisionError: 1 / 0$"):
        on_their_way.result(JOBS[2])
    with pytest.raises(QBenchError, match="the cluster ended without its result"):
        on_their_way.result(Job("other", "rtn", "W8A8", "math"))
