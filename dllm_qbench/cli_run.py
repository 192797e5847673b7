"""``qbench run``: the quick tier's cells without a test. Thin: the work comes late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dllm_qbench import cli_complete
from dllm_qbench.cli_output import Json, Quiet, Verbose, parts, show
from dllm_qbench.errors import QBenchError


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model or checkpoint folder; may be given again.",
            metavar="MODEL",
            show_default="llada-embedded",
            autocompletion=cli_complete.models,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, by commas.",
            metavar="NAMES",
            show_default="all of the quick matrix",
            autocompletion=cli_complete.methods,
        ),
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(
            help="Schemes, by commas; with --methods every pair of both.",
            metavar="NAMES",
            show_default="all of the quick matrix",
            autocompletion=cli_complete.schemes,
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="What to measure, by commas.", metavar="NAMES", autocompletion=cli_complete.tasks
        ),
    ] = "general,math,code",
    items: Annotated[int, typer.Option(help="Items a cell.")] = 500,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            help="Quantizer of your own, package.module:function; may be given again.",
            metavar="NAME",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Shipped cell whose band holds where a cell has none, such as gptq/W4A16.",
            metavar="CELL",
            autocompletion=cli_complete.like,
        ),
    ] = None,
    baselines: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the models' baselines.", show_default="./baselines, else the shipped"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on all but 'equivalent'.")] = False,
    records: Annotated[
        Path | None,
        typer.Option(help="Keep each cell in this file; a run that was killed goes on from it."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the run's page to this file.")] = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = 0,
) -> None:
    """Measure quantizers on the shipped tasks and judge them, without a test written for it."""
    from dllm_qbench.progress import RunProgress, StreamScreen
    from dllm_qbench.quick_matrix import choose
    from dllm_qbench.run import Settings
    from dllm_qbench.run import run as measure

    if html is not None and html.is_dir():
        raise QBenchError(f"--html: {html} is a folder")
    verbosity = verbose - quiet
    settings = Settings(
        tuple(
            dict.fromkeys(name for given in model or ["llada-embedded"] for name in parts(given))
        ),
        choose(parts(methods), parts(schemes), tuple(subject or ())),
        parts(tasks),
        items,
        device,
        baselines,
        like,
        strict,
        records,
    )
    progress = RunProgress(StreamScreen(verbosity))
    try:
        ran = measure(settings, progress)
    except KeyboardInterrupt:
        progress.close()
        if records is not None and records.exists():
            typer.echo(f"qbench: the same command goes on from {records}", err=True)
        raise
    finally:
        progress.close()
    if as_json:
        typer.echo(ran.to_json())
    else:
        show(ran.lines(verbosity))
    if html is not None:  # last: what was measured is told even where no page can be written
        from dllm_qbench.report.write import Sources, write_report

        folder = settings.baseline_file(Path(settings.models[0]).name).parent
        write_report(html, ran.outcomes, Sources(baselines=folder if folder.is_dir() else None))
        if verbosity >= -1:
            typer.echo(f"report: {html}", err=as_json)
    raise typer.Exit(1 if ran.fails else 0)
