"""Which check of the quick tier catches a planted fault first, the cheapest check first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dllm_qbench.engine.cells import ITEMS_SEED
from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.evaluate import evaluate
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits import AUDITS, EXPENSIVE, audit
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.judge import Verdict, judge
from tests.meta.faults.fault import DREAM, LLADA, Fault
from tests.meta.faults.runner import planted
from tests.test_regression import CELLS

BASELINES = Path(__file__).parents[3] / "baselines"
QUICK_CELLS = len((LLADA, DREAM)) * len(CELLS)  # a fault is looked at in one of them
ITEMS = 500
CHECKS = ("law", "error", "audit", "layers", "fidelity", "audit again", "reference", "accuracy")
FEW = 24  # enough for layers and fidelity, which are measured on canvases of their own


@dataclass(frozen=True)
class Caught:
    """The first check that a fault fails, and what it says."""

    check: str
    text: str


def first_check(fault: Fault) -> Caught | None:
    """Run the quick tier's checks under a fault, in the order of their cost, until one fails."""
    return next(complaints(fault), None)


def complaints(fault: Fault) -> Iterator[Caught]:
    """Yield what the quick tier's checks say under a fault, the cheapest check first."""
    if fault.probe is not None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            fault.plant(monkeypatch)
            try:
                fault.probe()
            except AssertionError as error:
                yield Caught("law", str(error).partition("\n")[0] or "a law is broken")
        return
    try:
        with planted(fault) as (reference, quantized):
            yield from _of_model(fault, reference, quantized)
    except (QBenchError, ValueError, RuntimeError, Warning) as error:  # pytest raises our warnings
        yield Caught("error", f"{type(error).__name__}: {error}")


def _of_model(fault: Fault, reference: DiffusionLM, quantized: DiffusionLM) -> Iterator[Caught]:
    for finding in audit(quantized, reference, skip=EXPENSIVE):
        yield Caught("audit", str(finding))
    few = _judged(fault, reference, quantized, FEW)
    for check in ("layers", "fidelity"):
        yield from _of_verdict(few, check)
    cheap = [name for name in AUDITS if name not in EXPENSIVE]
    for finding in audit(quantized, reference, skip=cheap):
        yield Caught("audit again", str(finding))
    all_items = _judged(fault, reference, quantized, ITEMS)
    for check in ("layers", "fidelity", "reference", "accuracy"):
        yield from _of_verdict(all_items, check)


def _judged(fault: Fault, reference: DiffusionLM, quantized: DiffusionLM, items: int) -> Verdict:
    record = evaluate(quantized, reference, fault.task, items, ITEMS_SEED)
    return judge(record, BASELINES, most_tests(QUICK_CELLS))


def _of_verdict(verdict: Verdict, check: str) -> Iterator[Caught]:
    for finding in verdict.findings:
        if finding.check == check and finding.status in ("degraded", "improved", "infra"):
            yield Caught(check, finding.text)
