"""``qbench baseline``: what is stored, what is different, and how records become baselines. Thin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dllm_qbench import cli_complete
from dllm_qbench.cli_output import Json

app = typer.Typer(
    name="baseline",
    help="Stored baselines: look at them, compare them, write them from records.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Side = typer.Argument(help="A file, a folder of files, or a model.")


@app.command(epilog="Example: qbench baseline show llada-embedded gptq/W4A16-g64/math")
def show(
    baselines: Annotated[
        str,
        typer.Argument(
            help="A file, or a model: ./baselines is looked at before what is shipped.",
            autocompletion=cli_complete.baselines,
        ),
    ],
    cell: Annotated[
        str | None,
        typer.Argument(
            help="method/scheme/task; all cells without.", autocompletion=cli_complete.cells
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is stored for a model's cells, or all that is stored for one."""
    from dllm_qbench.baseline_files import find_cell
    from dllm_qbench.baseline_paths import baseline_file
    from dllm_qbench.baseline_show import show_all, show_cell
    from dllm_qbench.baselines import read_baselines

    found = read_baselines(baseline_file(baselines))
    one = None if cell is None else find_cell(found, cell)
    if not as_json:
        typer.echo("\n".join(show_all(found) if one is None else show_cell(one)))
        return
    cells = found.cells.values() if one is None else [one]
    _print(
        {
            "file": str(found.path),
            "model": found.model,
            "checkpoint_sha256": found.checkpoint_sha256,
            "cells": {stored.cell: stored.to_dict() for stored in cells},
        }
    )


@app.command(epilog="Example: qbench baseline diff baselines/ new-baselines/")
def diff(
    first: Annotated[str, _Side],
    second: Annotated[str, _Side],
    as_json: Json = False,
) -> None:
    """Say what differs cell by cell: bands, answers, layers, recipes. Exits with 1 if anything does."""
    from dllm_qbench.baseline_diff import diff as compare
    from dllm_qbench.baseline_files import read_all

    found = compare(read_all(first), read_all(second))
    if as_json:
        _print(found.to_dict())
    else:
        typer.echo("\n".join(found.lines()))
    raise typer.Exit(1 if found.any else 0)


@app.command(epilog="Example: qbench baseline update records.jsonl --dry-run")
def update(
    records: Annotated[Path, typer.Argument(help="What --qbench-records or qbench run wrote.")],
    into: Annotated[Path, typer.Option(help="Folder of the baselines.")] = Path("baselines"),
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only show what would change; exits with 1 if anything would."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run's records as baselines; bands are kept. Exits with 1 if a band does not allow them."""
    from dllm_qbench.baseline_update import plan, write

    found = plan(records, into)
    if not dry_run:
        found = write(found)
    if as_json:
        _print(found.to_dict())
    else:
        typer.echo("\n".join(found.lines()))
    raise typer.Exit(1 if found.broken or (dry_run and found.changed) else 0)


def _print(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, allow_nan=False))
