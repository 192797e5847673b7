"""``qbench summary``: a run's records as a job's Markdown summary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def summary(
    records: Annotated[Path, typer.Argument(help="What --qbench-records wrote.")],
    base: Annotated[
        Path | None, typer.Option(help="Records of the base branch, to tell what changed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write this file instead of the standard output.")
    ] = None,
) -> None:
    """Summarize a run in Markdown: what fails, what changed, every cell, the worst first."""
    from dllm_qbench.jsonfiles import write_atomic
    from dllm_qbench.summary import report

    text = report(records, base)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(out, text)
