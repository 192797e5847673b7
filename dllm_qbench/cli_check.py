"""``qbench check`` and ``qbench export``: quantized checkpoints on disk. Thin: the work comes late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dllm_qbench.errors import QBenchError


def check(
    path: Annotated[Path, typer.Argument(help="Folder of the quantized checkpoint.")],
    reference: Annotated[
        str, typer.Option(help="Its full-precision model: a name, or a folder.", metavar="MODEL")
    ],
    tasks: Annotated[str, typer.Option(help="What to measure.")] = "general,math,code",
    items: Annotated[int, typer.Option(help="Items a cell.")] = 500,
    like: Annotated[
        str | None,
        typer.Option(help="Shipped cell whose band holds, such as gptq/W4A16.", metavar="CELL"),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Audit, measure and judge a quantized checkpoint: compressed-tensors, GPTQ, AWQ, or our own."""
    from dllm_qbench.check import Settings
    from dllm_qbench.check import check as run

    wanted = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    found = run(
        Settings(
            path, reference, wanted, items, device, method, baselines, like, strict, update, records
        )
    )
    typer.echo(found.to_json() if as_json else found.text())
    raise typer.Exit(1 if found.fails else 0)


def export(
    source: Annotated[
        str, typer.Argument(help="Our quantized checkpoint; with --method, a full-precision model.")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not hold anything.")],
    method: Annotated[
        str | None, typer.Option(help="Quantize the model by this method first.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="And to this scheme, such as W4A16-g64.")
    ] = None,
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
    typer.echo(f"{folder}: {lm.name}, {(lm.recipe or {})['method']} {(lm.recipe or {})['scheme']}")
