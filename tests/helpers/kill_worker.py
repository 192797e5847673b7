"""Cells that are killed and begun again: ``python -m tests.helpers.kill_worker FOLDER ITEMS KILLS SEED``.

One process imports torch and loads what is needed; each try is a fork of it, killed after a random time.
When a try comes to its end, the next one has an empty store. Prints JSON: for each store, how many tries
were killed on the way. In FOLDER are the stores ``0``, ``1``, ..., beside each a log of what was begun and
kept, and ``whole``, of a run that nobody killed. KILLS of 0 makes ``whole`` only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dllm_qbench.engine.jobs import Job, Setup, execute
from dllm_qbench.engine.store import Store, code_version
from dllm_qbench.evaluation import evaluate

CHUNK = 10


def jobs(items: int) -> list[Job]:
    setup = Setup(items=items, audits="cheap")
    return [Job("llada-embedded", "rtn", "W8A8", task, setup) for task in ("general", "math")]


class Logged(Store):
    """A store that notes what is about to be made (it is leased) and what is kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._log = folder.with_suffix(".log")

    def lease(self, kind: str, key: Mapping[str, Any], **options: Any) -> Any:
        self._note("begun", kind, key)
        return super().lease(kind, key, **options)

    def put(self, kind: str, key: Mapping[str, Any], value: Any) -> None:
        super().put(kind, key, value)
        self._note("kept", kind, key)

    def _note(self, what: str, kind: str, key: Mapping[str, Any]) -> None:
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(handle, f"{what} {kind} {self.name_of(kind, key)}\n".encode())
        os.close(handle)


def run(folder: Path, items: int) -> None:
    for job, result in execute(jobs(items), Logged(folder)):
        if isinstance(result, Exception):
            raise RuntimeError(f"{job.cell}: {result}") from result


def fork(folder: Path, items: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(folder, items)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def killed(child: int, after: float | None) -> bool:
    """Kill a process after some seconds unless it has ended; whether it was killed."""
    deadline = None if after is None else time.monotonic() + after
    while True:
        done, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if done:
            break
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a run failed with exit status {os.WEXITSTATUS(status)}")
    return False


def main(folder: Path, items: int, kills: int, seed: int) -> list[int]:
    torch.set_num_threads(1)
    evaluate.CHUNK = CHUNK
    code_version()
    # Everything is imported and read once, here; then nothing of it is known to the tries.
    for _, result in execute(jobs(2)):
        assert not isinstance(result, Exception), result
    evaluate._references.clear()
    evaluate._reference_drafts.clear()
    chance = random.Random(seed)
    started = time.monotonic()
    killed(fork(folder / "whole", items), None)
    whole = time.monotonic() - started
    on_the_way = [0] if kills else []
    while sum(on_the_way) < kills:
        store = folder / str(len(on_the_way) - 1)
        if killed(fork(store, items), chance.uniform(0, 0.5 * whole)):
            on_the_way[-1] += 1
        else:
            on_the_way.append(0)
    if kills:
        killed(fork(folder / str(len(on_the_way) - 1), items), None)
    return on_the_way


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    print(json.dumps(main(Path(place), *map(int, numbers))))
