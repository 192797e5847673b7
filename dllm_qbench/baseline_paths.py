"""Where the baselines of a model are. Light: nothing is read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from dllm_qbench.errors import BaselineError

HOME: Final = Path("baselines")
"""Where a project keeps its baselines."""


def baseline_file(name: str) -> Path:
    """The file that a file's or a model's name stands for: the working folder's before the shipped one.

    Raises:
        BaselineError: neither is there.
    """
    path = Path(name)
    if path.is_file():
        return path
    own = baseline_path(HOME, name)
    if own.is_file():
        return own
    if path.suffix == ".json" or len(path.parts) > 1:
        raise BaselineError(f"{name}: no such file; give a file of baselines, or a model's name")
    return shipped_baselines(name)


def baseline_path(folder: str | Path, model: str) -> Path:
    """The file of a model; characters that file systems dislike (``/``) become ``--``."""
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', model)}.json"


def shipped_baselines(model: str) -> Path:
    """The file of an embedded model's baselines that comes with this package.

    Raises:
        BaselineError: there is none for the model.
    """
    package = Path(__file__).parent
    folders = (package.parent / "baselines", package / "shipped_baselines")
    for folder in folders:
        path = baseline_path(folder, model)
        if path.is_file():
            return path
    known = sorted(path.stem for folder in folders for path in folder.glob("*.json"))
    raise BaselineError(
        f"no baselines of {model!r} come with the suite (only of {', '.join(known) or 'no model'});"
        " record the model's own with: pytest --qbench-update"
    )


def in_ci() -> bool:
    """Whether ``CI`` says that nobody is there to review what would be written."""
    return os.environ.get("CI", "").strip().lower() in {"1", "true", "yes"}
