"""The quantizer's gate: each cell against its baseline, or one like it."""

import pytest

from my_quantizer import quantize


@pytest.mark.parametrize("task", ["general", "math", "code"])
@pytest.mark.parametrize("scheme", ["W4A16-g64"])
def test_quantized_model_is_as_its_baseline_says(scheme, task, qbench_subject, qbench_cell):
    qbench_cell(qbench_subject(quantize, scheme), task, like="rtn/W4A16")
