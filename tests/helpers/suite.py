"""Small pytest runs of three cells that a fake runner measures."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any

import pytest

# Heavy libraries before a run inside the run, which forgets what it imported: they load once, and that of the
# charts can be loaded only once in a process.
import vl_convert  # noqa: F401

import dllm_qbench.engine.cells
import dllm_qbench.verdict.alike
import dllm_qbench.verdict.message  # noqa: F401
from dllm_qbench.baselines import write_cell
from tests.helpers.fake_cells import measured

MODULE = "dllm_qbench.pytest_plugin"
CONFTEST = """
import sys
from tests.helpers import fake_cells
sys.modules["dllm_qbench.engine.cells"] = fake_cells
"""
TESTS = """
import pytest

@pytest.mark.quick
@pytest.mark.parametrize("task", ["general", "math", "code"])
def test_cell(gptq, qbench_cell, task):
    assert qbench_cell(gptq("W4A16-g64"), task).cell == f"gptq/W4A16-g64/{task}"
"""
ONE = "gptq/W4A16-g64/math"


class Suite:
    """A folder with three cells, and ways to run it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.baseline = pytester.path / "baselines" / "llada-embedded.json"
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nqbench_model = llada-embedded")
        pytester.makepyfile(test_cells=TESTS)

    def plan(self, **counts: Any) -> None:
        """What the tasks of the three cells measure from now on."""
        cells = {f"gptq/W4A16-g64/{task}": value for task, value in counts.items()}
        (self.pytester.path / "cells.json").write_text(json.dumps(cells))

    def run(self, *arguments: str) -> pytest.RunResult:
        installed = any(point.value == MODULE for point in entry_points(group="pytest11"))
        plugin = [] if installed else ["-p", MODULE]
        quiet = ["-p", "no:cacheprovider"]
        return self.pytester.runpytest_inprocess(*plugin, *quiet, *arguments, no_reraise_ctrlc=True)

    def stored(self) -> Any:
        return json.loads(self.baseline.read_text())["cells"]

    def record(self) -> Suite:
        """Give the three cells baselines."""
        for task in ("general", "math", "code"):
            write_cell(self.baseline, measured(f"gptq/W4A16-g64/{task}", "llada-embedded"))
        return self
