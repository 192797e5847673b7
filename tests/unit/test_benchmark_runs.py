"""Runs of the kernels' benchmarks as people start them: what is refused, left out, stored, and failed.

Each run is a process of its own, on one thread, with the reference's kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_qbench.errors import QBenchError
from dllm_qbench.report.roofline import read_run
from tools.kernel_report import report

ROOT = Path(__file__).parents[2]
FOLDER = "tests/benchmarks"
CASE = "hessian-M512-1024-bfloat16"
TEST = f"{FOLDER}/test_kernels.py::test_kernel_is_as_fast_as_it_was[{CASE}]"
# All but the benchmarks, which a run of `tests` comes across.
OTHERS = ("--ignore-glob=tests/[!b_]*", "--ignore=tests/browser")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest; the settings of the run that this is part of are not passed on."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COV_")) and name != "CI"
    }
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "QBENCH_KERNELS": "torch"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**kept, **threads, **environment}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((FOLDER, "-n", "2"), "pytest-xdist is on"),
        ((TEST, "-n", "2"), "pytest-xdist is on"),
        (("-m", "bench", "-n", "2"), "pytest-xdist is on"),
        ((FOLDER, "--benchmark-disable"), "--benchmark-disable times nothing"),
        ((FOLDER, "--benchmark-skip"), "--benchmark-skip leaves all of them out"),
        ((FOLDER, "-p", "no:benchmark"), "pytest-benchmark is not loaded"),
    ],
)
def test_a_run_that_could_time_nothing_is_refused(arguments: tuple[str, ...], why: str) -> None:
    found = run(*arguments)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert why in found.stderr
    assert "run: pytest tests/benchmarks" in found.stderr


def test_an_update_is_refused_where_nobody_reviews_it() -> None:
    found = run(FOLDER, "--qbench-update-benchmarks", CI="true")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--qbench-update-benchmarks is refused under CI=true" in found.stderr


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_whole_run_leaves_them_out_and_says_so(workers: tuple[str, ...]) -> None:
    found = run("tests", *OTHERS, *workers)
    assert "BENCHMARKS DID NOT RUN" in found.stdout
    assert "kernel benchmarks were left out" in found.stdout
    assert "Run: pytest tests/benchmarks" in found.stdout
    assert found.returncode == pytest.ExitCode.NO_TESTS_COLLECTED  # nothing else was there


def test_a_run_that_chose_its_tests_is_not_told_of_others() -> None:
    found = run("tests", *OTHERS, "-m", "quick")
    assert "BENCHMARKS" not in found.stdout + found.stderr


def test_without_a_gpu_its_benchmarks_are_skipped_with_the_reason() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = run(FOLDER, "--qbench-device=cuda", "-rs")
    assert found.returncode == 0
    assert "sees no GPU" in found.stdout


def test_the_gate_fails_planted_slow_downs_and_nothing_else(tmp_path: Path) -> None:
    """The real gate on a real kernel: stored once, unchanged, each pass twice, asleep half the time."""
    folder, saved = f"--qbench-baselines={tmp_path}", tmp_path / "run.json"
    slowed = ("-p", "tests.benchmarks.slowed")
    stored = run(TEST, folder, "--qbench-update-benchmarks", f"--benchmark-json={saved}")
    assert stored.returncode == pytest.ExitCode.TESTS_FAILED
    assert "review the change" in stored.stdout
    (file,) = (tmp_path / "benchmarks").iterdir()
    assert [*json.loads(file.read_text())["cases"]] == [CASE]

    unchanged = run(TEST, folder)
    assert unchanged.returncode == 0, unchanged.stdout
    assert f"held against {file}" in unchanged.stdout
    for way in ("twice", "sleep"):
        found = run(TEST, folder, *slowed, f"--slowed={way}")
        assert found.returncode == pytest.ExitCode.TESTS_FAILED, found.stdout
        assert "slower, 3 times in a row" in found.stdout

    elsewhere = run(TEST, f"--qbench-baselines={tmp_path / 'none'}", *slowed)
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert "no baseline for this machine class: not gated" in elsewhere.stdout

    for shown in (stored, unchanged, found, elsewhere):
        start = shown.stdout.index("case, and its rivals")
        table = shown.stdout[start:].split("\n\n")[0]
        assert all(len(line) <= 100 for line in table.splitlines())
    page = report(read_run(saved), "roofline.svg")
    assert "## Hessian accumulation" in page
    assert "plain matmul" in page
    with pytest.raises(QBenchError, match="not a saved run of these benchmarks"):
        read_run(file)
