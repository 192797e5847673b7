"""Terminals that remember what was written to them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Reporter:
    """What the suite uses of pytest's terminal reporter."""

    def __init__(self, isatty: bool) -> None:
        self.isatty = isatty
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *texts, **_: self.calls.append((name, texts[-1] if texts else ""))


class Capture:
    """What the suite uses of pytest's capture manager."""

    @contextmanager
    def global_and_fixture_disabled(self) -> Iterator[None]:
        yield


class Stream(io.StringIO):
    """A stream that is a terminal, or says that it is none."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty
