"""dllm_qbench: does a quantizer still behave on diffusion language models as it should?

    import dllm_qbench as qb

    lm = qb.load("llada-embedded")
    quantized = qb.quantize(lm, "gptq", "W4A16-g64", calibration=qb.calibration(lm, seed=0))
    record = qb.evaluate(quantized, reference=lm, task="math", items=500)
    print(qb.judge(record, "baselines/llada-embedded.json").message)

Names are imported when first used, so ``import dllm_qbench`` is light: torch comes with the first
model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Band": "dllm_qbench.verdict.bands",
    "Calibration": "dllm_qbench.quant.calibration",
    "DiffusionLM": "dllm_qbench.models.lm",
    "QBenchError": "dllm_qbench.errors",
    "Record": "dllm_qbench.records",
    "Scheme": "dllm_qbench.quant.scheme",
    "Verdict": "dllm_qbench.verdict.judge",
    "audit": "dllm_qbench.quant.audits",
    "calibration": "dllm_qbench.quant.calibration",
    "evaluate": "dllm_qbench.evaluation.evaluate",
    "judge": "dllm_qbench.verdict.judge",
    "load": "dllm_qbench.models.loading",
    "load_quantized": "dllm_qbench.quant.checkpoint",
    "outliers": "dllm_qbench.evaluation.outliers",
    "pack": "dllm_qbench.quant.packed",
    "quantize": "dllm_qbench.quant.quantize",
    "save_quantized": "dllm_qbench.quant.checkpoint",
}
__all__ = [
    "Band",
    "Calibration",
    "DiffusionLM",
    "QBenchError",
    "Record",
    "Scheme",
    "Verdict",
    "__version__",
    "audit",
    "calibration",
    "evaluate",
    "judge",
    "load",
    "load_quantized",
    "outliers",
    "pack",
    "quantize",
    "save_quantized",
]

if TYPE_CHECKING:
    from dllm_qbench.errors import QBenchError
    from dllm_qbench.evaluation.evaluate import evaluate
    from dllm_qbench.evaluation.outliers import outliers
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.models.loading import load
    from dllm_qbench.quant.audits import audit
    from dllm_qbench.quant.calibration import Calibration, calibration
    from dllm_qbench.quant.checkpoint import load_quantized, save_quantized
    from dllm_qbench.quant.packed import pack
    from dllm_qbench.quant.quantize import quantize
    from dllm_qbench.quant.scheme import Scheme
    from dllm_qbench.records import Record
    from dllm_qbench.verdict.bands import Band
    from dllm_qbench.verdict.judge import Verdict, judge


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dllm_qbench' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
