"""``qbench``: what is done beside a test run. Thin: each command's work is elsewhere, and comes late.

Exit status: 0 all is well; 1 the command ran and found something (a cell that fails, weights missing); 2 bad
input, with a message that names file and field; 130 interrupted; 141 nobody reads what it prints.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from dllm_qbench import __version__, cli_baseline, cli_complete
from dllm_qbench.cli_check import check, export
from dllm_qbench.cli_figures import figures
from dllm_qbench.cli_output import Json, parts
from dllm_qbench.cli_report import report
from dllm_qbench.cli_run import run
from dllm_qbench.cli_summary import summary
from dllm_qbench.cli_train import train_embedded
from dllm_qbench.errors import QBenchError

INTERRUPTED: Final = 130
"""128 and the number of the signal, as shells have it."""
UNREAD: Final = 141
_EPILOG: Final = """\b
Exit status:
  0    all is well
  1    it ran and found something: a cell that fails, weights that are missing
  2    bad input, with a message that names file and field
  130  interrupted; what was measured is kept where --records says
  141  whoever read what it prints has gone, as in qbench ... | head

\b
Example: qbench run --methods gptq,awq --records records.jsonl
"""


class Commands(TyperGroup):
    """The group of commands, with the ways out that none of them has to care for."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            # On a terminal the line holds ^C, and whatever progress was shown last.
            print("\n" * sys.stderr.isatty() + "qbench: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Python flushes the stream once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNREAD) from None
        return done


# Plain help (no rich markup): it starts sooner, and has no colours or frames anywhere.
app = typer.Typer(
    name="qbench",
    cls=Commands,
    help="Quantization fidelity of diffusion language models: what is done beside a pytest run.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """Keep ``qbench`` a group of commands."""


app.command(
    short_help="Measure and judge quantizers, without a test for it.",
    epilog="Example: qbench run --methods gptq --schemes W4A16-g64 --tasks math",
)(run)
app.command(
    short_help="Audit, measure and judge a quantized checkpoint.",
    epilog="Example: qbench check ./quantized --reference llada-embedded --like gptq/W4A16",
)(check)
app.command(
    short_help="Write the page that shows a run.",
    epilog="Example: qbench report records.jsonl --out report.html",
)(report)
app.command(
    short_help="Draw the paper's figures and tables.",
    epilog="Example: qbench figures records.jsonl --outliers llada-embedded --out figures",
)(figures)
app.command(
    short_help="Summarize a run in Markdown.",
    epilog="Example: qbench summary records.jsonl --base base.jsonl",
)(summary)


@app.command(
    short_help="Set two runs side by side, cell by cell.",
    epilog="Example: qbench compare records.jsonl paper",
)
def compare(
    first: Annotated[str, typer.Argument(help="Record file, store, baselines, or 'paper'.")],
    second: Annotated[str, typer.Argument(help="What to set beside it; likewise.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Set two runs side by side, cell by cell, with intervals; the worst first."""
    from dllm_qbench import compare as comparison

    typer.echo(comparison.report(first, second, "json" if as_json else form))


@app.command(
    short_help="Join what the shards of a run recorded.",
    epilog="Example: qbench merge all.jsonl shard-1.jsonl shard-2.jsonl",
)
def merge(
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
    parts: Annotated[list[Path], typer.Argument(help="Record files, or store folders.")],
    as_json: Json = False,
) -> None:
    """Join what the shards of a run recorded; parts that contradict each other are an error."""
    from dllm_qbench.engine.merge import merge as join

    made = join(parts, out)
    if as_json:
        told = {**vars(made), "out": out, "interrupted": made.interrupted}
        typer.echo(json.dumps(told, indent=2, default=str))
    else:
        typer.echo(str(made))


app.add_typer(
    cli_baseline.app, name="baseline", short_help="Show, compare or update stored baselines."
)


@app.command(
    short_help="Say what this machine can run, and what is missing.",
    epilog="Example: qbench doctor --tier full --models-dir /data/models",
)
def doctor(
    tier: Annotated[
        str,
        typer.Option(
            help="What to be ready for: quick or full.", autocompletion=cli_complete.tiers
        ),
    ] = "quick",
    models_dir: Annotated[Path | None, typer.Option(help="Folder with checkpoints.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the tasks' data.")] = None,
    device: Annotated[str, typer.Option(help="Where models are to run.")] = "cpu",
    store: Annotated[Path, typer.Option(help="Where results are to be kept.")] = Path(
        ".qbench/store"
    ),
    as_json: Json = False,
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


app.command(
    short_help="Write a quantized model as compressed-tensors.",
    epilog="Example: qbench export llada-embedded out --method gptq --scheme W4A16-g64",
)(export)


@app.command(
    short_help="Write the test module for a quantizer of yours.",
    epilog="Example: qbench init --subject my_package.quantizer:quantize",
)
def init(
    subject: Annotated[str, typer.Option(help="The quantizer, package.module:function.")],
    schemes: Annotated[
        str,
        typer.Option(help="What it is asked for, by commas.", autocompletion=cli_complete.schemes),
    ] = "W4A16-g64",
    like: Annotated[
        str | None,
        typer.Option(
            help="Shipped cell whose band holds at first.", autocompletion=cli_complete.like
        ),
    ] = "gptq/W4A16",
    folder: Annotated[Path, typer.Option(help="Where tests are.")] = Path("tests"),
    as_json: Json = False,
) -> None:
    """Write the test module that puts a quantizer of your own under the suite's checks."""
    from dllm_qbench.scaffold import scaffold

    made = scaffold(folder, subject, parts(schemes), like or None)
    if as_json:
        told = {"path": str(made.path), "next_steps": made.next_steps}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo("\n".join((f"{made.path} written. Next:", *made.next_steps)))


app.command(
    short_help="Train a shipped model again.",
    epilog="Example: qbench train-embedded --model llada --out trained --steps 20",
)(train_embedded)


def main() -> None:
    """Run ``qbench``; an expected error is a message and exit status 2."""
    try:
        app(prog_name="qbench")
    except QBenchError as error:
        print(f"qbench: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
