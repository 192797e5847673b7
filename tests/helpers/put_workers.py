"""Processes killed while they write: ``python -m tests.helpers.put_workers FOLDER KILLS SEED``.

Each writes values one after the other and notes what ``put`` has returned from; it is killed after a few
milliseconds, every third one when it is seen to write a file. Prints JSON: what they noted, and how many
temporary files the kills had left in all.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dllm_qbench.engine.store import Store


def key(number: int) -> dict[str, Any]:
    return {"number": number}


def value(number: int) -> list[str]:
    """So long that writing it takes longer than all else."""
    return [f"{number}" * 300_000]


def put(folder: Path, note: Path, first: int) -> None:
    store = Store(folder)
    handle = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    number = first
    while True:
        store.put("answers", key(number), value(number))
        os.write(handle, f"{number}\n".encode())
        number += 1


def written(store: Path) -> list[str]:
    """Return the files that are being written, or were when their writer died."""
    return os.listdir(store / "tmp") if (store / "tmp").is_dir() else []


def main(folder: Path, kills: int, seed: int) -> dict[str, list[int] | int]:
    chance, litter = random.Random(seed), 0
    store, note = folder / "store", folder / "note"
    note.touch()
    for kill in range(kills):
        # From the last one that was noted on: it may be there already, and is put again.
        first = max(map(int, note.read_text().split()), default=0)
        child = os.fork()
        if child == 0:
            put(store, note, first)
        time.sleep(chance.uniform(0, 0.05))
        deadline = time.monotonic() + 1
        while kill % 3 == 0 and not written(store) and time.monotonic() < deadline:
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        litter += len(written(store))
    return {"noted": [*map(int, note.read_text().split())], "litter": litter}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
