"""Quantizers of a user's own in a pytest run: the option, the fixture, and whose band holds."""

from __future__ import annotations

import pytest

from tests.helpers.suite import CONFTEST, Suite

ALIKE = """
from dataclasses import replace
from dllm_qbench.baselines import CellBaseline
from dllm_qbench.verdict import alike
from dllm_qbench.verdict.bands import Band

def stored(like, task, model):
    record = fake_cells.measured(f"{like}-g64/{task}", model)
    return alike.Like(replace(CellBaseline.from_record(record), band=Band("graceful", 5.0, 15.0)), {})

alike.find_like = stored
"""
MINE = "--qbench-subject=pkg.mod:mine"


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Suite:
    made = Suite(pytester)
    pytester.makeconftest(CONFTEST + ALIKE)
    return made


def test_option_alone_runs_the_cells_of_the_subject_and_nothing_else(suite: Suite) -> None:
    result = suite.run("-v", MINE, "--qbench-like=gptq/W4A16", "--qbench-schemes=W4A16-g64,W8A8")
    result.assert_outcomes(passed=6)
    cells = [f"mine/{s}/{t}" for s in ("W4A16-g64", "W8A8") for t in ("general", "math", "code")]
    assert all(cell in result.stdout.str() for cell in cells)
    assert "gptq/W4A16-g64/" not in result.stdout.str()


def test_option_beside_tests_that_are_named_runs_both(suite: Suite) -> None:
    given = ("-v", MINE, "--qbench-like=gptq/W4A16", "--qbench-tasks=math")
    result = suite.run("test_cells.py", *given)
    assert "mine/W4A16-g64/math" in result.stdout.str()
    assert "gptq/W4A16-g64/code" in result.stdout.str()


def test_cells_can_be_chosen_by_name(suite: Suite) -> None:
    result = suite.run(MINE, "--qbench-like=gptq/W4A16", "-k", "mine-W4A16-g64-math")
    result.assert_outcomes(passed=1, deselected=2)


def test_xdist_shares_the_cells_out(suite: Suite) -> None:
    result = suite.run(MINE, "--qbench-like=gptq/W4A16", "-n", "2")
    result.assert_outcomes(passed=3)


def test_fixture_takes_a_function_and_a_name(suite: Suite) -> None:
    suite.pytester.makepyfile(
        test_cells="""
        def mine(lm, scheme, calibration):
            return lm

        def test_mine(qbench_subject, qbench_cell):
            qbench_cell(qbench_subject(mine, "W8A8", method="named"), "math", like="gptq/W8A8")
        """
    )
    result = suite.run()
    result.assert_outcomes(passed=1)
    assert "named/W8A8/math" in result.stdout.str()


def test_band_of_another_holds_until_a_baseline_is_recorded_and_is_its_first(suite: Suite) -> None:
    arguments = ("-v", MINE, "--qbench-like=gptq/W4A16", "--qbench-tasks=math")
    before = suite.run(*arguments)
    assert "graceful 5..15" in before.stdout.str()
    assert not suite.baseline.exists()
    suite.run(*arguments, "--qbench-update-pass").assert_outcomes(passed=1)
    stored = suite.stored()["mine/W4A16-g64/math"]
    assert stored["band"] == {"kind": "graceful", "min_drop": 5.0, "max_drop": 15.0}
    stored = suite.baseline.read_text()
    suite.baseline.write_text(stored.replace('"max_drop": 15.0', '"max_drop": 16.0'))
    own = suite.run(*arguments)
    assert "graceful 5..16" in own.stdout.str()


def test_band_that_is_left_fails_and_says_whose_it_is(suite: Suite) -> None:
    cells = suite.pytester.path / "cells.json"
    cells.write_text('{"mine/W4A16-g64/math": [500, 400, 0, 100]}')
    result = suite.run(MINE, "--qbench-like=gptq/W4A16", "--qbench-tasks=math")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["mine/W4A16-g64/math on llada-embedded: degraded", "*expected *(like gptq/W4A16-g64/math*"]
    )


def test_without_baseline_and_without_like_the_message_says_how_to_record(suite: Suite) -> None:
    result = suite.run(MINE, "--qbench-tasks=math")
    result.assert_outcomes(failed=1)
    assert "--qbench-update" in result.stdout.str()


def test_sequential_runs_judge_by_the_band_of_another_at_the_end(suite: Suite) -> None:
    result = suite.run(
        MINE, "--qbench-like=gptq/W4A16", "--qbench-tasks=math", "--qbench-sequential"
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--qbench-schemes=W4A5", "scheme 'W4A5': activations must be 4, 8 or 16 bits"),
        ("--qbench-schemes=,", "--qbench-schemes is empty"),
        ("--qbench-tasks=maths", "expected one or more of general, math, code"),
    ],
)
def test_bad_option_is_a_usage_error(suite: Suite, option: str, error: str) -> None:
    result = suite.run(MINE, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert error in result.stderr.str()


def test_shards_share_out_what_a_selection_leaves(suite: Suite) -> None:
    """The parts are of the cells that ``-k`` chose: none is empty while another has them all."""
    chosen = ("--qbench-subject=pkg.mod:one,pkg.mod:two", "-k", "W8A8-math")
    given = ("--qbench-like=gptq/W8A8", "--qbench-schemes=W4A16-g64,W8A8", *chosen)
    for part in (1, 2):
        suite.run(*given, f"--qbench-shard={part}/2").assert_outcomes(passed=1, deselected=11)
