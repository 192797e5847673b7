"""Runs cells in this process, and keeps what they share: model, calibration, quantized models."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.benchmark import Benchmark
from dllm_qbench.evaluation.evaluate import Keep, Progress, Stop, evaluate
from dllm_qbench.evaluation.probe import canvases
from dllm_qbench.evaluation.provenance import provenance
from dllm_qbench.evaluation.symptoms import symptom
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.quant.audits import AUDITS, EXPENSIVE, audit
from dllm_qbench.quant.audits.subject import Quantizer, Rerun
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.quantize import METHODS, quantize
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.records import Record
from dllm_qbench.subjects.quantizers import Quantize, Subject
from dllm_qbench.tasks import find

ITEMS_SEED: Final = 0
CALIBRATION_SEED: Final = 0
_NOT_FOR_SUBJECTS: Final = ("equivalence", "input_untouched")
_SHOWN: Final = 3  # audit findings in an error


@dataclass(frozen=True)
class AuditReport:
    """The audits that ran on a quantized model, and what they found."""

    audits: tuple[str, ...]
    findings: tuple[str, ...]


class CellRunner:
    """Measures cells of one model. What it has made once it hands out again: do not change it."""

    def __init__(
        self, model: str, items: int, device: str = "cpu", execution: str = "fake"
    ) -> None:
        self.model = model
        self.items = items
        self.device = device
        self.execution = execution
        self._quantized: dict[tuple[Any, ...], DiffusionLM] = {}
        self._subjects: dict[tuple[Any, ...], DiffusionLM] = {}
        self._again: WeakKeyDictionary[DiffusionLM, Quantizer] = WeakKeyDictionary()
        self._at_16_bits: dict[str, Rerun] = {}
        self._audited: WeakKeyDictionary[DiffusionLM, AuditReport] = WeakKeyDictionary()

    @cached_property
    def lm(self) -> DiffusionLM:
        """The full-precision model; its fingerprint is taken before anything quantizes it."""
        lm = load(self.model, device=self.device)
        lm.fingerprint()
        return lm

    @property
    def provenance(self) -> dict[str, Any]:
        """Where and with what this process measures, as its records will say."""
        return provenance(self.lm, ITEMS_SEED)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration data that every method gets."""
        return calibration(self.lm, seed=CALIBRATION_SEED)

    def quantized(self, method: str, scheme: str | Scheme, **parameters: Any) -> DiffusionLM:
        """The model quantized by a method; parameters are those of ``quantize``."""
        key = (method, str(Scheme.parse(scheme)), *sorted(parameters.items()))
        if key not in self._quantized:
            self._quantized[key] = quantize(
                self.lm,
                method,
                scheme,
                calibration=self.calibration,
                execution=self.execution,
                **parameters,
            )
        return self._quantized[key]

    def subject(
        self, quantizer: Quantize | str, scheme: str | Scheme, method: str | None = None
    ) -> DiffusionLM:
        """The model quantized by a user's function, or the function of that name; each scheme once.

        Errors are those of :class:`dllm_qbench.subjects.Subject`.
        """
        subject = Subject.of(quantizer, method)
        parsed = Scheme.parse(scheme)
        key = (subject.quantize, subject.method, str(parsed))
        if key not in self._subjects:
            made = subject.apply(self.lm, parsed, self.calibration)
            self._again[made] = lambda lm, scheme: subject.apply(lm, scheme, self.calibration)
            self._subjects[key] = made
        return self._subjects[key]

    def audited(self, quantized: DiffusionLM) -> AuditReport:
        """Audit a quantized model, once: all nine audits where its method can be run again.

        What cannot be run again (a model that came ready-made) goes without the audits that need that,
        and the report does not name them. A subject's function is run again, but not at 16 bits, which
        few know; and it may change the copy that it is given.
        """
        if quantized not in self._audited:
            method = str((quantized.recipe or {}).get("method"))
            skip: Collection[str] = () if method in METHODS else EXPENSIVE
            if quantized in self._again:
                skip = _NOT_FOR_SUBJECTS
            self._audited[quantized] = self._audit(quantized, skip)
        return self._audited[quantized]

    def _audit(self, quantized: DiffusionLM, skip: Collection[str]) -> AuditReport:
        found = audit(
            quantized,
            self.lm,
            self._calibration_of(quantized),
            skip=skip,
            quantizer=self._again.get(quantized),
            shared=self._at_16_bits,
        )
        ran = tuple(name for name in AUDITS if name not in skip)
        return AuditReport(ran, tuple(map(str, found)))

    def _calibration_of(self, quantized: DiffusionLM) -> Calibration | None:
        """The runner's calibration if the model was quantized with it; ``None`` where it was not."""
        stated = (quantized.recipe or {}).get("calibration") or {}
        return self.calibration if stated == self.calibration.recipe else None

    def symptom(self, quantized: DiffusionLM, task: str, module: str) -> str:
        """What kind of error a module shows, on the canvases of a task's fidelity metrics."""
        given = canvases(self.lm, find(task).family, ITEMS_SEED)
        found = symptom(self.lm, quantized, module, given.ids, given.attention_mask)
        return f"{found.kind}: {found.text}"

    def measure(
        self,
        quantized: DiffusionLM,
        task: str | Benchmark,
        progress: Progress | None = None,
        stop: Stop | None = None,
        keep: Keep | None = None,
        bring: Callable[[DiffusionLM], None] | None = None,
    ) -> Record:
        """Audit the model, then evaluate one cell beside full precision; ``stop`` may end it early."""
        report = self.audited(quantized)
        try:
            record = evaluate(
                quantized,
                reference=self.lm,
                task=task,
                items=self.items,
                seed=ITEMS_SEED,
                progress=progress,
                stop=stop,
                keep=keep,
                bring=bring,
            )
        except QBenchError as error:
            if not report.findings:
                raise
            found = "; ".join(report.findings[:_SHOWN])
            raise type(error)(f"{error}; audits before it found {found}") from error
        return replace(record, audits=report.audits, audit_findings=report.findings)
