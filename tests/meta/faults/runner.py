"""Quantize one cell's model under a fault, and keep the fault there while it is evaluated.

::

    with planted(fault) as (reference, quantized):
        findings = qb.audit(quantized, reference)  # runs the quantizer again, under the fault
        record = qb.evaluate(quantized, reference=reference, task=fault.task, items=100)

What a quantizer raises under its fault comes out of the ``with`` statement: that counts as caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest

from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.quantize import quantize
from tests.meta.faults.fault import Fault


@contextmanager
def planted(fault: Fault) -> Iterator[tuple[DiffusionLM, DiffusionLM]]:
    """Hand out (full precision, quantized under the fault); the patch stays until the exit."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield plant_and_quantize(fault, monkeypatch)


def plant_and_quantize(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, reference: DiffusionLM | None = None
) -> tuple[DiffusionLM, DiffusionLM]:
    """Return (full precision, quantized under the fault); ``monkeypatch`` takes the fault back.

    The model is loaded anew, since some faults damage it, and before anything is planted. Its
    fingerprint is taken then, as ``CellRunner`` does; an audit compares with it.
    """
    lm = load(fault.model) if reference is None else reference
    lm.fingerprint()
    if fault.in_evaluation:
        # Full precision's answers are remembered by weights and task: not those under a fault.
        monkeypatch.setattr(import_module("dllm_qbench.evaluation.evaluate"), "_references", {})
    data = None if fault.in_calibration else _drawn(fault, lm)
    fault.plant(monkeypatch)
    data = _drawn(fault, lm) if data is None else data
    return lm, quantize(lm, fault.method, fault.scheme, data, **fault.parameters)


def _drawn(fault: Fault, lm: DiffusionLM) -> Calibration:
    return calibration(lm, seed=fault.calibration_seed, **fault.calibration_arguments)
