"""What the commands share in how they say things: JSON, colours, how much. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated, TextIO

import typer

from dllm_qbench.terminal_table import Line

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="A row for every cell; progress in logs.",
    ),
]
Quiet = Annotated[
    int,
    typer.Option(
        "--quiet",
        "-q",
        count=True,
        show_default=False,
        help="Failing cells and counts; -qq: failures only.",
    ),
]


def show(lines: Iterable[Line]) -> None:
    """Print lines, each in its colour where the standard output takes colours."""
    colored = takes_color(sys.stdout)
    text = [typer.style(line, fg=color) if color and colored else line for line, color in lines]
    if text:
        typer.echo("\n".join(text), color=colored)


def takes_color(stream: TextIO) -> bool:
    """Whether a stream gets colours, by the rules that pytest has.

    ``PY_COLORS`` decides; else ``NO_COLOR`` says no, ``FORCE_COLOR`` yes; else a terminal that is not
    ``dumb`` does.
    """
    given = os.environ.get("PY_COLORS")
    if given in ("0", "1"):
        return given == "1"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def parts(text: str | None) -> tuple[str, ...]:
    """What is separated by commas; each once, in the order given."""
    given = (text or "").split(",")
    return tuple(dict.fromkeys(part.strip() for part in given if part.strip()))
