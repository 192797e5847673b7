"""The table's layout, and progress on terminals of several kinds."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from dllm_qbench import terminal
from dllm_qbench.baselines import CellBaseline
from dllm_qbench.outcomes import Outcome
from dllm_qbench.verdict.judge import judge
from tests.helpers.records import make_record


def outcome(cell: str, counts: tuple[int, int, int, int]) -> Outcome:
    record = make_record(counts=counts, cell=cell)
    verdict = judge(record, CellBaseline.from_record(record))
    return Outcome.of_verdict(record, verdict, verdict.fails())


def test_full_matrix_fits_100_columns_without_cutting_a_name() -> None:
    cells = [
        outcome("smoothquant/W4A4/general", (10, 1790, 0, 200)),
        outcome("gptq/W3A16-g64/general", (1600, 200, 30, 170)),
        outcome("rtn/W8A8/code", (1795, 5, 5, 195)),
        Outcome.of_error("gptq/W3A16-g64/math", "toy", ValueError("no"), None),
    ]
    lines = [text for text, _ in terminal.table(cells)]
    assert max(map(len, lines)) <= 100
    assert lines[2].split() == ["gptq/W3A16-g64/math", "-", "-", "-", "-", "infra"]
    assert lines[3].startswith("smoothquant/W4A4/general")
    assert [color for _, color in terminal.table(cells)][2:] == ["red", "green", "green", "green"]


def test_long_names_are_cut_and_nothing_else() -> None:
    cell = outcome(
        "a-method-with-a-very-long-name/W4A16-g128-asym/a-long-task-name", (80, 10, 2, 8)
    )
    line = terminal.table([cell])[-1][0]
    assert len(line) <= 100
    assert line.startswith("a-method-with-a-very-long-name/")
    assert line.split()[0].endswith("..")
    assert line.endswith("equivalent")


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        (0, ["table", "", *terminal._LEGEND, "whole run: bad", "written"]),
        (-1, ["table", "whole run: bad", "written"]),
        (-2, ["whole run: bad"]),
    ],
)
def test_failure_of_the_whole_run_is_shown_however_quiet(verbosity: int, lines: list[str]) -> None:
    reporter: Any = Reporter(isatty=False)
    reporter.config = SimpleNamespace(get_verbosity=lambda: verbosity)
    passing = outcome("rtn/W8A8/code", (1795, 5, 5, 195))
    terminal.write_summary(reporter, [passing], ["written"], ["whole run: bad"])
    shown = [text for name, text in reporter.calls if name == "write_line"]
    head = [text for text, _ in terminal.table([passing])]
    expected = [line for name in lines for line in (head if name == "table" else [name])]
    assert shown == expected


class Reporter:
    """What ``ProgressLine`` uses of pytest's terminal reporter."""

    def __init__(self, isatty: bool) -> None:
        self.isatty = isatty
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *texts, **_: self.calls.append((name, texts[-1] if texts else ""))


class Capture:
    off = False

    @contextmanager
    def global_and_fixture_disabled(self) -> Any:
        self.off = True
        yield
        self.off = False


def progress(
    monkeypatch: pytest.MonkeyPatch, isatty: bool, verbosity: int
) -> tuple[list[tuple[str, str]], list[float]]:
    """Report 1 to 8 of 8, a second apart; return what was written and the clock."""
    reporter, clock = Reporter(isatty), [0.0]
    plugins = {"terminalreporter": reporter, "capturemanager": Capture()}
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(get_plugin=plugins.get), get_verbosity=lambda: verbosity
    )
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    line = terminal.ProgressLine(config)
    for done in range(1, 9):
        clock[0] += 1.0
        line(done, 8, "cell")
    line.close()
    return [call for call in reporter.calls if call[0] != "flush"], clock


def test_terminal_line_is_rewritten_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _ = progress(monkeypatch, isatty=True, verbosity=0)
    assert calls[0][0] == "ensure_newline"
    assert calls[1] == ("rewrite", "  cell:  25 %, 2 of 8, 2 s")
    assert calls[-1] == ("rewrite", "")
    assert {name for name, _ in calls[1:]} == {"rewrite"}


def test_log_gets_a_line_now_and_then_and_only_with_v(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _ = progress(monkeypatch, isatty=False, verbosity=1)
    assert [text for name, text in calls if name == "write_line"] == ["  cell:  25 %, 2 of 8, 2 s"]


@pytest.mark.parametrize(("isatty", "verbosity"), [(False, 0), (False, -1), (True, -1)])
def test_logs_and_quiet_runs_show_no_progress(
    monkeypatch: pytest.MonkeyPatch, isatty: bool, verbosity: int
) -> None:
    assert progress(monkeypatch, isatty, verbosity)[0] == []


def test_short_cells_show_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "FIRST_AFTER_S", 60.0)
    assert progress(monkeypatch, isatty=True, verbosity=0)[0] == []
