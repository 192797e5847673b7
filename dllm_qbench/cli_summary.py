"""``qbench summary``: a run's records as a job's Markdown summary."""

from __future__ import annotations

import json
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
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead: counts, what fails, what changed.")
    ] = False,
) -> None:
    """Summarize a run in Markdown: what fails, what changed, every cell, the worst first."""
    from dllm_qbench.jsonfiles import write_atomic
    from dllm_qbench.summary import report

    if as_json:
        from dllm_qbench.summary_changes import changes
        from dllm_qbench.summary_data import summary_data
        from dllm_qbench.summary_files import read_outcomes

        outcomes = read_outcomes(records)
        compared = None if base is None else changes(outcomes, read_outcomes(base))
        text = json.dumps(summary_data(outcomes, compared), indent=2, allow_nan=False) + "\n"
    else:
        text = report(records, base)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(out, text)
