"""The full tier on stand-ins, beside the whole matrices: other models, missing weights, stores, Ray."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dllm_qbench.engine.store_format import first_difference
from dllm_qbench.full_matrix import QUANTIZERS
from dllm_qbench.models.released import MODELS, PAPER_MODELS
from dllm_qbench.outcomes import read_records
from dllm_qbench.tasks.paper import PAPER_TASKS
from tests.full.conftest import Local
from tests.full.runs import measured, run_full

CELLS = len(QUANTIZERS) * len(PAPER_TASKS)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in PAPER_MODELS])
def test_the_other_released_models_run_all_tasks(model: str, local: Local, tmp_path: Path) -> None:
    found = measured(local, tmp_path, model, "-k", "quarot-W4A4")
    assert Counter(record.task for record in found) == dict.fromkeys(PAPER_TASKS, 1)


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
