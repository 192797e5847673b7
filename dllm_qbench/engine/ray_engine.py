"""Runs groups of jobs on a Ray cluster: results come one by one, and a lost node costs unfinished jobs only.

Notable:
- what travels is JSON text and the name of a function. Ray itself pickles between its own processes, which
  cannot be helped: connect to clusters that you trust, and to no others;
- Ray's own retries are off: they would run a whole group again. Here, what has come is never run again;
- what a worker's function raises is an answer, and not tried again; a worker or a node that is lost is.

No torch here; Ray is imported when an engine is made.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from dllm_qbench.engine.store import Store, code_version
from dllm_qbench.errors import QBenchError

Result = dict[str, Any]

_LOOK: Final = 5.0  # seconds between two looks at what nodes there are, while nothing comes
_PATIENCE: Final = 60.0  # seconds to wait for a node that can take a job, when there is none
_OBJECTS: Final = 80 * 2**20  # bytes of shared memory that a local cluster takes: results are small


@dataclass
class _Group:
    """Jobs that share a quantized model, on their way."""

    number: int
    jobs: list[Mapping[str, Any]]
    left: list[int]  # indices of the jobs without a result, in their order
    losses: int = 0  # since the last result
    stream: Any = None
    sent: tuple[int, ...] = ()  # what the stream's indices mean


class RayEngine:
    """A connection to a Ray cluster; a context that closes it.

    Args:
        address: ``host:port`` of a running cluster, ``auto`` for the one of this machine, ``None`` to start
            one here for as long as the engine lives.
        gpus_per_cell: GPUs that each group gets to itself while it runs; 0 for a CPU.
        retries: how often a job is begun again after its worker or node was lost.
        cpus_per_cell: CPUs that each group counts for; also the threads that torch gets.

    Raises:
        QBenchError: Ray is not installed, the cluster cannot be reached, or no node has such resources.
    """

    def __init__(
        self,
        address: str | None = None,
        gpus_per_cell: float = 1.0,
        retries: int = 3,
        *,
        cpus_per_cell: float = 1.0,
    ) -> None:
        self._ray = ray = _import_ray()
        self._needs = {"CPU": cpus_per_cell, "GPU": gpus_per_cell}
        self._retries = retries
        self._ours = not ray.is_initialized()
        self._streams: list[Any] = []
        if self._ours:
            _connect(ray, address)
        try:
            if not self._fits():
                raise QBenchError(f"{self._no_node()}: ask for less, or add nodes")
        except BaseException:
            self.close()
            raise
        # The same here as there, so that a record does not depend on where it was made.
        threads = str(max(1, int(cpus_per_cell)))
        self._task = ray.remote(_work).options(
            num_cpus=cpus_per_cell,
            num_gpus=gpus_per_cell,
            max_retries=0,
            num_returns="streaming",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
        )

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop what still runs and let go of the cluster."""
        for stream in self._streams:
            self._ray.cancel(stream, force=True)
        self._streams.clear()
        if self._ours:
            self._ray.shutdown()

    def submit(
        self,
        groups: Sequence[Sequence[Mapping[str, Any]]],
        run: str,
        store_folder: str | None = None,
        *,
        keep: Store | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, int, Result]]:
        """Run groups of jobs, and yield (group, job, result) as results come.

        Args:
            groups: jobs as JSON values; those of one group run on one worker, in their order.
            run: ``module:function``, which takes (jobs, store_folder) and yields (index, result), where a
                result is ``{"record": ...}`` or ``{"error": text, "kind": class}``.
            store_folder: passed on to it; a place that all nodes reach, or one on each.
            keep: the caller's own store: results with a record are put there as they come, and what is
                there is not run again, so that they survive the caller.
            state: what results depend on beside jobs and code, such as digests of weights; part of the
                key under which they are kept. Must be given with ``keep``.

        Raises:
            QBenchError: ``keep`` without ``state``.

        A job that cannot be run (its function raises, its worker is lost too often, no node is left) yields
        an error as its result.
        """
        if keep is not None and state is None:
            raise QBenchError(
                "submit: keep without state: say what results depend on beside the jobs"
            )
        active = []
        for number, jobs in enumerate(groups):
            group = _Group(number, list(jobs), [])
            for index, job in enumerate(jobs):
                kept: Result | None = None
                if keep is not None:
                    kept = keep.get("results", _key(run, job, state))
                if kept is None:
                    group.left.append(index)
                else:
                    yield number, index, kept
            if group.left:
                self._send(group, run, store_folder)
                active.append(group)
        for number, index, result in self._results(active, run, store_folder):
            if keep is not None and "record" in result:
                keep.put("results", _key(run, groups[number][index], state), result)
            yield number, index, result

    def _results(
        self, active: list[_Group], run: str, store_folder: str | None
    ) -> Iterator[tuple[int, int, Result]]:
        without_node: float | None = None
        while active:
            ready, _ = self._ray.wait([group.stream for group in active], timeout=_LOOK)
            if not ready:
                if self._fits():
                    without_node = None
                    continue
                without_node = without_node or time.monotonic()
                if time.monotonic() - without_node < _PATIENCE:
                    continue
                for group in active:
                    yield from self._give_up(group, self._no_node(), "QBenchError")
                return
            group = next(group for group in active if group.stream is ready[0])
            yield from self._next(group, run, store_folder)
            if group.stream is None:
                active.remove(group)

    def _next(
        self, group: _Group, run: str, store_folder: str | None
    ) -> Iterator[tuple[int, int, Result]]:
        """Take what has come of a group; its stream is ``None`` when there is nothing more to come."""
        errors = self._ray.exceptions
        try:
            place, result = json.loads(self._ray.get(next(group.stream)))
        except StopIteration:
            self._end(group)
            yield from self._give_up(group, f"{run} ended without a result for it", "QBenchError")
        except errors.RayTaskError as error:
            self._end(group)
            cause = error.cause if error.cause is not None else error
            yield from self._give_up(group, str(cause), type(cause).__name__)
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            self._end(group)
            yield from self._give_up(group, str(error), type(error).__name__)
        except errors.RayError as error:
            self._end(group)
            group.losses += 1
            if group.losses > self._retries:
                index = group.left.pop(0)  # it was alone
                group.losses = 0
                text = f"its worker was lost {self._retries + 1} times: {_first_line(error)}"
                yield group.number, index, {"error": text, "kind": type(error).__name__}
            if group.left:
                self._send(group, run, store_folder)
        else:
            index = group.sent[place]
            group.left.remove(index)
            group.losses = 0
            yield group.number, index, result
            if not set(group.sent) & set(group.left):
                self._end(group)
                if group.left:
                    self._send(group, run, store_folder)

    def _send(self, group: _Group, run: str, store_folder: str | None) -> None:
        # The last try of a job is its own: a worker that dies takes results along that it has just sent, so
        # that in company the first job without one need not be the one that killed it.
        last = group.losses == self._retries
        group.sent = tuple(group.left[:1] if last else group.left)
        jobs = json.dumps([group.jobs[index] for index in group.sent], allow_nan=False)
        group.stream = self._task.remote(run, jobs, store_folder)
        self._streams.append(group.stream)

    def _end(self, group: _Group) -> None:
        self._streams.remove(group.stream)
        group.stream = None

    def _give_up(self, group: _Group, text: str, kind: str) -> Iterator[tuple[int, int, Result]]:
        while group.left:
            yield group.number, group.left.pop(0), {"error": text, "kind": kind}

    def _fits(self) -> bool:
        """Whether a node that lives has what a group needs, free or not."""
        return any(
            node["Alive"]
            and all(node["Resources"].get(name, 0) >= count for name, count in self._needs.items())
            for node in self._ray.nodes()
        )

    def _no_node(self) -> str:
        needs = ", ".join(f"{count:g} {name}" for name, count in self._needs.items())
        return f"no node of the Ray cluster has {needs}"


