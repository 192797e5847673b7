"""How small a loss of fidelity is caught: ``python tools/sensitivity.py``.

Gaussian noise is planted in the weight of one linear of a sound quantized model, as much as lowers the
SQNR of the logits by a stated number of dB, and the cell is judged as the quick matrix judges it, on the
same canvases as ever. Answers are left as they were, so that only layers and fidelity can catch it.
Writes ``docs/sensitivity.md``: the share caught by size of the loss.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import dllm_qbench as qb
from dllm_qbench.evaluation.fidelity import Measured, measure
from dllm_qbench.evaluation.probe import canvases
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import target_names
from dllm_qbench.records import Record
from dllm_qbench.seeding import derive
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.judge import judge
from tests.meta.faults.kill import QUICK_CELLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "sensitivity.md"
MODEL, TASK, ITEMS = "llada-embedded", "math", 24
QUANTIZED = (
    ("gptq", "W4A16-g64"),
    ("rtn", "W3A16-g64"),
    ("smoothquant", "W8A8"),
    ("quarot", "W4A4"),
)
LOSSES = (0.25, 1.0)  # dB of the logits' SQNR
EVERY = 4  # of the 28 linears, others for each quantized model
TESTS = most_tests(QUICK_CELLS)
_HALVINGS = 7


@contextmanager
def noisy(quantized: DiffusionLM, linear: str, scale: float) -> Iterator[None]:
    """Add noise of a share ``scale`` of the weight's own norm; take it back afterwards."""
    module = quantized.model.get_submodule(linear)
    sound = module.weight.data
    generator = torch.Generator().manual_seed(derive(0, "sensitivity", linear))
    noise = torch.randn(sound.shape, generator=generator)
    module.weight.data = sound + noise * (scale * sound.norm() / noise.norm())
    try:
        yield
    finally:
        module.weight.data = sound


def logit_db(measured: Measured) -> float:
    """Mean over canvases."""
    return statistics.fmean(measured.metrics["logit_sqnr"])


def planted(lm: DiffusionLM, quantized: DiffusionLM, linear: str, loss: float) -> Measured:
    """What is measured with as much noise in a linear as lowers the logits' SQNR by ``loss`` dB."""
    given = canvases(lm, TASK)
    target = logit_db(measure(lm, quantized, given)) - loss
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        scale = (low + high) / 2 if low else high / 4
        with noisy(quantized, linear, scale):
            found = measure(lm, quantized, given)
        low, high = (scale, high) if logit_db(found) > target else (low, scale)
    with noisy(quantized, linear, high):  # on the side of at least the stated loss
        return measure(lm, quantized, given)


def verdict_of(base: Record, found: Measured) -> str:
    """The status of a cell with these layers and this fidelity."""
    fidelity = {**base.fidelity, **found.metrics}
    record = replace(
        base, layer_sqnr=found.layer_sqnr, local_sqnr=found.local_sqnr, fidelity=fidelity
    )
    return judge(record, ROOT / "baselines", TESTS).status


def main() -> None:
    """Command line."""
    lm = qb.load(MODEL)
    data = qb.calibration(lm, seed=0)
    linears = target_names(lm.model)
    lines = []
    for index, (method, scheme) in enumerate(QUANTIZED):
        quantized = qb.quantize(lm, method, scheme, calibration=data)
        base = qb.evaluate(quantized, lm, TASK, ITEMS)
        assert judge(base, ROOT / "baselines", TESTS).status != "degraded", "the control fails"
        shares = []
        chosen = linears[index % EVERY :: EVERY]
        for loss in LOSSES:
            statuses = [verdict_of(base, planted(lm, quantized, name, loss)) for name in chosen]
            shares.append(f"{statuses.count('degraded')} of {len(chosen)}")
        lines.append(f"| {method} {scheme} | {' | '.join(shares)} |")
        print(lines[-1], flush=True)
    head = " | ".join(f"{loss:g} dB" for loss in LOSSES)
    text = [
        "# Sensitivity",
        "",
        "Written by `python tools/sensitivity.py`: noise in one linear at a time, as much as lowers the SQNR",
        f"of the logits by so many dB ({MODEL}, {TASK}); how often the cell is `degraded`, answers aside.",
        "",
        f"| quantized model | {head} |",
        f"|---|{'---:|' * len(LOSSES)}",
        *lines,
        "",
    ]
    DOCS.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
