"""What a shell completes: names of models, methods, schemes, tasks, cells. Light: a key must not wait."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import typer

from dllm_qbench.baseline_paths import HOME, baseline_file
from dllm_qbench.errors import QBenchError
from dllm_qbench.full_matrix import QUANTIZERS as FULL
from dllm_qbench.models.hub import EMBEDDED
from dllm_qbench.models.released import MODELS
from dllm_qbench.quick_matrix import METHODS, QUANTIZERS
from dllm_qbench.tasks import TASKS

SCHEMES = tuple(dict.fromkeys(scheme for _, scheme in (*QUANTIZERS, *FULL)))


def models(incomplete: str) -> list[str]:
    """Shipped and released models."""
    return _starting((*EMBEDDED, *MODELS), incomplete)


def baselines(incomplete: str) -> list[str]:
    """Models with baselines: the working folder's and the shipped ones."""
    own = sorted(path.stem for path in HOME.glob("*.json"))
    return _starting((*own, *EMBEDDED), incomplete)


def methods(incomplete: str) -> list[str]:
    """Methods, separated by commas."""
    return _listed(METHODS, incomplete)


def method(incomplete: str) -> list[str]:
    """One method."""
    return _starting(METHODS, incomplete)


def schemes(incomplete: str) -> list[str]:
    """Schemes of the two matrices, separated by commas."""
    return _listed(SCHEMES, incomplete)


def scheme(incomplete: str) -> list[str]:
    """One scheme."""
    return _starting(SCHEMES, incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks, separated by commas."""
    return _listed(TASKS, incomplete)


def like(incomplete: str) -> list[str]:
    """Method and scheme of the shipped cells."""
    pairs = (f"{name}/{bits}" for name, bits in QUANTIZERS)
    return _starting(pairs, incomplete)


def cells(ctx: typer.Context, incomplete: str) -> list[str]:
    """Cells of the baselines that the argument before names."""
    try:
        path = baseline_file(str(ctx.params.get("baselines") or ""))
        return _starting(json.loads(Path(path).read_text(encoding="utf-8"))["cells"], incomplete)
    except (QBenchError, OSError, ValueError, KeyError, TypeError):
        return []  # a shell has no place for an error; the command itself says it


def embedded(incomplete: str) -> list[str]:
    """Models that ``train-embedded`` trains."""
    return _starting(("llada", "dream"), incomplete)


def stages(incomplete: str) -> list[str]:
    """Stages of a training that another follows."""
    return _starting(("natural", "settled"), incomplete)


def tiers(incomplete: str) -> list[str]:
    """Tiers of the suite."""
    return _starting(("quick", "full"), incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _listed(names: Iterable[str], incomplete: str) -> list[str]:
    """The names that may follow the last comma, each with what stands before it."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in _starting(names, last) if name not in given]
