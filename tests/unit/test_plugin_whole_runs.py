"""Whole runs through the plugin: what no cell shows alone, stopping early, and devices."""

from __future__ import annotations

import json

import pytest

from dllm_qbench.outcomes import read_records
from dllm_qbench.pytest_scheduling import scope_of
from tests.helpers.records import PROVENANCE
from tests.helpers.suite import ONE, Suite

# Ten answers lost on each of three tasks and none gained: p = 2^-10 each, above an equal share of
# 0.01 for 24 tests; 2^-30 together.
EACH_PASSES = dict.fromkeys(("general", "math", "code"), (800, 100, 0, 100))


@pytest.mark.parametrize("flags", [[], ["-q"], ["-qq"], ["-n2"]])
def test_loss_on_all_tasks_together_fails_a_run_whose_cells_all_pass(
    recorded: Suite, flags: list[str]
) -> None:
    if "-n2" in flags:
        pytest.importorskip("xdist")
    recorded.plan(**EACH_PASSES)
    result = recorded.run(*flags)
    result.stdout.no_fnmatch_line("FAILED*")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (line,) = (str(line) for line in result.outlines if "whole run:" in str(line))
    assert line.startswith(
        "whole run: gptq/W4A16-g64 on llada-embedded: worse than the baseline over"
    )
    assert "30 answers became wrong and 0 right on 3000 common items" in line
    assert "(code 10:0, general 10:0, math 10:0); p = 9e-10" in line


def test_loss_on_one_task_of_three_does_not_fail_the_run(recorded: Suite) -> None:
    recorded.plan(math=EACH_PASSES["math"])
    result = recorded.run()
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*whole run:*")


def test_share_of_a_cell_depends_on_how_many_are_selected(recorded: Suite) -> None:
    """2^-10 is below an equal share of 0.01 for the 8 tests of a run of one cell."""
    recorded.plan(**EACH_PASSES)
    result = recorded.run("-k", "math")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["*10 answers became wrong and 0 right on 1000 common items: worse *"]
    )


def test_sequential_run_stops_early_with_the_same_verdicts(recorded: Suite) -> None:
    recorded.plan(math=(400, 500, 0, 100))
    result = recorded.run("--qbench-sequential", "--qbench-records=r.jsonl")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*worse than the baseline; settled after 50 items", f"{ONE} *degraded"]
    )
    items = {r.task: r.items for r in read_records(recorded.pytester.path / "r.jsonl")}
    assert items == {"general": 150, "math": 50, "code": 150}


def test_sequential_run_of_a_slight_loss_runs_on_and_passes(recorded: Suite) -> None:
    """A point of accuracy, of which the first items have their share."""
    recorded.plan(math=(800, 100, 0, 100))
    assert recorded.run("--qbench-sequential", "--qbench-records=r.jsonl").ret == 0
    items = {r.task: r.items for r in read_records(recorded.pytester.path / "r.jsonl")}
    assert items["math"] > items["code"] == 150


@pytest.mark.parametrize(
    ("device", "wrong"), [(PROVENANCE["device"], True), ("cuda: another", False)]
)
def test_sequential_run_forgives_what_draws_may_lose_on_another_class_of_machine_only(
    recorded: Suite, device: str, wrong: bool
) -> None:
    """Three points are lost, inside the band; the draws' floor allows ten, the platform's none."""
    data = json.loads(recorded.baseline.read_text())
    for cell in data["cells"].values():
        cell["provenance"]["device"] = device
        cell["noise"]["draws"]["net_loss"] = 0.1
    recorded.baseline.write_text(json.dumps(data))
    recorded.plan(math=(780, 120, 0, 100))
    result = recorded.run("--qbench-sequential", "-k", "math")
    assert (result.ret != 0) == wrong
    assert ("worse than the baseline; settled after" in str(result.stdout)) == wrong


@pytest.mark.parametrize("flag", ["--qbench-update", "--qbench-update-pass"])
def test_sequential_run_cannot_write_baselines(recorded: Suite, flag: str) -> None:
    before = recorded.baseline.read_bytes()
    result = recorded.run("--qbench-sequential", flag)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-sequential stops cells early; a baseline needs all*"])
    assert recorded.baseline.read_bytes() == before


def test_device_reaches_the_models_from_either_place(suite: Suite) -> None:
    suite.pytester.makepyfile(
        test_cells="""
        def test_device(qbench_run, qbench_model):
            print("runs on", qbench_run.runner(qbench_model).device)
        """
    )
    suite.run("-s").stdout.fnmatch_lines(["*runs on cpu*"])
    suite.run("-s", "--qbench-device=cuda:1").stdout.fnmatch_lines(["*runs on cuda:1*"])
    suite.pytester.makeini("[pytest]\nqbench_model = tiny\nqbench_device = cuda")
    suite.run("-s").stdout.fnmatch_lines(["*runs on cuda*"])


def test_unknown_device_is_an_error_that_names_it(pytester: pytest.Pytester) -> None:
    suite = Suite(pytester)
    pytester.makeconftest("")  # the real runner of cells
    pytester.makepyfile(test_cells="def test_model(qbench_lm): pass")
    result = suite.run("--qbench-device=warp")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*QBenchError: device 'warp' cannot be used: *'cpu' always works"])


@pytest.mark.parametrize(
    ("workers", "expected"), [(1, "toy"), (2, "toy"), (3, "toy-gptq-W4A16-g64")]
)
def test_workers_share_out_cells_by_what_these_have_in_common(workers: int, expected: str) -> None:
    scopes = {
        scope_of(
            f"tests/test_x.py::test_cell[toy-gptq-W4A16-g64-{task}]", ["toy", "other"], workers
        )
        for task in ("general", "math", "code")
    }
    assert scopes == {expected}
    real = "tests/test_x.py::test_cell[other-gptq-W4A16-g128-arc_easy]"
    whole = "other" if workers <= 2 else "other-gptq-W4A16-g128"
    assert scope_of(real, ["toy", "other"], workers) == whole
    assert scope_of("tests/test_y.py::test_z[a-b]", ["toy", "other"], workers) == "tests/test_y.py"
