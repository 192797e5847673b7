"""``qbench train-embedded``: train one of the shipped models again. Thin: the work comes late."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dllm_qbench import cli_complete
from dllm_qbench.cli_output import Json, Quiet, Verbose
from dllm_qbench.errors import QBenchError

MODELS = ("llada", "dream")
STAGES = ("natural", "settled", "polished")


def train_embedded(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints and the log.")],
    model: Annotated[
        str, typer.Option(help="llada or dream.", autocompletion=cli_complete.embedded)
    ] = "llada",
    seed: Annotated[int, typer.Option(help="Of weights, texts and masks.")] = 0,
    after: Annotated[
        str | None,
        typer.Option(
            help="Go on after this stage, natural or settled, which is in the folder already.",
            autocompletion=cli_complete.stages,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="At most so many steps a stage: shows that it runs, and makes no useful model.",
            show_default="the recipe's: 54 minutes of each of 2 cores",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = 0,
) -> None:
    """Train an embedded model from nothing, as the shipped one was; two processes of one thread each."""
    if model not in MODELS:
        raise QBenchError(f"--model is {model!r}, expected {' or '.join(MODELS)}")
    if after is not None and after not in STAGES[:-1]:
        raise QBenchError(f"--after is {after!r}, expected {' or '.join(STAGES[:-1])}")
    if steps is not None and steps < 1:
        raise QBenchError(f"--steps is {steps}, expected 1 or more")
    from dllm_qbench.models.embedded.recipes import RECIPES
    from dllm_qbench.models.embedded.train import train

    recipe = replace(RECIPES[model], seed=seed)
    if steps is not None:
        recipe = replace(
            recipe,
            **{
                name: replace(stage, steps=min(steps, stage.steps))
                for name in STAGES
                for stage in (getattr(recipe, name),)
            },
        )
    began = time.time()
    try:
        train(recipe, out, after, verbosity=verbose - quiet)
    except KeyboardInterrupt:
        done = [stage for stage in STAGES[:-1] if _written_since(out / stage, began)]
        if done:
            typer.echo(f"qbench: the same command with --after {done[-1]} goes on", err=True)
        raise
    made = out / STAGES[-1]
    if as_json:
        log = out / "training_log.jsonl"
        typer.echo(json.dumps({"checkpoint": str(made), "log": str(log)}, indent=2))
    elif quiet < 2:
        typer.echo(f"{made}: trained. Next:\nqbench run --model {made}")


def _written_since(checkpoint: Path, moment: float) -> bool:
    """Whether a stage's checkpoint is whole, and not of a run before."""
    config = checkpoint / "config.json"
    return config.exists() and config.stat().st_mtime >= moment
