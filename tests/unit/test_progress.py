"""Progress on terminals of several kinds, and what it says of the time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dllm_qbench.progress import Estimate, Progress, ProgressLine, StreamScreen, duration, time_left
from tests.helpers.screens import Capture, Reporter, Stream


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


Shown = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def shown(clock: list[float]) -> Shown:
    """Reports 1 to 8 of 8, a second apart; returns what was written through the reporter."""

    def show(
        isatty: bool, verbosity: int, steps: Sequence[float] = (1.0,) * 8
    ) -> list[tuple[str, str]]:
        reporter = Reporter(isatty)
        plugins = {"terminalreporter": reporter, "capturemanager": Capture()}
        config: Any = SimpleNamespace(
            pluginmanager=SimpleNamespace(get_plugin=plugins.get), get_verbosity=lambda: verbosity
        )
        line = ProgressLine(config)
        for done, seconds in enumerate(steps, start=1):
            clock[0] += seconds
            line(done, len(steps), "cell")
        line.close()
        return [call for call in reporter.calls if call[0] != "flush"]

    return show


def test_terminal_line_is_rewritten_and_erased(shown: Shown) -> None:
    calls = shown(isatty=True, verbosity=0)
    assert calls[0][0] == "ensure_newline"
    assert calls[1] == ("rewrite", "  cell:  25 %, 2 of 8, 2 s")
    assert calls[2] == ("rewrite", "  cell:  37 %, 3 of 8, 3 s, 5 s left")
    assert calls[-2] == ("rewrite", "  cell: 100 %, 8 of 8, 8 s")
    assert calls[-1] == ("rewrite", "")
    assert {name for name, _ in calls[1:]} == {"rewrite"}


def test_log_gets_a_line_now_and_then_and_only_with_v(shown: Shown) -> None:
    calls = shown(isatty=False, verbosity=1)
    assert [text for name, text in calls if name == "write_line"] == ["  cell:  25 %, 2 of 8, 2 s"]
    slow = shown(isatty=False, verbosity=1, steps=(20.0,) * 4)
    lines = [text for name, text in slow if name == "write_line"]
    assert lines == ["  cell:  25 %, 1 of 4, 20 s", "  cell:  75 %, 3 of 4, 1 min 00 s, 20 s left"]


@pytest.mark.parametrize(("isatty", "verbosity"), [(False, 0), (False, -1), (True, -1)])
def test_logs_and_quiet_runs_show_no_progress(shown: Shown, isatty: bool, verbosity: int) -> None:
    assert shown(isatty, verbosity) == []


def test_short_cells_show_no_progress(shown: Shown) -> None:
    assert shown(isatty=True, verbosity=0, steps=(0.2,) * 8) == []


def test_a_dumb_terminal_is_written_to_like_a_log(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown(isatty=True, verbosity=0) == []
    assert {name for name, _ in shown(isatty=True, verbosity=1)} == {"ensure_newline", "write_line"}


def test_what_has_begun_is_shown_at_once_on_a_terminal_only(clock: list[float]) -> None:
    for tty, expected in ((True, "\r  a: quantizing"), (False, "")):
        stream = Stream(tty)
        Progress(StreamScreen(1, stream))(0, 0, "a: quantizing")
        assert stream.getvalue() == expected


def test_a_command_writes_over_its_own_line_without_escape_codes(clock: list[float]) -> None:
    stream = Stream(tty=True)
    line = Progress(StreamScreen(0, stream))
    line(0, 0, "a long label")
    clock[0] = 3.0
    line(1, 2, "b")
    line.close()
    assert stream.getvalue().split("\r") == [
        "",
        "  a long label",
        "  b:  50 %, 1 of 2, 3 s",
        " " * len("  b:  50 %, 1 of 2, 3 s"),
        "",
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_line_fits_the_terminal_and_keeps_its_figures(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Stream(tty=True)
    line = Progress(StreamScreen(0, stream))
    clock[0] = 2.0
    line(1, 2, "llmcompressor-smoothquant/W4A16-g128-asym/arc_challenge: full precision")
    text = stream.getvalue().strip("\r")
    assert len(text) < 60
    assert text.startswith("  llmcompressor")
    assert text.endswith("..e: full precision:  50 %, 1 of 2, 2 s")


# --- time left -----------------------------------------------------------------------------------


def estimates(reports: Sequence[tuple[float, float]], total: float) -> list[float | None]:
    estimate, found = Estimate(), []
    for done, now in reports:
        estimate.update(done, now)
        found.append(estimate.left(total, now))
    return found


def test_no_estimate_before_there_is_something_to_tell_by() -> None:
    assert estimates([(0, 0.0), (1, 0.5), (2, 1.0)], 100) == [None, None, None]
    assert estimates([(5, 9.0), (5, 60.0)], 100) == [None, None]
    assert Estimate().left(10, 1.0) is None


def test_steady_work_has_a_steady_end() -> None:
    """Whenever it is asked, what has passed and what is left add up to the same."""
    found = estimates([(done, 3.0 * done) for done in range(101)], 100)[1:]
    assert {3.0 * done + left for done, left in enumerate(found, start=1) if left is not None} == {
        300.0
    }
    assert found[0] == 297.0


def test_what_was_done_before_and_a_slow_start_do_not_count() -> None:
    """A run that goes on at 450 of 500, after a minute of loading, has 25 s left and not none, or hours."""
    assert estimates([(451, 60.0), (455, 62.0)], 501)[-1] == 23.0


def test_the_estimate_counts_down_between_reports() -> None:
    estimate = Estimate()
    estimate.update(0, 0.0)
    estimate.update(1, 10.0)
    assert [estimate.left(3, now) for now in (10.0, 15.0, 40.0)] == [20.0, 15.0, 0.0]


def test_another_part_of_the_work_starts_its_own_estimate(clock: list[float]) -> None:
    stream = Stream(tty=True)
    line = Progress(StreamScreen(0, stream))
    for done, now in ((1, 0.0), (50, 10.0)):
        clock[0] = now
        line(done, 100, "fast")
    clock[0] = 20.0
    line(1, 100, "slow")
    assert stream.getvalue().rpartition("\r")[2].rstrip() == "  slow:   1 %, 1 of 100, 20 s"


def test_times_are_rounded_up_as_far_as_an_estimate_is_good_for() -> None:
    times = [0.0, 9.1, 10.2, 58.0, 61.0, 119.5, 3599.0, 5400.0, 5401.0, 36000.0]
    told = [
        "0 s",
        "10 s",
        "15 s",
        "1 min",
        "2 min",
        "2 min",
        "60 min",
        "90 min",
        "1 h 40 min",
        "10 h 00 min",
    ]
    assert [time_left(seconds) for seconds in times] == told
    assert [duration(seconds) for seconds in (0.9, 59.9, 60.0, 3599.9, 3600.0)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
    ]
