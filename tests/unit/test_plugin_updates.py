"""Recording baselines through the plugin: what is written, when it fails, when it is refused."""

from __future__ import annotations

import pytest

from dllm_qbench.outcomes import read_records
from tests.helpers.suite import ONE, Suite


def test_xdist_gives_the_same_table_records_and_baselines(recorded: Suite) -> None:
    pytest.importorskip("xdist")
    recorded.plan(math=(805, 95, 0, 100))
    before = recorded.stored()
    result = recorded.run("-n2", "--qbench-update", "--qbench-records=r.jsonl")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"{ONE} *10.6*written"])
    assert len(read_records(recorded.pytester.path / "r.jsonl")) == 3
    after = recorded.stored()
    assert after.pop(ONE)["quantized_accuracy"] == 0.805
    assert before.pop(ONE)["quantized_accuracy"] == 0.81
    assert after == before


def test_update_writes_and_fails_then_passes_once_reviewed(suite: Suite) -> None:
    result = suite.run("--qbench-update")
    result.assert_outcomes(failed=3)
    assert len(suite.stored()) == 3
    result.stdout.fnmatch_lines(
        [
            "*baseline written to *llada-embedded.json (band graceful *review the change*",
            f"{ONE} *written",
            "3 baselines written to *",
        ]
    )
    assert suite.run().ret == 0


def test_update_of_unchanged_cells_changes_nothing_and_passes(recorded: Suite) -> None:
    before = recorded.baseline.read_bytes()
    assert recorded.run("--qbench-update").ret == 0
    assert recorded.baseline.read_bytes() == before


def test_update_of_one_cell_leaves_the_others(recorded: Suite) -> None:
    before = recorded.stored()
    recorded.plan(math=(805, 95, 0, 100), code=(400, 500, 0, 100))
    recorded.run("--qbench-update", "-k", "math").assert_outcomes(failed=1, deselected=2)
    after = recorded.stored()
    assert after.pop(ONE) != before.pop(ONE)
    assert after == before


def test_update_outside_the_kept_band_fails_even_where_updates_pass(recorded: Suite) -> None:
    recorded.plan(math=(400, 500, 0, 100))
    result = recorded.run("--qbench-update-pass")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*but the band it keeps does not allow this: edit it*"])
    assert recorded.stored()[ONE]["quantized_accuracy"] == 0.4


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_update_is_refused_in_ci_without_the_second_flag(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CI", value)
    result = suite.run("--qbench-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-update is refused under CI=true*"])
    assert not suite.baseline.exists()
    assert suite.run("--qbench-update", "--qbench-update-pass").ret == 0
    assert suite.baseline.exists()
