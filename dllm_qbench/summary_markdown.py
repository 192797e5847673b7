"""Markdown that holds other people's text: escaped, and never longer than a limit in bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

NAME: Final = 200
"""Characters that are shown of a name."""
_SPECIAL: Final = re.compile(r"[\\`*\[\]|~$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_LEFT_OUT: Final = 120  # bytes kept for saying how many rows are left out
_MORE: Final = "What did not fit here is in the records."


def code(text: str, most: int = NAME) -> str:
    """A name in a code span, where neither Markdown nor HTML is read; a bar would end a table's cell."""
    flat = _cut(_CONTROL.sub(" ", text).strip(), most).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat else ""


def plain(text: str, most: int) -> str:
    """Text that shows as it is: no markup, no HTML, no link, no mention, on one line."""
    flat = _cut(_CONTROL.sub(" ", text).strip(), most)
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", flat)


def fenced(text: str, most: int) -> list[str]:
    """Lines of text in a fence that nothing inside it can close."""
    lines = [_CONTROL.sub(" ", line) for line in _cut(text, most).split("\n")]
    ticks = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, ticks + 1)
    return [f"{fence}text", *lines, fence]


class Page:
    """Lines that together take at most ``limit`` bytes of UTF-8; what does not fit is left out, and told."""

    def __init__(self, limit: int) -> None:
        self._limit = limit - _size(_MORE) - 1
        self._lines: list[str] = []
        self._size = 0
        self._complete = True

    def add(self, *lines: str) -> bool:
        """Add all of these lines, or none where there is no room for them."""
        size = sum(map(_size, lines))
        if self._size + size > self._limit:
            self._complete = False
            return False
        self._lines += lines
        self._size += size
        return True

    def rows(self, head: Sequence[str], rows: Sequence[str], what: str, share: float) -> None:
        """Add rows under a head, from the first on, within ``share`` of the room that is left.

        Where that is not all of them a line says how many ``what`` are left out.
        """
        if not rows:
            return
        room = int(share * (self._limit - self._size)) - _LEFT_OUT - sum(map(_size, head))
        shown = 0
        while shown < len(rows) and room >= _size(rows[shown]):
            room -= _size(rows[shown])
            shown += 1
        told = ["", f"{len(rows) - shown} more {what}: see the records."]
        self.add(*(head if shown else ()), *rows[:shown], *(told if shown < len(rows) else ()))

    def text(self) -> str:
        """Return the page; it ends with a newline."""
        more = () if self._complete else ("", _MORE)
        return "".join(line + "\n" for line in (*self._lines, *more))


def _size(line: str) -> int:
    return len(line.encode()) + 1


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."
