"""What the views of a run share: one order of statuses, sizes in words, the run as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dllm_qbench.outcomes import INFORMATIONAL, Outcome
from dllm_qbench.run_view import WORST_FIRST, items_told, rank, severity, whole_run
from dllm_qbench.summary import render
from dllm_qbench.summary_data import summary_data
from dllm_qbench.terminal import plain_summary
from dllm_qbench.verdict.findings import SEVERITY


def outcome(lost: int, p_value: float, fails: bool) -> Outcome:
    verdict: dict[str, Any] = {
        "p_values": {"answers": p_value},
        "lost": lost,
        "gained": 0,
        "common": 100,
        "margin": 0.0,
        "drop": None,
    }
    status = "degraded" if fails else "equivalent"
    return Outcome("gptq/W4A16/math", "toy", status, fails=fails, verdict=verdict)


SOUND, BROKEN = outcome(1, 0.5, False), outcome(40, 1e-9, True)


def test_statuses_are_ordered_as_verdicts_are() -> None:
    assert (*reversed(SEVERITY), INFORMATIONAL) == WORST_FIRST
    assert sorted(WORST_FIRST, key=severity, reverse=True) == [*WORST_FIRST]
    assert severity("of another version") > severity("infra")


def test_failing_cells_come_first_whatever_they_are_called() -> None:
    told = Outcome("a/b/c", "toy", "infra", fails=False)
    assert sorted([SOUND, told, BROKEN], key=rank) == [BROKEN, told, SOUND]


@pytest.mark.parametrize("sizes", [(36, 40), (40, 36), (0, 36, 38, 40)])
def test_the_smaller_number_of_items_is_told_first(sizes: tuple[int, ...]) -> None:
    """36 and 40 are such that a set of both gives 40 first."""
    assert items_told(sizes) == "36-40"
    cells = [Outcome(f"gptq/W4A16/{size}", "toy", "infra", items=size) for size in sizes]
    assert any("toy, 36-40 items a cell" in line for line in plain_summary(cells, 80))


def test_of_a_cell_that_ran_twice_the_last_counts_in_every_view() -> None:
    for run, found in (([SOUND, BROKEN], True), ([BROKEN, SOUND], False)):
        assert bool(whole_run(run)) is found
        assert bool(summary_data(run)["whole_run"]) is found
        assert ("**whole run**" in render(run)) is found
        assert json.dumps(summary_data(run))
