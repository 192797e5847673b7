"""All planted faults, harmful and benign. Faults for one linear at a time, by which localisation is
measured, are in ``tests/helpers/one_layer.py``.
"""

from __future__ import annotations

from tests.meta.faults import (
    activation_faults,
    awq_faults,
    benign,
    calibration_faults,
    coverage_faults,
    duquant_faults,
    evaluation_faults,
    gptq_faults,
    grids,
    packing_faults,
    rotation_faults,
    sampler_faults,
    smoothquant_faults,
)
from tests.meta.faults.fault import Fault

AREAS: dict[str, tuple[Fault, ...]] = {
    "grids": grids.FAULTS,
    "gptq": gptq_faults.FAULTS,
    "awq": awq_faults.FAULTS,
    "smoothquant": smoothquant_faults.FAULTS,
    "quarot": rotation_faults.FAULTS,
    "duquant": duquant_faults.FAULTS,
    "calibration": calibration_faults.FAULTS,
    "activations": activation_faults.FAULTS,
    "coverage": coverage_faults.FAULTS,
    "evaluation": evaluation_faults.FAULTS,
    "samplers": sampler_faults.FAULTS,
    "packing": packing_faults.FAULTS,
    "benign": benign.FAULTS,
}
FAULTS: tuple[Fault, ...] = tuple(fault for area in AREAS.values() for fault in area)
