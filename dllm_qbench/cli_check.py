"""``qbench check`` and ``qbench export``: quantized checkpoints on disk. Thin: the work comes late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dllm_qbench import cli_complete
from dllm_qbench.cli_output import Json, Quiet, Verbose, parts, show
from dllm_qbench.errors import QBenchError


def check(
    path: Annotated[Path, typer.Argument(help="Folder of the quantized checkpoint.")],
    reference: Annotated[
        str,
        typer.Option(
            help="Its full-precision model: a name, or a folder.",
            metavar="MODEL",
            autocompletion=cli_complete.models,
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="What to measure, by commas.", autocompletion=cli_complete.tasks)
    ] = "general,math,code",
    items: Annotated[int, typer.Option(help="Items a cell.")] = 500,
    like: Annotated[
        str | None,
        typer.Option(
            help="Shipped cell whose band holds, such as gptq/W4A16.",
            metavar="CELL",
            autocompletion=cli_complete.like,
        ),
    ] = None,
    baselines: Annotated[Path, typer.Option(help="Folder with the model's own baselines.")] = Path(
        "baselines"
    ),
    update: Annotated[bool, typer.Option("--update", help="Write the baselines.")] = False,
    method: Annotated[str | None, typer.Option(help="What to call the quantizer in cells.")] = None,
    records: Annotated[
        Path | None, typer.Option(help="File to keep each cell's record in.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on all but 'equivalent'.")] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = 0,
) -> None:
    """Audit, measure and judge a quantized checkpoint: compressed-tensors, GPTQ, AWQ, or our own."""
    from dllm_qbench.check import Settings
    from dllm_qbench.check import check as run
    from dllm_qbench.progress import Progress, StreamScreen

    settings = Settings(
        path,
        reference,
        parts(tasks),
        items,
        device,
        method,
        baselines,
        like,
        strict,
        update,
        records,
    )
    verbosity = verbose - quiet
    progress = Progress(StreamScreen(verbosity))
    try:
        found = run(settings, progress)
    finally:
        progress.close()
    if as_json:
        typer.echo(found.to_json())
    else:
        show(found.lines(verbosity))
    raise typer.Exit(1 if found.fails else 0)


def export(
    source: Annotated[
        str, typer.Argument(help="Our quantized checkpoint; with --method, a full-precision model.")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not hold anything.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="Quantize the model by this method first.", autocompletion=cli_complete.method
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="And to this scheme, such as W4A16-g64.", autocompletion=cli_complete.scheme
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a quantized model in compressed-tensors format, as other libraries read it."""
    from dllm_qbench.checkpoints.export import export_compressed_tensors
    from dllm_qbench.models.loading import load
    from dllm_qbench.quant.checkpoint import load_quantized
    from dllm_qbench.quant.quantize import quantize

    if (method is None) != (scheme is None):
        raise QBenchError("export: give --method and --scheme together, or neither")
    if method is not None and scheme is not None:
        lm = quantize(load(source), method, scheme)
    else:
        lm = load_quantized(Path(source))
    export_compressed_tensors(lm, folder)
    recipe = lm.recipe or {}
    if as_json:
        made = {"folder": str(folder), "model": lm.name, "recipe": recipe}
        typer.echo(json.dumps(made, indent=2, allow_nan=False))
    else:
        typer.echo(f"{folder}: {lm.name}, {recipe['method']} {recipe['scheme']}")