def _work(run: str, jobs: str, store_folder: str | None) -> Iterator[str]:
    """Run on a worker: call the function and pass on what it yields, as JSON text."""
    module, _, name = run.partition(":")
    function = getattr(importlib.import_module(module), name)
    for index, result in function(json.loads(jobs), store_folder):
        yield json.dumps([index, result], allow_nan=False)


def _key(run: str, job: Mapping[str, Any], state: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"run": run, "job": job, "state": state or {}, "code": code_version()}


def _import_ray() -> Any:
    """Import Ray, quietly."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A job without a GPU keeps the environment it has; without this, Ray warns that it will.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise QBenchError(
            "Ray is not installed here: pip install 'dllm-qbench[ray]', on every node of the cluster"
        ) from error


def _connect(ray: Any, address: str | None) -> None:
    place = f"Ray cluster at {address!r}"
    if address is not None and address.startswith("ray://"):
        raise QBenchError(
            f"{place}: Ray's client cannot stream results: run on a node of the cluster, with the address"
            " 'auto', or give host:port"
        )
    if address not in (None, "auto"):
        # Ray would try for minutes.
        host, _, port = str(address).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except ValueError as error:
            raise QBenchError(f"{place}: expected host:port, or 'auto'") from error
        except OSError as error:
            raise QBenchError(
                f"{place} cannot be reached: {error}; is it up (ray status), and is the port right?"
            ) from error
    own = {"include_dashboard": False, "object_store_memory": _OBJECTS} if address is None else {}
    try:
        ray.init(
            address="local" if address is None else address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise QBenchError(f"{place} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
