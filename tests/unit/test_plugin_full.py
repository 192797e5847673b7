"""The full tier in pytest: what is collected, what becomes of a cell, and the exit status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dllm_qbench.outcomes import read_records
from tests.helpers.suite import Suite

CONFTEST = """
import json, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from dllm_qbench.errors import QBenchError
from tests.helpers import records


class JobRunner:
    def __init__(self, model, setup, store):
        self.model, self.setup = model, setup

    def fits(self, job):
        return (job.model, job.setup) == (self.model, self.setup)

    def release_quantized(self):
        pass

    def run(self, job, progress=None):
        plan = json.loads(Path("plan.json").read_text())
        said = plan.get(job.cell, [60, 10, 0, 30])
        if isinstance(said, str):
            raise QBenchError(said)
        made = records.make_record(counts=said, cell=job.cell, model=job.model)
        origin = {"model": {"stands_in": plan.get("stands_in", False)}}
        return records.spread(replace(made, provenance={**records.PROVENANCE, **origin}))


sys.modules["dllm_qbench.engine.job_runner"] = SimpleNamespace(JobRunner=JobRunner)
"""
TESTS = """
import pytest

@pytest.mark.full
@pytest.mark.parametrize("task", ["winogrande", "gsm8k"])
@pytest.mark.parametrize(("method", "scheme"), [("smoothquant", "W4A4"), ("gptq", "W4A16-g128")])
def test_cell(method, scheme, task, qbench_job):
    assert qbench_job(method, scheme, task).cell == f"{method}/{scheme}/{task}"

def test_other():
    pass
