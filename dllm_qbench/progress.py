"""Progress of long work: the share that is done, how long it took, and how long it will still take.

On a terminal one line is rewritten in place and erased at the end. In a log there is nothing, unless
``-v`` asks for more: then a line every half minute. What is done in no time shows nothing at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

if TYPE_CHECKING:
    import pytest

FIRST_AFTER_S: Final = 2.0
"""Work that is done sooner shows no progress."""
EVERY_TTY_S: Final = 0.5
EVERY_LOG_S: Final = 30.0
TELLS_AFTER_S: Final = 2.0
"""What is seen in a shorter time says nothing of how long the rest will take."""


class Estimate:
    """Time left, by the mean rate since the first report.

    What was done before the first report does not count: it may have been kept from an earlier run, or
    have paid for loading and compiling. Until a second report is :data:`TELLS_AFTER_S` away from the first
    one there is no estimate.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def update(self, done: float, now: float) -> None:
        """Take in that so much is done now."""
        if self._first is None or done < self._last[0]:
            self._first = (done, now)
        self._last = (done, now)

    def left(self, total: float, now: float) -> float | None:
        """Seconds until ``total`` is done; it counts down between reports. ``None``: nobody can tell."""
        if self._first is None:
            return None
        (since, start), (done, seen) = self._first, self._last
        if done <= since or seen - start < TELLS_AFTER_S:
            return None
        return max(0.0, (total - done) * (seen - start) / (done - since) - (now - seen))


def duration(seconds: float) -> str:
    """Time in words, exact to the second, from an hour on to the minute.

    >>> duration(7.4), duration(75), duration(7510)
    ('7 s', '1 min 15 s', '2 h 05 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float) -> str:
    """Time left in words, no finer than an estimate is: it rounds up, the more the longer it is.

    >>> time_left(3.2), time_left(31), time_left(95), time_left(4000), time_left(9000)
    ('4 s', '35 s', '2 min', '67 min', '2 h 30 min')
    """
    for below, step in ((10, 1), (60, 5), (90 * 60, 60)):
        rounded = -(-int(seconds + 0.999) // step) * step
        if rounded <= below:
            return f"{rounded} s" if rounded < 60 else f"{rounded // 60} min"
    minutes = -(-int(seconds) // 600) * 10
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Screen(Protocol):
    """Where progress is shown.

    Attributes:
        tty: lines can be rewritten in place; ``on``: anything is shown at all.
    """

    tty: bool
    on: bool

    def write(self, text: str, first: bool) -> None:
        """Show a line, on a terminal in place of the last one; ``first``: nothing was shown before."""
        ...


class Progress:
    """Progress of one piece of work, of which several parts may follow each other, each with its label."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._start = time.monotonic()
        self._shown_at: float | None = None
        self._label = ""
        self._estimate = Estimate()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show that ``done`` of ``total`` are done with what ``label`` names, if it is time to.

        A ``total`` of 0 says that what the label names has begun, and that nobody knows its share: on a
        terminal that is shown at once, because nothing else may come for long.
        """
        now = time.monotonic()
        if label != self._label:
            self._label, self._estimate = label, Estimate()
        self._estimate.update(done, now)
        if not self._screen.on or not self._is_time(now, begins=total == 0):
            return
        self._screen.write(self._text(done, total, now), self._shown_at is None)
        self._shown_at = now

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._screen.tty and self._shown_at is not None:
            self._screen.write("", False)
            self._shown_at = None

    def _is_time(self, now: float, begins: bool) -> bool:
        if begins and self._screen.tty:
            return True
        if self._shown_at is None:
            return now - self._start >= FIRST_AFTER_S
        return now - self._shown_at >= (EVERY_TTY_S if self._screen.tty else EVERY_LOG_S)

    def _text(self, done: int, total: int, now: float) -> str:
        """``  LABEL:  25 %, 2 of 8, 2 s, 6 s left``; of the label as much as fits."""
        elapsed = duration(now - self._start)
        figures = f", {elapsed}" if now - self._start >= 1 else ""
        if total:
            figures = f": {100 * done // total:3d} %, {done} of {total}, {elapsed}"
        left = self._left(total, now)
        figures += f", {time_left(left)} left" if left else ""
        room = shutil.get_terminal_size().columns - 3 - len(figures) if self._screen.tty else 10**6
        label = self._label
        if len(label) > room > 2:
            label = f"{label[: (room - 1) // 2]}..{label[len(label) - (room - 2) // 2 :]}"
        return f"  {label}{figures}"

    def _left(self, total: int, now: float) -> float | None:
        return self._estimate.left(total, now)


class PytestScreen:
    """pytest's own terminal reporter, which knows ``-q``."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        verbosity = config.get_verbosity()
        tty = self._reporter is not None and bool(self._reporter.isatty)
        self.tty = tty and not _is_dumb() and verbosity >= 0
        self.on = self._reporter is not None and (self.tty or verbosity > 0)

    def write(self, text: str, first: bool) -> None:
        """While a test runs, pytest captures its output, and the reporter's with it."""
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            if first or not self.tty:
                self._reporter.ensure_newline()
            if self.tty:
                self._reporter.rewrite(text, erase=True)
            else:
                self._reporter.write_line(text)
            self._reporter.flush()


class StreamScreen:
    """A stream of a command, by default the standard error: what the command prints is not mixed up."""

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.tty = self._stream.isatty() and not _is_dumb() and verbosity >= 0
        self.on = self.tty or verbosity > 0
        self._width = 0

    def write(self, text: str, first: bool) -> None:
        """Write over what is there: spaces erase it on every kind of terminal."""
        if self.tty:
            self._stream.write(f"\r{text:<{self._width}}" + ("" if text else "\r"))
            self._width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


class ProgressLine(Progress):
    """Progress of a cell in a pytest run."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(PytestScreen(config))


class RunProgress(Progress):
    """Progress of a run of many cells: the time left is the run's, as soon as one of its cells is done."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self._run = Estimate()
        self._cells = 1
        self._all = 1
        self._prefix = ""

    def begin(self, cell: int, cells: int, measured: int) -> None:
        """Say that cell number ``cell`` of ``cells`` comes, and how many of those before were measured."""
        self._run.update(measured, time.monotonic())
        self._cells, self._all = cells, measured + cells - cell
        self._prefix = f"[{cell + 1}/{cells}] " if cells > 1 else ""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show a part of the present cell, see :class:`Progress`."""
        super().__call__(done, total, self._prefix + label)

    def _left(self, total: int, now: float) -> float | None:
        if self._cells == 1:
            return super()._left(total, now)
        return self._run.left(self._all, now)


def _is_dumb() -> bool:
    """Whether the terminal says that it cannot go back in a line."""
    return os.environ.get("TERM") == "dumb"
