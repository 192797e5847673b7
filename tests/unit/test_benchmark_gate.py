"""The gate of the kernels' benchmarks: what may vary, when it fails, and the file of stored ratios."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.benchmarks import gate
from dllm_qbench.benchmarks.gate import (
    QUIET,
    Bar,
    Expected,
    Finding,
    allowed_factor,
    decide,
    judge,
    pooled_spread,
    unless_busy,
)
from dllm_qbench.benchmarks.machine import Neighbours
from dllm_qbench.benchmarks.ratios import Ratio
from dllm_qbench.benchmarks.stored import StoredCase, path_of, read_ratios, write_case
from dllm_qbench.errors import BaselineError
from tests.helpers.timings import CASE, MACHINE, PROVENANCE, Simulation, stored

factors = st.floats(0.01, 100)


# --- the decision ------------------------------------------------------------------------------

point = st.floats(0.05, 50).map(lambda value: Ratio(value, value * 0.97, value * 1.03, value, 9))


@given(point, st.floats(1.0, 1.5))
def test_what_was_stored_passes_and_half_of_it_fails(found: Ratio, allowed: float) -> None:
    expected = Expected("rival", found.median, allowed)
    assert judge({"rival": found}, (), expected).status in ("pass", "faster")
    half = Ratio(found.median / 2, found.low / 2, found.high / 2, found.best / 2, 9)
    finding = judge({"rival": half}, (), expected)
    assert finding.status == "slower"
    assert "stored is" in finding.text


@given(point, st.floats(0.01, 100))
def test_bar_fails_only_where_the_whole_interval_is_below_it(found: Ratio, bar: float) -> None:
    expected = Expected("rival", found.median, 1.5)
    finding = judge({"rival": found}, (Bar("rival", bar),), expected)
    assert (finding.status == "below bar") == (found.high < bar)
    assert finding.doubtful == (found.median < bar)
    assert finding.doubtful or not finding.fails


def test_a_bar_without_its_rival_fails() -> None:
    found = {"copy": Ratio(1, 1, 1, 1, 9)}
    assert judge(found, (Bar("gone", 0.1),), Expected("copy", 1.0, 1.5)).fails


def test_without_stored_ratios_nothing_fails() -> None:
    finding = judge({"rival": Ratio(0.1, 0.1, 0.1, 0.1, 9)}, (Bar("rival", 25),), None)
    assert (finding.status, finding.fails) == ("not gated", False)


@given(st.lists(factors, min_size=1, max_size=8), st.none() | st.floats(0, 2))
def test_allowance_lies_between_its_ends(runs: list[float], pooled: float | None) -> None:
    assert math.exp(gate.LEAST) <= allowed_factor(runs, pooled) * (1 + 1e-12)
    assert allowed_factor(runs, pooled) <= math.exp(gate.MOST) * (1 + 1e-12)
    assert math.exp(gate.MOST) < 2  # so half the speed is always beyond it


def test_allowance_grows_with_the_spread_and_falls_with_the_runs() -> None:
    def of(spread: float, runs: int) -> float:
        return allowed_factor([math.exp(spread * (-1) ** n) for n in range(runs)], spread)

    assert of(0.03, 4) < of(0.05, 4) < of(0.08, 4)
    assert of(0.05, 8) < of(0.05, 4) < of(0.05, 2)


def test_one_run_alone_allows_the_most() -> None:
    assert allowed_factor([3.0], None) == pytest.approx(math.exp(gate.MOST))
    assert pooled_spread([[3.0], [1.0]]) is None
    assert pooled_spread([[1.0, math.e], [2.0]]) == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize(
    ("slow", "fails", "measured"),
    [((), False, 1), ((0,), False, 2), ((0, 1), False, 3), ((0, 1, 2), True, 3)],
)
def test_a_failure_has_to_be_there_again(slow: Sequence[int], fails: bool, measured: int) -> None:
    def measure(attempt: int) -> Mapping[str, Ratio]:
        value = 0.5 if attempt in slow else 1.0
        return {"rival": Ratio(value, value, value, value, 9)}

    _, finding, attempts = decide(measure, (), Expected("rival", 1.0, 1.5))
    assert (finding.fails, attempts) == (fails, measured)


def test_what_stays_doubtful_does_not_fail() -> None:
    """Median below the limit, interval across it, three times."""
    wide = {"rival": Ratio(0.6, 0.4, 0.8, 0.6, 9)}
    _, finding, attempts = decide(lambda _: wide, (), Expected("rival", 1.0, 1.5))
    assert (finding.status, attempts) == ("pass", 3)


def test_shortest_times_that_are_as_stored_are_not_measured_again() -> None:
    disturbed = {"rival": Ratio(0.5, 0.4, 0.6, 0.98, 9)}
    _, finding, attempts = decide(lambda _: disturbed, (), Expected("rival", 1.0, 1.5))
    assert (finding.status, attempts) == ("pass", 1)


# --- operating characteristics -----------------------------------------------------------------
# Sizes of noise: tests/helpers/timings.py says where they come from.


def test_unchanged_suite_does_not_fail_beside_a_neighbour() -> None:
    """Five reruns of 16 cases, ten times over."""
    simulation = Simulation(seed=1)
    failed = sum(simulation.fails(1.0) for _ in range(800))
    assert failed == 0, f"{failed} of 800 unchanged cases failed"


@pytest.mark.parametrize(("slower", "least"), [(2.0, 0.99), (1.8, 0.97)])
def test_planted_slow_downs_fail(slower: float, least: float) -> None:
    simulation = Simulation(seed=2)
    failed = sum(simulation.fails(slower) for _ in range(200)) / 200
    assert failed >= least


# --- the stored file ---------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_of(tmp_path, MACHINE)


def test_runs_are_added_and_the_spread_follows(path: Path) -> None:
    for run in (2.0, 2.2, 2.1):
        write_case(path, MACHINE, CASE, stored(run))
    found = read_ratios(path)
    assert found.cases[CASE].runs == (2.0, 2.2, 2.1)
    expected = found.expected(CASE, [Bar("copy", 0.5)])
    assert expected is not None
    assert (expected.rival, expected.ratio) == ("copy", 2.1)
    spread = statistics.stdev(map(math.log, (2.0, 2.2, 2.1)))
    data = json.loads(path.read_text())["cases"][CASE]
    assert data["spread"] == pytest.approx(spread, abs=1e-4)
    assert data["floors"] == {"copy": 0.5}
    write_case(path, MACHINE, CASE, stored(3.0), anew=True)
    assert read_ratios(path).cases[CASE].runs == (3.0,)


def test_old_runs_drop_out_and_another_rival_starts_over(path: Path) -> None:
    for run in range(1, 12):
        write_case(path, MACHINE, CASE, stored(float(run)))
    assert read_ratios(path).cases[CASE].runs == tuple(map(float, range(4, 12)))
    write_case(path, MACHINE, CASE, StoredCase("dense fp32", (9.0,), {}, PROVENANCE))
    assert read_ratios(path).cases[CASE].runs == (9.0,)


def test_writing_a_case_leaves_the_others_alone(path: Path) -> None:
    write_case(path, MACHINE, CASE, stored(2.0))
    before = path.read_text()
    write_case(path, MACHINE, "w8a8-M512-4096x4096-bfloat16", stored(1.5))
    after = path.read_text()
    assert before.split('"cases"')[1].strip(" \n{}:") in after
    assert len(read_ratios(path).cases) == 2
    assert path.parent.name == "benchmarks"
    assert [*path.parent.iterdir()] == [path]  # nothing temporary stays


def test_floors_that_differ_from_the_bars_are_an_error(path: Path) -> None:
    write_case(path, MACHINE, CASE, stored(2.0))
    with pytest.raises(BaselineError, match=r"floors are \{'copy': 0.5\}, but the case has"):
        read_ratios(path).expected(CASE, [Bar("copy", 0.6)])
    assert read_ratios(path).expected("other-M1-2", []) is None


def test_another_chip_of_the_class_does_not_write(path: Path) -> None:
    from dataclasses import replace

    write_case(path, MACHINE, CASE, stored(2.0))
    with pytest.raises(BaselineError, match="processor is 'Chip'"):
        write_case(path, replace(MACHINE, processor="Other"), CASE, stored(2.0))


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit(lambda d: d.pop("processor")), "field processor is missing"),
        (_edit(lambda d: d["cases"][CASE].pop("runs")), r"field cases\['.*'\].runs is missing"),
        (_edit(lambda d: d["cases"][CASE]["runs"].append(-1)), r"runs\[1\]: -1 is less than"),
        (_edit(lambda d: d["cases"][CASE].update(ratio=9.0)), r"\.ratio is 9.0, but its runs give"),
        (_edit(lambda d: d["cases"][CASE].update(spread=0.1)), r"\.spread is 0.1, but its runs"),
        (_edit(lambda d: d["cases"][CASE]["provenance"].pop("commit")), "commit is missing"),
        (_edit(lambda d: d["cases"].update(odd={})), "'odd' does not match"),
        (_edit(lambda d: d.update(machine_class="a-b")), "machine_class is 'a-b', expected"),
        (lambda text: text[:-20], "the file ends early"),
        (lambda text: text.replace("2.0", "NaN"), "expected a finite number"),
    ],
)
def test_a_file_that_is_not_right_is_named(
    path: Path, edit: Callable[[str], str], message: str
) -> None:
    write_case(path, MACHINE, CASE, stored(2.0))
    path.write_text(edit(path.read_text()))
    with pytest.raises(BaselineError, match=message) as error:
        read_ratios(path)
    assert str(path) in str(error.value)


def test_a_missing_file_says_how_to_record_it(path: Path) -> None:
    with pytest.raises(BaselineError, match="--qbench-update-benchmarks"):
        read_ratios(path)


@pytest.mark.parametrize(
    ("others", "status"),
    [(None, "slower"), (0.0, "slower"), (QUIET, "slower"), (0.3, "busy"), (1.7, "busy")],
)
def test_nothing_fails_beside_a_busy_neighbour_and_that_is_said(
    others: float | None, status: str
) -> None:
    found = unless_busy(Finding("slower", "half as fast", 0.5), others)
    assert found.status == status
    assert found.fails == (status == "slower")
    assert "half as fast" in found.text
    passed = Finding("pass", "", 1.2)
    assert unless_busy(passed, others) == passed


def test_neighbours_are_what_the_system_counts_less_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"wall": 100.0, "process": 7.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(time, "process_time", lambda: clock["process"])
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 1000 5 1 2 3 0 0\ncpu0 1 2 3\n")
    neighbours = Neighbours(stat)
    clock.update(wall=100.2, process=7.05)
    stat.write_text("cpu  120 0 50 1000 9 1 2 13 0 0\ncpu0 1 2 3\n")
    seconds = 30 / os.sysconf("SC_CLK_TCK")  # 20 of user time and 10 stolen; waiting is idle
    assert neighbours.cores() == pytest.approx((seconds - 0.05) / 0.2)
    assert Neighbours(tmp_path / "missing").cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system has no /proc/stat")
def test_a_process_that_runs_beside_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as beside:
        try:
            time.sleep(0.3)
            neighbours = Neighbours()
            time.sleep(1.0)
            found = neighbours.cores()
        finally:
            beside.kill()
    assert found is not None
    assert found > 0.5
