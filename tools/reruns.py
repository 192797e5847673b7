"""Measure the matrix again and again with what must not matter varied: ``python tools/reruns.py --help``.

Each run has a number, and the number decides what is varied, so that a run can be repeated:

- ``seeds``: the rotation seed of QuaRot and DuQuant, torch's threads (1, 2, 4), the batch size (its
  default, 16, 64), and every global random state; nothing else. Run 0 is the matrix as it is;
- ``draws``: another calibration draw, all else as in run 0.

Records are appended, one line each, to ``FOLDER/part-<worker>.jsonl.gz``; ``tools/noise_floors.py`` and
``tools/false_alarms.py`` read such folders. Processes of one thread each (unless the run varies that)
take the jobs from one queue, run by run.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dllm_qbench.jsonfiles import parse_json
from dllm_qbench.quick_matrix import QUANTIZERS, TASKS
from dllm_qbench.records import Record

MODELS = ("llada-embedded", "dream-embedded")
THREADS = (1, 2, 4)
BATCHES = (None, 16, 64)
SEEDED = ("quarot", "duquant")
# Rough seconds of one quantized model, its three tasks included: only the order depends on it.
COST = {
    "rtn": 14.0,
    "gptq": 17.0,
    "awq": 26.0,
    "smoothquant": 17.0,
    "quarot": 26.0,
    "duquant": 24.0,
}


@dataclass(frozen=True)
class Job:
    """One quantized model of one run."""

    vary: str
    run: int
    model: str
    method: str
    scheme: str

    @property
    def batch_size(self) -> int | None:
        """Canvases in one forward pass."""
        return BATCHES[self.run // len(THREADS) % len(BATCHES)] if self.vary == "seeds" else None

    @property
    def threads(self) -> int:
        """Threads of torch."""
        return THREADS[self.run % len(THREADS)] if self.vary == "seeds" else 1

    @property
    def parameters(self) -> dict[str, Any]:
        """What the method gets beside its recipe."""
        seeded = self.vary == "seeds" and self.run and self.method in SEEDED
        return {"seed": self.run} if seeded else {}

    @property
    def calibration_seed(self) -> int:
        """Of the calibration draw."""
        return self.run if self.vary == "draws" else 0


def measure(job: Job, items: int, device: str, lms: dict[str, Any]) -> Iterator[Record]:
    """Quantize once and evaluate the three tasks."""
    import numpy
    import torch

    import dllm_qbench as qb

    torch.set_num_threads(job.threads)
    # Nothing may read these: a run in which something does gives other figures.
    random.seed(job.run)
    numpy.random.seed(job.run)
    torch.manual_seed(job.run)
    if job.model not in lms:
        lms[job.model] = qb.load(job.model, device=device)
    lm = lms[job.model]
    data = qb.calibration(lm, seed=job.calibration_seed)
    quantized = qb.quantize(lm, job.method, job.scheme, calibration=data, **job.parameters)
    varied = {"vary": job.vary, "run": job.run, "batch_size": job.batch_size}
    for task in TASKS:
        record = qb.evaluate(quantized, lm, task, items, batch_size=job.batch_size)
        yield replace(record, provenance={**record.provenance, **varied})


def work(jobs: Queue[Job], path: Path, items: int, device: str, until: float) -> None:
    """Run jobs until there are none; take no new one after ``until`` (seconds since the epoch)."""
    lms: dict[str, Any] = {}
    with gzip.open(path, "at", encoding="utf-8") as out:
        while time.time() < until:
            try:
                job = jobs.get(timeout=1)
            except Empty:
                return
            for record in measure(job, items, device, lms):
                out.write(record.to_json() + "\n")
            out.flush()
    print(f"{path.name}: out of time", flush=True)


def read(folder: str | Path) -> list[Record]:
    """All records of a folder that this tool wrote."""
    records = []
    for path in sorted(Path(folder).glob("part-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path}:{number}"
                records.append(Record.from_dict(parse_json(line, place), place))
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vary", choices=("seeds", "draws"), required=True)
    parser.add_argument("--runs", required=True, help="first..last, such as 0..9")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--only", default="", help="methods, separated by commas; all by default")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="take no new job after that")
    given = parser.parse_args()
    first, _, last = given.runs.partition("..")
    runs = range(int(first), int(last or first) + 1)
    methods = [m for m in given.only.split(",") if m] or list(COST)
    jobs = [
        Job(given.vary, run, model, method, scheme)
        for model in given.models.split(",")
        for run in runs
        for method, scheme in QUANTIZERS
        if method in methods
    ]
    # A worker keeps its full-precision answers; within a run the longest come first.
    jobs.sort(key=lambda job: (job.run, -COST[job.method]))
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    until = time.time() + 60 * given.minutes
    spawn = multiprocessing.get_context("spawn")
    stem = f"part-{given.vary}-{given.device.replace(':', '-')}-{runs[0]}-{runs[-1]}"
    queue: Queue[Job] = spawn.Queue()
    for job in jobs:
        queue.put(job)
    processes = [
        spawn.Process(
            target=work,
            args=(
                queue,
                given.folder / f"{stem}-{number}.jsonl.gz",
                given.items,
                given.device,
                until,
            ),
        )
        for number in range(given.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    queue.cancel_join_thread()
    raise SystemExit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
