"""The whole full tier runs to its end: official-format stand-ins, lm-eval's own tasks, local data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dllm_qbench.engine.store_format import first_difference
from dllm_qbench.full_matrix import QUANTIZERS
from dllm_qbench.models.released import MODELS, PAPER_MODELS
from dllm_qbench.outcomes import read_records
from dllm_qbench.records import Record
from dllm_qbench.tasks.paper import PAPER_TASKS
from tests.full.conftest import Local

ROOT = Path(__file__).parents[2]
CELLS = len(QUANTIZERS) * len(PAPER_TASKS)


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


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_the_papers_whole_matrix_runs_to_its_end(model: str, local: Local, tmp_path: Path) -> None:
    found = measured(local, tmp_path, model)
    assert Counter(record.task for record in found) == dict.fromkeys(PAPER_TASKS, len(QUANTIZERS))
    assert {(record.method, record.scheme) for record in found} == {*QUANTIZERS}


@pytest.mark.parametrize("model", [name for name in MODELS if name not in PAPER_MODELS])
def test_the_other_released_models_run_all_tasks(model: str, local: Local, tmp_path: Path) -> None:
    found = measured(local, tmp_path, model, "-k", "quarot-W4A4")
    assert Counter(record.task for record in found) == dict.fromkeys(PAPER_TASKS, 1)


def measured(local: Local, folder: Path, model: str, *options: str) -> list[Record]:
    """Run a stand-in's cells, all of which must pass, and return their records."""
    records = folder / "r.jsonl"
    run = run_full(
        *local.options,
        *options,
        f"--qbench-model={model}",
        "--qbench-profile=brief",
        "--qbench-limit=2",
        f"--qbench-records={records}",
        folder=folder,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    found = read_records(records)
    assert f"{len(found)} passed" in run.stdout
    assert {record.model for record in found} == {model}
    for record in found:
        assert record.items == 2
        assert record.audit_findings == (), record.cell
        assert record.provenance["model"]["stands_in"] is True
    # A stand-in is told, never judged: its figures mean nothing.
    statuses = {json.loads(line)["status"] for line in records.read_text().splitlines()}
    assert statuses == {"informational"}
    return found


def test_the_published_settings_run_too(local: Local, tmp_path: Path) -> None:
    """One cell of each kind with the paper's samples and denoising steps."""
    run = run_full(
        *local.options,
        "--qbench-model=llada-8b-base",
        "--qbench-limit=1",
        "-k",
        "smoothquant and W8A8 and (winogrande or gsm8k)",
        folder=tmp_path,
    )
    # 128 sequences of 2048 tokens are calibrated on: the stand-in's positions cut them.
    assert run.returncode == 0, run.stdout[-6000:]
    assert "2 passed" in run.stdout


def test_without_weights_every_cell_is_infra_with_the_command_that_gets_them(
    tmp_path: Path,
) -> None:
    empty = tmp_path / "models"
    empty.mkdir()
    records = tmp_path / "r.jsonl"
    run = run_full(f"--qbench-models-dir={empty}", f"--qbench-records={records}", folder=tmp_path)
    assert run.returncode == 1
    assert f"{3 * CELLS} failed" in run.stdout
    outcomes = [json.loads(line) for line in records.read_text().splitlines()]
    assert Counter(outcome["status"] for outcome in outcomes) == {"infra": 3 * CELLS}
    for outcome in outcomes:
        assert re.search(r"hf download \S+ --revision [0-9a-f]{40}", outcome["error"]), outcome
    lines = [line for line in run.stdout.splitlines() if "not measured: MissingWeights" in line]
    assert len(lines) == 3  # once a model, not once a cell


def test_a_second_run_takes_everything_from_the_store(local: Local, tmp_path: Path) -> None:
    options = (
        *local.options,
        "--qbench-model=dream-7b-base",
        "--qbench-profile=brief",
        "--qbench-limit=2",
        "-k",
        "gptq-W4A16 and (piqa or mbpp)",
    )
    for name in ("first", "second"):
        run = run_full(*options, f"--qbench-records={tmp_path / name}.jsonl", folder=tmp_path)
        assert run.returncode == 0, run.stdout[-6000:]
    first, second = (read_records(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
    assert first == second  # seconds and dates too: nothing was measured again


def test_cells_of_a_cluster_are_those_of_this_process(local: Local, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="cells on a cluster need the extra 'ray'")
    options = ("-k", "quarot-W8A8 and (arc_easy or minerva)", "--qbench-profile=brief")
    found = {}
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        records = tmp_path / f"{engine}.jsonl"
        run = run_full(
            *local.options,
            *options,
            "--qbench-model=dream-7b-base",
            "--qbench-limit=2",
            f"--qbench-engine={engine}",
            f"--qbench-records={records}",
            folder=folder,
        )
        assert run.returncode == 0, run.stdout[-6000:]
        found[engine] = [record.to_dict() for record in read_records(records)]
    assert len(found["ray"]) == len(found["local"]) == 2
    for here, there in zip(found["local"], found["ray"], strict=True):
        assert first_difference(here, there) is None
