"""``--qbench-html`` from outside: the page, the records beside it, what it is compared with, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.report import write
from dllm_qbench.report.roofline import roofline
from dllm_qbench.summary_files import read_outcomes
from tests.helpers.suite import Suite
from tests.unit.test_roofline import outcome, saved

WORSE = {"math": (400, 500, 0, 100)}
"""Half of the answers lost."""


@pytest.fixture
def reported(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite with baselines, whose pages go without outlier maps: its cells are no real model's.

    What a page shows is put beside it.
    """
    monkeypatch.setattr(write, "EMBEDDED", {})
    sound = write.write_page

    def write_page(data: Any, path: Path) -> None:
        sound(data, path)
        path.with_suffix(".shown").write_text(json.dumps(data))

    monkeypatch.setattr(write, "write_page", write_page)
    return recorded


def page(suite: Suite) -> Any:
    return json.loads((suite.pytester.path / "report.shown").read_text())


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_run_writes_its_page_and_keeps_its_records_beside_it(
    reported: Suite, workers: list[str]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    reported.plan(**WORSE)
    result = reported.run("--qbench-html=report.html", *workers)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"report: {reported.pytester.path / 'report.html'}"])
    assert "1 of 3 cells" in (reported.pytester.path / "report.html").read_text()
    data = page(reported)
    assert data["verdict"]["failing"] == 1
    assert {cell["task"]: cell["fails"] for cell in data["cells"]} == {
        "general": False,
        "math": True,
        "code": False,
    }
    assert data["comparison"] is None
    assert len(read_outcomes(reported.pytester.path / "report.jsonl")) == 3


def test_the_next_run_is_compared_with_the_one_before(reported: Suite) -> None:
    reported.run("--qbench-html=report.html").assert_outcomes(passed=3)
    reported.plan(**WORSE)
    reported.run("--qbench-html=report.html").assert_outcomes(passed=2, failed=1)
    found = page(reported)["comparison"]
    assert (found["base"], found["both"], len(found["changed"])) == ("the previous run", 3, 1)
    assert found["changed"][0]["before"] == "equivalent"
    assert page(reported)["cells"][found["changed"][0]["cell"]]["task"] == "math"


def test_a_named_base_comes_before_the_previous_run(reported: Suite) -> None:
    reported.run("--qbench-records=base.jsonl").assert_outcomes(passed=3)
    reported.plan(**WORSE)
    reported.run("--qbench-html=report.html")
    reported.run("--qbench-html=report.html", "--qbench-base=base.jsonl")
    found = page(reported)["comparison"]
    assert (found["base"], len(found["changed"])) == ("base.jsonl", 1)


def test_records_may_be_asked_for_under_the_page_s_own_name(reported: Suite) -> None:
    """The file is begun anew by the run that reads it."""
    names = ("--qbench-html=report.html", "--qbench-records=report.jsonl")
    reported.run(*names).assert_outcomes(passed=3)
    reported.plan(**WORSE)
    reported.run(*names).assert_outcomes(passed=2, failed=1)
    assert len(page(reported)["comparison"]["changed"]) == 1
    assert len(read_outcomes(reported.pytester.path / "report.jsonl")) == 3


def test_damaged_records_of_the_previous_run_cost_nothing(reported: Suite) -> None:
    (reported.pytester.path / "report.jsonl").write_text("{broken\n")
    result = reported.run("--qbench-html=report.html")
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not compared with the previous run: *report.jsonl:1: *"])
    assert page(reported)["comparison"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qbench-html=report.html", "--qbench-base=none.jsonl"], "*none.jsonl: cannot be read*"),
        (["--qbench-base=none.jsonl"], "*--qbench-html compares with: give both*"),
        (["--qbench-html=baselines"], "*baselines is a folder*"),
        (["--qbench-html=report.jsonl"], "*expected a name such as report.html*"),
    ],
)
def test_bad_options_cost_no_run(reported: Suite, options: list[str], message: str) -> None:
    result = reported.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_page_that_cannot_be_written_fails_the_run_and_loses_nothing(reported: Suite) -> None:
    (reported.pytester.path / "a file").write_text("")
    result = reported.run("--qbench-html=a file/report.html", "--qbench-records=r.jsonl")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*--qbench-html: *report.html was not written: *"])
    assert len(read_outcomes(reported.pytester.path / "r.jsonl")) == 3


def test_a_run_without_cells_writes_no_page(reported: Suite) -> None:
    reported.run("--qbench-html=report.html", "-k", "no_such_test")
    assert not (reported.pytester.path / "report.html").exists()


def test_a_run_of_kernels_alone_has_a_page_with_their_roofline(
    reported: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(outcome())
    monkeypatch.setattr("dllm_qbench.report.roofline.session_run", lambda config: run)
    result = reported.run("--qbench-html=report.html", "-k", "no_such_test")
    result.stdout.fnmatch_lines([f"report: {reported.pytester.path / 'report.html'}"])
    assert page(reported)["roofline"] == roofline(run)
    assert not (reported.pytester.path / "report.jsonl").exists()
