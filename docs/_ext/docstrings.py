"""The sections of this project's docstrings (Args, Attributes, Returns, Raises) as lists.

Sphinx's napoleon reads ``Returns: one row per layer: its maximum`` as a type and its text, and ``lost,
gained: ...`` as one name with a comma in it. Here a colon ends a name only where names stand before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from sphinx.application import Sphinx

_SECTIONS: Final = {
    "Args:": "Arguments",
    "Attributes:": "Attributes",
    "Returns:": "Returns",
    "Raises:": "Raises",
}
_ENTRY: Final = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Read every docstring."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = list(as_lists(lines))


def as_lists(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a docstring with its sections as reStructuredText fields."""
    index = 0
    while index < len(lines):
        title = _SECTIONS.get(lines[index])
        if title is None:
            yield lines[index]
            if _code_follows(lines[index : index + 3]):
                yield from ("", "::")
            index += 1
            continue
        end = index + 1
        while end < len(lines) and (lines[end].startswith(" ") or not lines[end]):
            end += 1
        body = [line.removeprefix("    ") for line in lines[index + 1 : end]]
        while body and not body[-1]:
            body.pop()
        yield from ("", f":{title}:")
        yield from (f"    {line}" for line in _items(title, body))
        yield ""
        index = end


def _code_follows(lines: list[str]) -> bool:
    """Whether an indented block comes after a paragraph, as in ``import ...`` of a module's docstring."""
    text, *more = lines
    starts = bool(text.strip()) and not text.startswith((" ", "*", "-")) and not text.endswith("::")
    return starts and len(more) == 2 and not more[0] and more[1].startswith("    ")


def _items(title: str, body: list[str]) -> Iterator[str]:
    if title == "Returns":
        yield from body
        return
    for line in body:
        entry = _ENTRY.match(line)
        if entry is None:
            yield f"  {line.strip()}" if line else ""
            continue
        names, text = entry.groups()
        shown = ", ".join(
            f":py:exc:`{one}`" if title == "Raises" else f"**{one.replace('*', chr(92) + '*')}**"
            for one in names.split(", ")
        )
        yield f"* {shown}: {text}"
