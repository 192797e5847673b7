"""The paper's ten tasks: their names, lm-eval's definitions of them, and whether their data are here.

No torch and no lm-eval beyond the place where it is installed: only :mod:`.paper_lm_eval` runs it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dllm_qbench.errors import TaskError
from dllm_qbench.tasks.paper_data import MissingData, Source, require
from dllm_qbench.tasks.paper_settings import SETTINGS, PaperTask, find_paper_task

__all__ = ["PAPER_TASKS", "MissingData", "data_status", "definitions", "sources"]

PAPER_TASKS: tuple[str, ...] = tuple(SETTINGS)
_SUBTASKS = {"mmlu": 57, "minerva_math": 7}


def data_status(task: str, data_dir: Path | None) -> tuple[bool, str]:
    """Say whether a task's files are on this machine, and which are used or missing; nothing is read.

    Raises:
        TaskError: not one of the paper's tasks.
    """
    try:
        files = require(sources(find_paper_task(task)), data_dir)
    except MissingData as error:
        return False, str(error)
    paths = [path for found in files.values() for path in found]
    return True, f"{len(paths)} file(s), such as {paths[0]}"


def sources(task: PaperTask) -> list[Source]:
    """Return where each subtask's data come from, in the order of the subtasks."""
    found = []
    for path in definitions(task):
        config = _merged(path)
        asked = config.get("test_split") or config.get("validation_split")
        shown = config.get("fewshot_split") if task.shots else None
        found.append(
            Source(
                task=task.name,
                repository=str(config["dataset_path"]),
                config=config.get("dataset_name"),
                divided=task.name in _SUBTASKS,
                splits=tuple(dict.fromkeys(split for split in (asked, shown) if split)),
            )
        )
    return found


def definitions(task: PaperTask, *, chat: bool = False) -> list[Path]:
    """Return lm-eval's YAML files of a task, one a subtask, sorted by name.

    Raises:
        TaskError: this lm-eval has another set of files.
    """
    pattern = task.chat_files if chat and task.chat_files else task.files
    found = sorted(_folder().glob(pattern))
    wanted = _SUBTASKS.get(task.name, 1)
    if len(found) != wanted:
        raise TaskError(
            f"task {task.name}: lm-eval has {len(found)} definitions {pattern} under {_folder()}, expected"
            f" {wanted}; lm-eval 0.4.13 has them"
        )
    return found


@cache
def _folder() -> Path:
    """Return the folder of lm-eval's own task definitions, without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("lm-eval is not installed; install lm-eval>=0.4.13")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


class _Loader(yaml.SafeLoader):
    """Reads a definition for its plain fields; functions stay their names."""


_Loader.add_constructor("!function", lambda _, node: str(node.value))


@cache
def _merged(path: Path) -> dict[str, Any]:
    """Return a definition with what it includes."""
    own: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    included = own.pop("include", None)
    return own if included is None else {**_merged(path.parent / included), **own}
