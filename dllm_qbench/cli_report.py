"""``qbench report``: the page of a run, from its records. Thin: the work comes late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    records: Annotated[list[Path], typer.Argument(help="What --qbench-records wrote; shards too.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("report.html"),
    base: Annotated[
        Path | None, typer.Option(help="Records of another run, to tell what changed.")
    ] = None,
    baselines: Annotated[
        Path, typer.Option(help="Folder of the baselines, for each layer's stored error.")
    ] = Path("baselines"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the paper's tasks, for their prompts.")
    ] = None,
    maps: Annotated[
        list[Path] | None, typer.Option(help="Outlier maps that qbench figures wrote; repeatable.")
    ] = None,
    shipped_maps: Annotated[
        bool, typer.Option(help="Make the outlier maps of shipped models: seconds a model.")
    ] = True,
    kernels: Annotated[
        Path | None, typer.Option(help="A run of the benchmarks, from --benchmark-json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write one page that shows a run: what regressed, where, how sure that is, and why."""
    from dllm_qbench.report.outlier_maps import read_maps
    from dllm_qbench.report.write import Sources, write_report
    from dllm_qbench.summary_files import read_outcomes

    outcomes = [outcome for path in records for outcome in read_outcomes(path)]
    sources = Sources(
        base=None if base is None else read_outcomes(base),
        base_name="" if base is None else base.name,
        baselines=baselines if baselines.is_dir() else None,
        data_dir=data_dir,
        maps=[found for path in maps or () for found in read_maps(path)],
        shipped_maps=shipped_maps,
        kernels=kernels,
    )
    write_report(out, outcomes, sources)
    failing = sum(outcome.fails for outcome in outcomes)
    size = out.stat().st_size
    if as_json:
        told = {"page": str(out), "bytes": size, "cells": len(outcomes), "failing": failing}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(f"{out}: {len(outcomes)} cells, {failing} failing, {size / 1e6:.1f} MB")
