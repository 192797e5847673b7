"""Processes that compete for one lease: ``python -m tests.helpers.lease_workers race|die FOLDER``.

One light process forks the competitors, so that they start within microseconds of each other. It prints
JSON: what came of each round.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dllm_qbench.engine.leases import process_lives
from dllm_qbench.engine.store import Store

KEY = {"cell": "rtn/W8A8/math"}
WORKERS, ROUNDS, DEATHS = 6, 20, 40


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def leave_dead(store: Store) -> None:
    """Let a process take the lease and be killed."""

    def hold() -> None:
        with store.lease("records", KEY) as ours:
            assert ours
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(hold), 0)


def race(folder: Path) -> list[int]:
    """Return for each round how many got the lease that a dead holder had left (odd rounds: a free one)."""
    won = []
    for number in range(ROUNDS):
        store = Store(folder / str(number))
        store.put("other", KEY, 1)  # the folder is there before they start
        if number % 2 == 0:
            leave_dead(store)
        start, go = os.pipe()
        told, tell = os.pipe()
        done, finish = os.pipe()

        def compete(store: Store = store, ends: tuple[int, ...] = (start, tell, done)) -> None:
            begin, answer, end = ends
            select.select([begin], [], [])
            with store.lease("records", KEY) as ours:
                os.write(answer, b"1" if ours else b"0")
                select.select([end], [], [])  # nobody lets go before all have tried

        children = [fork(compete) for _ in range(WORKERS)]
        os.write(go, b"!")
        answers = b""
        while len(answers) < WORKERS:
            answers += os.read(told, WORKERS)
        os.write(finish, b"!")
        for child in children:
            os.waitpid(child, 0)
        won.append(answers.count(b"1"))
    return won


def die(folder: Path) -> dict[str, int]:
    """Let workers take the lease in turn and be killed while they hold it, now and then.

    ``together``: how often one had it while the process that had it before was still at work.
    """
    store = Store(folder)
    inside, log = folder / "inside", folder / "log"
    folder.mkdir(exist_ok=True)

    def note(word: str) -> None:
        with log.open("a") as stream:
            stream.write(word + "\n")

    def work(seed: int) -> None:
        chance = random.Random(seed)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with store.lease("records", KEY, wait=chance.random() < 0.5) as ours:
                if not ours:
                    continue
                if inside.exists() and process_lives(int(inside.read_text()), ""):
                    note("together")
                inside.write_text(str(os.getpid()))
                note("had")
                time.sleep(chance.uniform(0, 0.002))
                if chance.random() < 0.2:
                    os.kill(os.getpid(), signal.SIGKILL)
                inside.unlink()

    children = {fork(lambda n=n: work(n)) for n in range(WORKERS)}
    for number in range(WORKERS, WORKERS + DEATHS):
        ended, _ = os.wait()
        children.remove(ended)
        children.add(fork(lambda n=number: work(n)))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    words = log.read_text().split()
    with store.lease("records", KEY) as ours:
        free = int(ours)
    return {"had": words.count("had"), "together": words.count("together"), "free": free}


if __name__ == "__main__":
    print(json.dumps({"race": race, "die": die}[sys.argv[1]](Path(sys.argv[2]))))
