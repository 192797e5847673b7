"""Benchmarks as lm-eval tasks: YAML files, and the functions that they name.

No torch and no lm-eval here: this module only says which task stands behind a short name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dllm_qbench.errors import TaskError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class TaskSpec:
    """A task of the suite.

    Attributes:
        family: the short name, as in a cell's name: ``general``, ``math``, ``code``.
        name: the lm-eval task.
        metric: lm-eval's name of the per-item score, 0 or 1.
    """

    family: str
    name: str
    metric: str


TASKS = {
    spec.family: spec
    for spec in (
        TaskSpec("general", "qbench_embedded_general", "acc"),
        TaskSpec("math", "qbench_embedded_math", "exact_match"),
        TaskSpec("code", "qbench_embedded_code", "pass@1"),
    )
}


def find(task: str) -> TaskSpec:
    """Return the task of this short or lm-eval name; ``TaskError`` lists the known ones."""
    for spec in TASKS.values():
        if task in (spec.family, spec.name):
            return spec
    raise TaskError(f"task {task!r} is unknown; tasks: {', '.join(TASKS)}")
