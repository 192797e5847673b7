"""The cells of ``--qbench-subject``: collected by the plugin, beside a project's own tests.

pytest --qbench-subject=my_package.quantizer:quantize --qbench-schemes=W4A16-g64 --qbench-like=gptq/W4A16
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dllm_qbench.pytest_plugin import Cell, SubjectQuantizer


@pytest.mark.quick
def test_subject(
    qbench_subject_cell: Any, qbench_subject: SubjectQuantizer, qbench_cell: Cell
) -> None:
    """One cell of one quantizer."""
    quantizer, scheme, task = qbench_subject_cell
    qbench_cell(qbench_subject(quantizer, scheme), task)
