"""``qbench figures``: the paper's tables from records, its outlier figures of any model. Thin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dllm_qbench import cli_complete
from dllm_qbench.cli_output import Json, parts
from dllm_qbench.errors import QBenchError

if TYPE_CHECKING:
    from dllm_qbench.report.outlier_maps import OutlierMap

DTYPES = ("float32", "bfloat16", "float16")


def _rotations(incomplete: str) -> list[str]:
    return [name for name in ("quarot", "duquant") if name.startswith(incomplete)]


def figures(
    records: Annotated[
        list[Path] | None, typer.Argument(help="What --qbench-records wrote: for the tables.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("figures"),
    formats: Annotated[str, typer.Option(help="Of tables: md, latex, csv.")] = "md,latex,csv",
    images: Annotated[str, typer.Option(help="Of pictures: svg, pdf, png.")] = "svg,png",
    tasks: Annotated[
        str | None, typer.Option(help="Columns of the tables.", show_default="all of the records")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Give drops their intervals.")
    ] = False,
    outliers: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to map, a name or a folder; repeatable.",
            metavar="MODEL",
            autocompletion=cli_complete.models,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="MODULE",
            help="Linear to map, by its full name; repeatable.",
            show_default="the two with the strongest outliers",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="What rotates it: quarot or duquant.", autocompletion=_rotations),
    ] = "quarot",
    scheme: Annotated[
        str, typer.Option(help="What the rotated model is quantized to; W16A16: rotated only.")
    ] = "W16A16",
    models_dir: Annotated[Path | None, typer.Option(help="Folder with checkpoints.")] = None,
    device: Annotated[str, typer.Option(help="Where models run.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of weights: {', '.join(DTYPES)}.")] = "float32",
    maps: Annotated[
        list[Path] | None, typer.Option(help="Maps made before, to draw; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw outliers before and after rotation, and write the paper's result tables from records."""
    if not (records or outliers or maps):
        raise QBenchError(
            "figures: nothing to draw; give records for tables (qbench figures records.jsonl), --outliers"
            " MODEL for outlier figures, or --maps FILE for those of maps made before"
        )
    if inputs and not outliers:
        raise QBenchError("figures: --input names a linear of a model; give --outliers MODEL too")
    if dtype not in DTYPES:
        raise QBenchError(f"figures: --dtype is {dtype!r}, expected {', '.join(DTYPES)}")
    from dllm_qbench.report.draw import FORMATS as PICTURES
    from dllm_qbench.report.draw import write_pictures
    from dllm_qbench.report.outlier_maps import read_maps, write_maps
    from dllm_qbench.report.result_tables import result_tables
    from dllm_qbench.report.table_files import FORMATS as TABLES
    from dllm_qbench.report.table_files import write_tables
    from dllm_qbench.summary_files import read_outcomes

    # Before a model is run for minutes: what else was given has to be right.
    wanted = _known("--formats", formats, TABLES), _known("--images", images, PICTURES)
    outcomes = [outcome for path in records or () for outcome in read_outcomes(path)]
    tables = result_tables(outcomes, parts(tasks) or None, intervals)
    if records and not tables:
        raise QBenchError(f"figures: {', '.join(map(str, records))}: no cell was measured")
    drawn = [one for path in maps or () for one in read_maps(path)]
    written = write_tables(tables, out, wanted[0]) if tables else []
    made: list[OutlierMap] = []
    for model in outliers or ():
        made += _maps(model, (method, scheme), inputs, models_dir, device, dtype)
    if made:
        written.append(out / "outlier-maps.json")
        write_maps(made, written[-1])
    written += write_pictures([*drawn, *made], out, wanted[1])
    if as_json:
        told = {
            "files": [str(path) for path in written],
            "tables": [
                {"model": table.model, "rows": len(table.rows), "columns": len(table.columns)}
                for table in tables
            ],
            "outliers": [
                {name: value for name, value in one.to_dict().items() if name != "magnitudes"}
                for one in (*drawn, *made)
            ],
        }
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo("\n".join(map(str, written)))


def _known(option: str, given: str, expected: tuple[str, ...]) -> tuple[str, ...]:
    found = parts(given)
    if unknown := [name for name in found if name not in expected]:
        raise QBenchError(
            f"figures: {option}: {unknown[0]!r} is unknown; expected {', '.join(expected)}"
        )
    if not found:
        raise QBenchError(f"figures: {option} is empty; expected {', '.join(expected)}")
    return found


def _maps(
    model: str,
    rotation: tuple[str, str],
    inputs: list[str] | None,
    models_dir: Path | None,
    device: str,
    dtype: str,
) -> tuple[OutlierMap, ...]:
    import torch

    from dllm_qbench.models.loading import load
    from dllm_qbench.report.outlier_maps import outlier_maps

    lm = load(model, getattr(torch, dtype), device, models_dir)
    method, scheme = rotation
    try:
        return outlier_maps(lm, method, inputs or None, scheme=scheme)
    except ValueError as error:  # a checkpoint without a tokenizer has no texts to read
        if isinstance(error, QBenchError):
            raise
        raise QBenchError(f"figures: --outliers {model}: {error}") from error
