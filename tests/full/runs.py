"""The full tier on stand-ins, run as a user would run it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from dllm_qbench.full_matrix import QUANTIZERS
from dllm_qbench.outcomes import read_records
from dllm_qbench.records import Record
from dllm_qbench.tasks.paper import PAPER_TASKS
from tests.full.conftest import Local

ROOT = Path(__file__).parents[2]


def run_full(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the full tier in a process of its own, as a user would."""
    command = [sys.executable, "-m", "pytest", "-m", "full", "tests/test_full_matrix.py", "-q"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--qbench-store={folder / 'store'}", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def measured(local: Local, folder: Path, model: str, *options: str, items: int = 2) -> list[Record]:
    """Run a stand-in's cells, all of which must pass, and return their records."""
    records = folder / "r.jsonl"
    run = run_full(
        *local.options,
        *options,
        f"--qbench-model={model}",
        "--qbench-profile=brief",
        f"--qbench-limit={items}",
        f"--qbench-records={records}",
        folder=folder,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    found = read_records(records)
    assert f"{len(found)} passed" in run.stdout
    assert {record.model for record in found} == {model}
    for record in found:
        assert record.items == items
        assert record.audit_findings == (), record.cell
        assert record.provenance["model"]["stands_in"] is True
    # A stand-in is told, never judged: its figures mean nothing.
    statuses = {json.loads(line)["status"] for line in records.read_text().splitlines()}
    assert statuses == {"informational"}
    return found


def require_whole_matrix(local: Local, folder: Path, model: str, items: int) -> None:
    """Run every cell that the paper has of a model."""
    found = measured(local, folder, model, items=items)
    assert Counter(record.task for record in found) == dict.fromkeys(PAPER_TASKS, len(QUANTIZERS))
    assert {(record.method, record.scheme) for record in found} == {*QUANTIZERS}
