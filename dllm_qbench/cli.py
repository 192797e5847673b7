"""``qbench``: what is done beside a test run. Thin: each command's work is elsewhere, and comes late.

Exit status: 0 all is well; 1 the command ran and found something (weights missing, cells apart); 2 bad
input, with a message that names file and field.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dllm_qbench.cli_check import check, export
from dllm_qbench.cli_summary import summary
from dllm_qbench.errors import QBenchError

app = typer.Typer(
    name="qbench",
    help="Quantization fidelity of diffusion language models: what is done beside a pytest run.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback()
def _root() -> None:
    """Keep ``qbench`` a group of commands."""


@app.command(epilog="Example: qbench doctor --tier full --models-dir /data/models")
def doctor(
    tier: Annotated[str, typer.Option(help="What to be ready for: quick or full.")] = "quick",
    models_dir: Annotated[Path | None, typer.Option(help="Folder with checkpoints.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the tasks' data.")] = None,
    device: Annotated[str, typer.Option(help="Where models are to run.")] = "cpu",
    store: Annotated[Path, typer.Option(help="Where results are to be kept.")] = Path(
        ".qbench/store"
    ),
    as_json: _Json = False,
) -> None:
    """Say what this machine can run, what is missing, and how to get it."""
    from dllm_qbench.doctor import diagnose, ready, render

    if tier not in ("quick", "full"):
        raise QBenchError(f"--tier is {tier!r}, expected quick or full")
    checks = diagnose(models_dir, data_dir, device, store)
    if as_json:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
    else:
        typer.echo(render(checks))
    raise typer.Exit(0 if ready(checks, tier) else 1)


@app.command(epilog="Example: qbench merge all.jsonl shard-1.jsonl shard-2.jsonl")
def merge(
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
    parts: Annotated[list[Path], typer.Argument(help="Record files, or store folders.")],
) -> None:
    """Join what the shards of a run recorded; parts that contradict each other are an error."""
    from dllm_qbench.engine.merge import merge as join

    typer.echo(str(join(parts, out)))


@app.command(epilog="Example: qbench compare records.jsonl paper")
def compare(
    first: Annotated[str, typer.Argument(help="Record file, store, baselines, or 'paper'.")],
    second: Annotated[str, typer.Argument(help="What to set beside it; likewise.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
) -> None:
    """Set two runs side by side, cell by cell, with intervals; the worst first."""
    from dllm_qbench import compare as comparison

    typer.echo(comparison.report(first, second, form))


app.command(
    epilog="Example: qbench check ./quantized --reference llada-embedded --like gptq/W4A16"
)(check)
app.command(epilog="Example: qbench export llada-embedded out --method gptq --scheme W4A16-g64")(
    export
)
app.command(epilog="Example: qbench summary records.jsonl --base base.jsonl")(summary)


@app.command(epilog="Example: qbench init --subject my_package.quantizer:quantize")
def init(
    subject: Annotated[str, typer.Option(help="The quantizer, package.module:function.")],
    schemes: Annotated[str, typer.Option(help="What it is asked for, by commas.")] = "W4A16-g64",
    like: Annotated[
        str | None, typer.Option(help="Shipped cell whose band holds at first.")
    ] = "gptq/W4A16",
    folder: Annotated[Path, typer.Option(help="Where tests are.")] = Path("tests"),
) -> None:
    """Write the test module that puts a quantizer of your own under the suite's checks."""
    from dllm_qbench.scaffold import scaffold

    asked = tuple(scheme.strip() for scheme in schemes.split(",") if scheme.strip())
    made = scaffold(folder, subject, asked, like or None)
    typer.echo("\n".join((f"{made.path} written. Next:", *made.next_steps)))


def main() -> None:
    """Run ``qbench``; an expected error is a message and exit status 2."""
    try:
        app()
    except QBenchError as error:
        print(f"qbench: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