"""
BASE = "--qbench-model=llada-8b-base"


@pytest.fixture
def full(suite: Suite) -> Suite:
    suite.pytester.makeconftest(CONFTEST)
    suite.pytester.makepyfile(test_cells=TESTS)
    suite.pytester.makeini("[pytest]")
    plan(suite)
    return suite


def plan(suite: Suite, **said: Any) -> None:
    (suite.pytester.path / "plan.json").write_text(json.dumps(said))


def test_full_tier_is_left_out_unless_asked_for(full: Suite) -> None:
    plan(full, **{"smoothquant/W4A4/gsm8k": [0, 70, 0, 30]})
    full.run().assert_outcomes(passed=1, deselected=12)
    full.run("-m", "full").assert_outcomes(passed=12, deselected=1)
    full.run("-m", "full", "--qbench-model=llada-1.5").assert_outcomes(passed=4, deselected=1)
    one = "test_cells.py::test_cell[dream-7b-base-gptq-W4A16-g128-gsm8k]"
    full.run(one).assert_outcomes(passed=1)


def test_cells_of_each_model_of_the_paper_are_collected_by_name(full: Suite) -> None:
    assert "full tier" not in full.run("--collect-only").stdout.str()
    result = full.run("-m", "full", "--collect-only", "--qbench-limit=7")
    result.stdout.fnmatch_lines(
        ["qbench: full tier, paper settings, first 7 items, bfloat16 on cpu, kept in .qbench/store"]
    )
    result = full.run("-m", "full", "--collect-only", "-q")
    for model in ("llada-8b-base", "llada-8b-instruct", "dream-7b-base"):
        result.stdout.fnmatch_lines([f"*[[]{model}-smoothquant-W4A4-winogrande[]]"])


def test_a_cell_without_baseline_and_band_is_told_and_passes(full: Suite) -> None:
    result = full.run("-m", "full", "--qbench-model=llada-1.5", "-k", "gptq and gsm8k")
    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines(["gptq/W4A16-g128/gsm8k  * 14.3 [[]*[]]  - *informational"])


def test_what_could_not_be_measured_is_infra_and_fails_the_run(full: Suite) -> None:
    why = "llada-1.5: the weights are not on this machine. Download them with: hf download it"
    plan(full, **{f"{q}/{t}": why for q in QUANTIZERS for t in ("gsm8k", "winogrande")})
    result = full.run("-m", "full", "--qbench-model=llada-1.5", "--qbench-records=r.jsonl")
    result.assert_outcomes(failed=4, deselected=1)
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        ["gptq/W4A16-g128/gsm8k *infra", f"4 cell(s) not measured: QBenchError: {why}"]
    )
    lines = (full.pytester.path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["infra"] * 4


QUANTIZERS = ("smoothquant/W4A4", "gptq/W4A16-g128")


def test_the_papers_band_judges_a_real_model_that_has_no_baseline(full: Suite) -> None:
    """SmoothQuant W4A4 on GSM8K collapses in the paper; a model that keeps all does not fit."""
    cell = "smoothquant/W4A4/gsm8k"
    plan(full, **{cell: [20, 480, 0, 200]})
    selected = ("-m", "full", BASE, "-k", "smoothquant and gsm8k", "--qbench-limit=700")
    result = full.run(*selected, "-v")
    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines([f"{cell}  *collapse >=*equivalent"])
    plan(full, **{cell: [500, 0, 0, 200]})
    result = full.run(*selected)
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines([f"{cell} on llada-8b-base: improved*"])


def test_a_finding_of_the_paper_that_is_refuted_fails_the_run(full: Suite) -> None:
    """GPTQ at 4 bits keeps QA within 1 %: here each task alone is in no band, and all lose a fifth."""
    full.pytester.makepyfile(
        test_cells="""
        import pytest

        @pytest.mark.full
        @pytest.mark.parametrize(
            "task", ["winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag", "mmlu"]
        )
        def test_cell(task, qbench_job):
            qbench_job("gptq", "W4A16-g128", task)
        """
    )
    tasks = ("winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag", "mmlu")
    cells = {f"gptq/W4A16-g128/{task}": [800, 0, 0, 200] for task in tasks}
    plan(full, **cells)
    result = full.run("-m", "full", BASE)
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    plan(full, **{cell: [640, 160, 0, 200] for cell in cells})
    result = full.run("-m", "full", BASE)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["whole run: the paper's finding *gptq*:*"])


@pytest.mark.parametrize("stands_in", [True, False])
def test_a_stand_in_is_never_judged(full: Suite, stands_in: bool) -> None:
    plan(full, **{"smoothquant/W4A4/gsm8k": [500, 0, 0, 200], "stands_in": stands_in})
    result = full.run("-m", "full", BASE, "-k", "smoothquant and gsm8k")
    result.assert_outcomes(passed=int(stands_in), failed=int(not stands_in), deselected=4)
    refused = full.run("-m", "full", BASE, "-k", "smoothquant and gsm8k", "--qbench-update-pass")
    written = (full.pytester.path / "baselines" / "llada-8b-base.json").exists()
    assert written != stands_in
    assert refused.ret == 0


def test_a_measured_baseline_comes_before_the_paper(full: Suite) -> None:
    cell = "gptq/W4A16-g128/gsm8k"
    selected = ("-m", "full", BASE, "-k", "gptq and gsm8k")
    full.run(*selected, "--qbench-update-pass").assert_outcomes(passed=1, deselected=4)
    full.run(*selected, "--qbench-records=r.jsonl").assert_outcomes(passed=1, deselected=4)
    assert [r.cell for r in read_records(full.pytester.path / "r.jsonl")] == [cell]
    plan(full, **{cell: [20, 50, 0, 30]})
    result = full.run(*selected)
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines([f"{cell} on llada-8b-base: degraded"])


def test_brief_settings_are_measured_but_not_judged_and_never_become_a_baseline(
    full: Suite,
) -> None:
    plan(full, **{"smoothquant/W4A4/gsm8k": [500, 0, 0, 200]})
    brief = ("-m", "full", BASE, "-k", "smoothquant and gsm8k", "--qbench-profile=brief")
    full.run(*brief).assert_outcomes(passed=1, deselected=4)
    refused = full.run(*brief, "--qbench-update-pass")
    refused.stderr.fnmatch_lines(["*--qbench-profile=brief measures other settings than*"])


def test_shards_share_out_the_cells(full: Suite) -> None:
    ran: list[str] = []
    for part in (1, 2, 3):
        records = f"{part}.jsonl"
        full.run("-m", "full", f"--qbench-shard={part}/3", f"--qbench-records={records}")
        path = full.pytester.path / records
        ran += [f"{r.model} {r.cell}" for r in read_records(path)] if path.exists() else []
    assert len(ran) == len({*ran}) == 12
    refused = full.run("-m", "full", "--qbench-shard=4/3")
    refused.stderr.fnmatch_lines(["*--qbench-shard: *4/3*"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--qbench-limit=0", "--qbench-limit is '0', expected a count of at least 1"),
        ("--qbench-dtype=fp8", "--qbench-dtype is 'fp8', expected one of float32, "),
        ("--qbench-engine=dask", "--qbench-engine is 'dask', expected one of local, ray"),
        ("--qbench-models-dir=nowhere", "--qbench-models-dir: *nowhere is no folder"),
        ("--qbench-gpus-per-cell=-1", "--qbench-gpus-per-cell is '-1', expected a number"),
        ("--qbench-store=plan.json", "--qbench-store: *plan.json is not a folder"),
    ],
)
def test_bad_options_are_named(full: Suite, option: str, said: str) -> None:
    result = full.run("-m", "full", option)
    result.stderr.fnmatch_lines([f"*{said}*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_more_workers_than_gpus_are_refused_before_any_starts(
    full: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist", reason="workers come with pytest-xdist, in the extra 'test'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    result = full.run("-m", "full", "--qbench-device=cuda", "-n", "3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-device cuda: *3 workers*2 GPU*"])
    result = full.run("-m", "full", "--qbench-device=cuda:1", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
