"""Runs cells in this process, and keeps what they share: model, calibration, quantized models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.evaluate import Progress, evaluate
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.quant.audits import AUDITS, EXPENSIVE, audit
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.quantize import METHODS, quantize
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.records import Record

ITEMS_SEED: Final = 0
CALIBRATION_SEED: Final = 0
_SHOWN: Final = 3  # audit findings in an error


@dataclass(frozen=True)
class AuditReport:
    """The audits that ran on a quantized model, and what they found."""

    audits: tuple[str, ...]
    findings: tuple[str, ...]


class CellRunner:
    """Measures cells of one model. What it has made once it hands out again: do not change it."""

    def __init__(self, model: str, items: int) -> None:
        self.model = model
        self.items = items
        self._quantized: dict[tuple[Any, ...], DiffusionLM] = {}
        self._audited: WeakKeyDictionary[DiffusionLM, AuditReport] = WeakKeyDictionary()

    @cached_property
    def lm(self) -> DiffusionLM:
        """The full-precision model; its fingerprint is taken before anything quantizes it."""
        lm = load(self.model)
        lm.fingerprint()
        return lm

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

    def audited(self, quantized: DiffusionLM) -> AuditReport:
        """Audit a quantized model, once: all nine audits where its method can be run again.

        A method of the user's own cannot be run again by its recipe; the audits that need that are
        left out, and the report does not name them.
        """
        if quantized not in self._audited:
            method = str((quantized.recipe or {}).get("method"))
            skip = () if method in METHODS else EXPENSIVE
            report = AuditReport(
                tuple(name for name in AUDITS if name not in skip),
                tuple(map(str, audit(quantized, self.lm, skip=skip))),
            )
            self._audited[quantized] = report
        return self._audited[quantized]

    def measure(
        self, quantized: DiffusionLM, task: str, progress: Progress | None = None
    ) -> Record:
        """Audit the model, then evaluate one cell beside full precision."""
        report = self.audited(quantized)
        try:
            record = evaluate(
                quantized,
                reference=self.lm,
                task=task,
                items=self.items,
                seed=ITEMS_SEED,
                progress=progress,
            )
        except QBenchError as error:
            if not report.findings:
                raise
            found = "; ".join(report.findings[:_SHOWN])
            raise type(error)(f"{error}; audits before it found {found}") from error
        return replace(record, audits=report.audits, audit_findings=report.findings)
