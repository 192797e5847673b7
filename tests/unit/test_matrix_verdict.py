"""What a whole run says: Holm over all its tests, and the tasks of a quantized model together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.verdict.matrix import (
    ALPHA_RUN,
    POOLED,
    CellTests,
    cell_alpha,
    family_size,
    judge_matrix,
)
from dllm_qbench.verdict.statistics import mcnemar_worse

TASKS = ("general", "math", "code")


def cell(
    name: str, lost: int = 0, gained: int = 0, margin: float = 0.0, **tests: float
) -> CellTests:
    answers = mcnemar_worse(lost, gained, margin)
    return CellTests("toy", name, {"answers": answers, **tests}, lost, gained, 500, margin)


def run_of(*pairs: tuple[int, int], scheme: str = "gptq/W4A16") -> list[CellTests]:
    return [cell(f"{scheme}/{task}", *pair) for task, pair in zip(TASKS, pairs, strict=False)]


def test_unchanged_run_has_no_finding() -> None:
    assert judge_matrix(run_of((0, 0), (3, 3), (5, 8))) == ()
    assert judge_matrix([]) == ()


def test_cell_that_is_surely_worse_is_named_with_its_test() -> None:
    cells = [*run_of((0, 0), (30, 2)), *run_of((1, 1), (2, 2), scheme="awq/W3A16")]
    (finding,) = [f for f in judge_matrix(cells) if f.scope == "cell"]
    assert (finding.model, finding.cell, finding.test) == ("toy", "gptq/W4A16/math", "answers")
    assert finding.p_value == mcnemar_worse(30, 2)
    assert finding.text.startswith("gptq/W4A16/math on toy: answers left its baseline; p = 1e-07")


def test_loss_on_no_task_alone_is_found_on_all_together() -> None:
    # p = 0.002 each, which Holm over four tests at 0.01 does not quite reject at its first step.
    cells = run_of((20, 6), (20, 6), (20, 6))
    assert all(0.0025 < test < 0.006 for task in cells for test in task.p_values.values())
    (finding,) = judge_matrix(cells)
    assert (finding.scope, finding.cell, finding.test) == ("quantized model", "gptq/W4A16", POOLED)
    assert finding.p_value == mcnemar_worse(60, 18)
    assert finding.cells == tuple(f"gptq/W4A16/{task}" for task in TASKS)
    assert (
        "worse than the baseline over its 3 tasks together: 60 answers became wrong and 18 right "
        in (finding.text)
    )
    assert "on 1500 common items (general 20:6, math 20:6, code 20:6)" in finding.text


def test_margins_add_up_when_tasks_are_pooled() -> None:
    cells = [cell(f"gptq/W4A16/{task}", 20, 6, margin=8.0) for task in TASKS]
    assert judge_matrix(cells) == ()
    (finding,) = (f for f in judge_matrix(cells, alpha=0.9) if f.test == POOLED)
    assert finding.p_value == mcnemar_worse(60, 18, 24.0)
    assert "24 more than gained are allowed" in finding.text


def test_one_task_alone_is_not_tested_twice() -> None:
    assert family_size(run_of((1, 0))) == 1
    assert family_size(run_of((1, 0), (1, 0))) == 3
    assert family_size([cell("gptq/W4A16/math", kl=0.5), cell("awq/W4A16/math")]) == 3


def test_other_models_and_schemes_are_not_pooled() -> None:
    first = run_of((9, 0))[0]
    others = [replace(first, model="other"), replace(first, cell="gptq/W3A16/math")]
    assert family_size([first, *others]) == 3


def test_full_matrix_has_112_tests_of_its_answers() -> None:
    cells = [t for n in range(28) for t in run_of((0, 0), (0, 0), (0, 0), scheme=f"m{n}/W4A4")]
    assert (len(cells), family_size(cells)) == (84, 112)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_order_of_cells_does_not_matter(p_values: list[float], random: object) -> None:
    cells = [cell(f"m{n}/W4A4/math", kl=p) for n, p in enumerate(p_values)]
    turned = [*cells]
    random.shuffle(turned)  # type: ignore[attr-defined]
    assert set(judge_matrix(cells, 0.1)) == set(judge_matrix(turned, 0.1))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_adds_to_what_an_equal_share_rejects(p_values: list[float]) -> None:
    cells = [
        CellTests("toy", f"m{n}/W4A4/math", {"kl": p}, 0, 0, 9) for n, p in enumerate(p_values)
    ]
    found = {finding.cell for finding in judge_matrix(cells)}
    assert found >= {c.cell for c in cells if c.p_values["kl"] <= cell_alpha(len(cells))}
    assert all(finding.adjusted <= ALPHA_RUN for finding in judge_matrix(cells))


def test_unchanged_runs_raise_a_false_alarm_no_more_often_than_alpha() -> None:
    # 600 runs of 12 cells with 4 % flips each way on 500 items, at 0.1 to see anything: sd 0.012.
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(600):
        counts = rng.multinomial(500, [0.04, 0.04, 0.92], size=12)
        cells = [
            cell(f"m{n // 3}/W4A4/{TASKS[n % 3]}", int(row[0]), int(row[1]))
            for n, row in enumerate(counts)
        ]
        alarms += bool(judge_matrix(cells, alpha=0.1))
    assert 0 < alarms / 600 <= 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CellTests("toy", "gptq/math", {}, 0, 0, 1), "expected method/scheme/task"),
        (lambda: cell("gptq/W4A4/math", kl=1.5), "the p-value of 'kl' is 1.5"),
        (lambda: cell("gptq/W4A4/math", kl=float("nan")), "the p-value of 'kl' is nan"),
        (lambda: judge_matrix(run_of((0, 0)) * 2), "comes twice"),
        (lambda: judge_matrix([], alpha=0.0), "alpha is 0.0"),
        (lambda: cell_alpha(0), "tests_in_run is 0"),
    ],
)
def test_run_that_means_nothing_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_judging_a_run_needs_no_torch() -> None:
    code = (
        "import sys, dllm_qbench.verdict.matrix, dllm_qbench.verdict.sequential;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
