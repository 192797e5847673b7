"""A session's cells on a Ray cluster: all are sent out at once, and each is waited for by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dllm_qbench import errors
from dllm_qbench.engine.jobs import Job, grouped
from dllm_qbench.engine.ray_engine import RayEngine
from dllm_qbench.errors import QBenchError
from dllm_qbench.models.hub import MissingWeights
from dllm_qbench.records import Record

RUN: Final = "dllm_qbench.engine.jobs:execute_dicts"
_KINDS: Final = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), MissingWeights)
    if isinstance(kind, type) and issubclass(kind, QBenchError)
}


class Cluster:
    """Jobs on their way on a cluster.

    Args:
        jobs: all that will be asked for. Those of one quantized model run on one worker.
        store: folder of the workers' store: one that all nodes reach, or one on each.
        address: of a running cluster; ``None`` starts one on this machine.
        gpus: GPUs that a quantized model has to itself.

    Raises:
        QBenchError: Ray is missing, the cluster cannot be reached, or no node has such resources.
    """

    def __init__(
        self, jobs: Sequence[Job], store: Path, address: str | None = None, gpus: float = 1.0
    ) -> None:
        wants_gpu = any(job.setup.device.startswith("cuda") for job in jobs)
        self._engine = RayEngine(address, gpus if wants_gpu else 0.0)
        self._groups = grouped(jobs)
        self._found: dict[Job, dict[str, Any]] = {}
        sent = [[job.to_dict() for job in group] for group in self._groups]
        self._coming: Iterator[tuple[int, int, dict[str, Any]]] = iter(
            self._engine.submit(sent, RUN, str(store))
        )

    def result(self, job: Job) -> Record:
        """Wait for a job's record.

        Raises:
            QBenchError: the job could not be measured; of the kind that it met there, where that is one of
                this package's.
        """
        while job not in self._found:
            arrived = next(self._coming, None)
            if arrived is None:
                raise QBenchError(f"{job.model} {job.cell}: the cluster ended without its result")
            group, place, result = arrived
            self._found[self._groups[group][place]] = result
        found = self._found[job]
        if "error" in found:
            kind = _KINDS.get(str(found.get("kind")))
            raise (kind or QBenchError)(
                found["error"] if kind else f"{found.get('kind')}: {found['error']}"
            )
        return Record.from_dict(found["record"], f"{job.model} {job.cell}, from the cluster")

    def close(self) -> None:
        """Stop what still runs."""
        self._engine.close()
