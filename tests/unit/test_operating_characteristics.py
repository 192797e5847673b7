"""The simulations behind ``docs/operating_characteristics.md``: against exact sums, on small counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binom

from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.matrix import CellTests, judge_matrix
from dllm_qbench.verdict.sequential import Sequential
from dllm_qbench.verdict.statistics import mcnemar_worse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("operating_simulations")


def test_rejection_table_is_the_suites_own_test(tool: ModuleType) -> None:
    grid = np.array([(lost, gained) for lost in range(40) for gained in range(20)])
    for level in (0.05, 0.001, tool.LEVEL):
        rejected = tool.mcnemar(grid[:, 0], grid[:, 1], level)
        assert list(rejected) == [mcnemar_worse(*map(int, row)) <= level for row in grid]


def test_exact_power_is_the_sum_over_all_outcomes(tool: ModuleType) -> None:
    truth, level = tool.Truth(30, 0.2, 0.05), 0.05
    total = 0.0
    for lost in range(31):
        for gained in range(31 - lost):
            chance = binom.pmf(lost, 30, 0.25) * binom.pmf(gained, 30 - lost, 0.05 / 0.75)
            total += chance * (mcnemar_worse(lost, gained) <= level)
    assert tool.power(truth, level) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("items", "drop"), [(60, 0.2), (300, 0.05)])
def test_simulated_catches_are_the_exact_ones(tool: ModuleType, items: int, drop: float) -> None:
    truth, draws = tool.Truth(items, drop, 0.02), 4000
    found = tool.catches(truth, draws, seed=1)
    slack = 4 * (0.25 / draws) ** 0.5
    assert found["one cell"] == pytest.approx(tool.power(truth, tool.LEVEL), abs=slack)
    assert found["pooled"] == pytest.approx(tool.power(truth, tool.LEVEL, tasks=3), abs=slack)
    assert found["any"] >= max(found["one cell"], found["pooled"])


def test_rates_add_up(tool: ModuleType) -> None:
    truth = tool.Truth(100, 0.03, 0.04)
    assert sum(truth.shares) == pytest.approx(1.0)
    assert truth.shares[1] - truth.shares[2] == pytest.approx(0.03)
    seen = tool.draw(truth, 2000, np.random.default_rng(0))
    assert seen.before.mean() == pytest.approx(90, abs=0.4)
    assert seen.after.mean() == pytest.approx(87, abs=0.4)


def test_simulated_false_alarms_are_those_of_judge_matrix(tool: ModuleType) -> None:
    """One run, drawn as the tool draws it, with and without a planted loss."""
    truth = tool.Truth(200, 0.0, 0.02)
    seen = tool.draw(truth, (1, tool.CELLS), np.random.default_rng(0))
    for planted in (0, 40):
        lost = seen.lost[0].copy()
        lost[0] += planted
        cells = [
            CellTests(
                "toy", f"m{n // 3}/W4A4/t{n % 3}", {"answers": mcnemar_worse(a, b)}, a, b, 200
            )
            for n, (a, b) in enumerate(zip(map(int, lost), map(int, seen.gained[0]), strict=True))
        ]
        together = lost.reshape(-1, 3).sum(1), seen.gained[0].reshape(-1, 3).sum(1)
        alarm = tool.mcnemar(lost, seen.gained[0]).any() or tool.mcnemar(*together).any()
        assert bool(judge_matrix(cells)) == alarm == bool(planted)


# Right before of 100, lost, gained; which peers blame.
PEER_CASES = [
    ((90, 0, 0), set()),
    ((90, 1, 0), {"recovery 99 %", "8 % tolerance, Wilson"}),  # 0.989; its bound 0.8274 < 0.828
    ((90, 4, 4), set()),
    (
        (90, 5, 0),  # 0.944 rounds to 0.94
        {"recovery 99 %", "8 % tolerance, Wilson", "5 % floor", "recovery 95 %, rounded"},
    ),
    (
        (90, 8, 0),  # 0.911; z = 8 / 100 / sqrt(0.09 / 99 + 0.1476 / 99) = 1.63
        {
            "recovery 99 %",
            "8 % tolerance, Wilson",
            "5 % floor",
            "recovery 95 %, rounded",
            "8 % tolerance",
        },
    ),
]


@pytest.mark.parametrize(("counts", "blaming"), PEER_CASES)
def test_peers_rules_on_hand_worked_counts(
    tool: ModuleType, counts: tuple[int, int, int], blaming: set[str]
) -> None:
    seen = tool.Draw(100, *(np.array([n]) for n in counts))
    assert {name for name, rule in tool.PEERS.items() if rule(seen)[0]} == blaming


def test_unpaired_z_blames_from_196_standard_errors(tool: ModuleType) -> None:
    # p = 0.9, q = 0.8 on 100 items: error sqrt((0.09 + 0.16) / 99) = 0.0503, so z = 1.99.
    assert tool.PEERS["unpaired z"](tool.Draw(100, *(np.array([n]) for n in (90, 10, 0))))[0]
    assert not tool.PEERS["unpaired z"](tool.Draw(100, *(np.array([n]) for n in (90, 9, 0))))[0]


def test_equivalence_at_the_end_is_tangos_score_test(tool: ModuleType) -> None:
    # Without discordant pairs the statistic is -sqrt(n delta / (1 - delta)): 1.645 at n = 87.5.
    found = [bool(tool.equivalent_at_end(np.array([0]), np.array([0]), n)[0]) for n in (87, 88)]
    assert found == [False, True]


def test_simulated_streams_stop_as_the_class_does(tool: ModuleType) -> None:
    settled = tool.sequels(tool.Truth(500, 0.0, 0.0), draws=1, seed=0)
    run = Sequential(Band("near-lossless", max_drop=1.0), tool.LEVEL_SEQUENTIAL)
    while not run.add(*[[True] * tool.CHUNK] * 3):
        pass
    assert (settled.equivalent, settled.degraded, settled.items) == (1.0, 0.0, run.items)
    lossy = tool.sequels(tool.Truth(500, 0.5, 0.0), draws=20, seed=0)
    assert (lossy.degraded, lossy.caught, lossy.equivalent) == (1.0, 1.0, 0.0)


def test_replay_of_stored_answers_settles_every_cell_early(tool: ModuleType) -> None:
    cells = tool.stored_cells()
    assert len(cells) == tool.CELLS
    seen = tool.replay(cells, 500, drop=0.0, flips=0.0, repeats=1, seed=0)
    assert (seen.equivalent, seen.degraded, seen.improved) == (1.0, 0.0, 0.0)
    assert seen.items <= 250


def test_page_states_the_acceptance_figures(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "operating_characteristics.md").read_text(encoding="utf-8")
    assert "`python tools/operating_characteristics.py`" in page.split("\n\n")[1]
    asked = tool.Truth(1319, 0.03, 0.04)
    for level, tasks in ((0.05, 1), (tool.LEVEL, 1), (tool.LEVEL, 3)):
        assert f"| 7.0 / 4.0 | {tool.power(asked, level, tasks):.3f} |" in page
