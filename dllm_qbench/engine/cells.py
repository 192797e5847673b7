"""Runs cells in this process, and keeps what they share: model, calibration, quantized models."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from dllm_qbench.evaluation.evaluate import Progress, evaluate
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.quantize import quantize
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.records import Record

ITEMS_SEED: Final = 0
CALIBRATION_SEED: Final = 0


class CellRunner:
    """Measures cells of one model. What it has made once it hands out again: do not change it."""

    def __init__(self, model: str, items: int) -> None:
        self.model = model
        self.items = items
        self._quantized: dict[tuple[Any, ...], DiffusionLM] = {}

    @cached_property
    def lm(self) -> DiffusionLM:
        """The full-precision model."""
        return load(self.model)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration data that every method gets."""
        return calibration(self.lm, seed=CALIBRATION_SEED)

    def quantized(self, method: str, scheme: str | Scheme, **parameters: Any) -> DiffusionLM:
        """The model quantized by a method; parameters are those of ``quantize``."""
        key = (method, str(Scheme.parse(scheme)), *sorted(parameters.items()))
        if key not in self._quantized:
            self._quantized[key] = quantize(
                self.lm, method, scheme, calibration=self.calibration, **parameters
            )
        return self._quantized[key]

    def measure(
        self, quantized: DiffusionLM, task: str, progress: Progress | None = None
    ) -> Record:
        """Evaluate one cell beside full precision."""
        return evaluate(
            quantized,
            reference=self.lm,
            task=task,
            items=self.items,
            seed=ITEMS_SEED,
            progress=progress,
        )
