"""Baselines as the commands name them, read: a file, a folder of files, or a model. No torch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baseline_paths import baseline_file
from dllm_qbench.baselines import Baselines, read_baselines
from dllm_qbench.errors import BaselineError


def read_all(name: str) -> list[Baselines]:
    """The baselines of a file, a model, or of every file in a folder.

    Raises:
        BaselineError: one of them cannot be read, or the folder has none.
    """
    path = Path(name)
    if not path.is_dir():
        return [read_baselines(baseline_file(name))]
    files = sorted(path.glob("*.json"))
    if not files:
        raise BaselineError(f"{name}: this folder holds no baselines (*.json)")
    return [read_baselines(file) for file in files]


def find_cell(baselines: Baselines, name: str) -> CellBaseline:
    """A cell by its name; ``BaselineError`` names those that are spelled alike."""
    if name in baselines.cells:
        return baselines.cells[name]
    near = get_close_matches(name, baselines.cells, n=3, cutoff=0.5)
    meant = f"; did you mean {', '.join(near)}?" if near else ""
    raise BaselineError(
        f"{baselines.path}: no cell {name!r} ({len(baselines.cells)} others){meant}"
    )
