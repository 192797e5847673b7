"""The text of a PDF that Chromium printed: enough of the format for what its writer (Skia) emits, no more.

Text is shown as glyph numbers, two bytes each, in the font set before; each font says by a table which
characters its glyphs stand for.
"""

from __future__ import annotations

import re
import zlib

_OBJECT = re.compile(rb"(\d+) 0 obj\n(.*?)\nendobj", re.DOTALL)
_FONTS = re.compile(rb"/(F\d+) (\d+) 0 R")
_SHOWN = re.compile(rb"/(F\d+) [\d.]+ Tf|<([0-9A-Fa-f]+)>|(ET)")


def pages(pdf: bytes) -> list[str]:
    """Each page's text, glyph runs joined as they come, a new line after each text object."""
    objects = {int(number): body for number, body in _OBJECT.findall(pdf)}
    found = []
    for body in objects.values():
        if not body.startswith(b"<</Type /Page\n"):
            continue
        contents = re.search(rb"/Contents (\d+) 0 R", body)
        fonts = {name: _characters(objects, int(at)) for name, at in _FONTS.findall(body)}
        assert contents is not None
        found.append(_text(_stream(objects[int(contents[1])]), fonts))
    return found


def _text(stream: bytes, fonts: dict[bytes, dict[int, str]]) -> str:
    shown, font = [], {}
    for name, glyphs, end in _SHOWN.findall(stream):
        if name:
            font = fonts[name]
        elif end:
            shown.append("\n")
        else:
            data = bytes.fromhex(glyphs.decode())
            shown += [font.get(data[at] << 8 | data[at + 1], "?") for at in range(0, len(data), 2)]
    return "".join(shown)


def _characters(objects: dict[int, bytes], font: int) -> dict[int, str]:
    """Glyph number to character, from the font's ToUnicode table: single entries, then ranges."""
    table = re.search(rb"/ToUnicode (\d+) 0 R", objects[font])
    if table is None:
        return {}
    text = _stream(objects[int(table[1])]).decode()
    found = {}
    for kind, block in re.findall(r"begin(bfchar|bfrange)\n(.*?)\nend", text, re.DOTALL):
        for line in block.splitlines():
            numbers = [int(part, 16) for part in re.findall(r"<([0-9A-Fa-f]{4})>", line)]
            if kind == "bfchar" and len(numbers) == 2:
                found[numbers[0]] = chr(numbers[1])
            elif kind == "bfrange" and len(numbers) == 3:
                first, last, at = numbers
                found |= {glyph: chr(at + glyph - first) for glyph in range(first, last + 1)}
    return found


def _stream(body: bytes) -> bytes:
    data = body.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]
    return zlib.decompress(data) if b"/FlateDecode" in body.split(b"stream\n", 1)[0] else data


def squeezed(text: str) -> str:
    """Without white space: where a line breaks on paper is the printer's."""
    return re.sub(r"\s+", "", text)
