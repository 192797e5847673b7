"""The full tier: the paper's whole matrix on real checkpoints.

pytest -m full --qbench-device=cuda                     models x methods x schemes x ten tasks
pytest -m full --qbench-model=llada-1.5                 another model of the registry, or a folder
pytest -m full -k "gptq and gsm8k" --qbench-limit=200   some cells, the first 200 items
pytest -m full --collect-only -q                        what there is

Weights and data have to be on this machine; ``qbench doctor`` says what is missing and how to get it.
A run that was killed goes on where it was: what is measured is kept in ``--qbench-store``.
"""

from __future__ import annotations

import pytest

from dllm_qbench.full_matrix import QUANTIZERS
from dllm_qbench.pytest_plugin import Job
from dllm_qbench.tasks.paper import PAPER_TASKS

CELLS = [
    pytest.param(method, scheme, task, id=f"{method}-{scheme}-{task}")
    for method, scheme in QUANTIZERS
    for task in PAPER_TASKS
]


@pytest.mark.full
@pytest.mark.parametrize(("method", "scheme", "task"), CELLS)
def test_cell_of_the_paper(method: str, scheme: str, task: str, qbench_job: Job) -> None:
    qbench_job(method, scheme, task)
