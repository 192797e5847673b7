"""The regression matrix: every cell against its stored baseline.

pytest -m quick                                all cells of both models
pytest -m quick --qbench-model=dream-embedded  one model
pytest -m quick -k gptq-W4A16-g64              one method and scheme
pytest -m quick --qbench-update                measure again, write the baselines, fail for the review
"""

from __future__ import annotations

import pytest

from dllm_qbench.pytest_plugin import Cell
from dllm_qbench.quick_matrix import QUANTIZERS, TASKS

CELLS = [
    pytest.param(method, scheme, task, id=f"{method}-{scheme}-{task}")
    for method, scheme in QUANTIZERS
    for task in TASKS
]


@pytest.mark.quick
@pytest.mark.parametrize(("method", "scheme", "task"), CELLS)
def test_cell_is_as_its_baseline_says(
    method: str, scheme: str, task: str, qbench_cell: Cell, request: pytest.FixtureRequest
) -> None:
    quantize = request.getfixturevalue(method)
    qbench_cell(quantize(scheme), task)
