"""What the tables of arXiv 2508.14896 support, and what is said of them that they contradict.

Each finding is a list of inequalities between drops of averages. Which hold is checked when the files
are read (``dllm_qbench/paper_files.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dllm_qbench.paper import CATEGORIES

LLADA: Final = ("llada-8b-base", "llada-8b-instruct")
DREAM: Final = "dream-7b-base"
WEIGHT_ONLY: Final = ("gptq", "awq")
ROTATIONS: Final = ("quarot", "duquant")

NEAR_LOSSLESS_W8A8: Final = 3.0
"""Largest in the tables: 2.50 % (SmoothQuant, general, Base)."""
WITHIN_GPTQ_W4: Final = 1.0
COLLAPSE: Final = {"general": 20.0, "math": 80.0, "code": 80.0}
"""Least in the tables: 29.0, 95.5 and 99.2 %."""

Data = dict[str, Any]


def findings(files: Mapping[str, Data]) -> Data:
    """What holds in the scores of these files, and what is contradicted there."""
    every = ("general", "math", "code")

    def of(model: str, quantized: str, category: str) -> Data:
        tasks = [t for t in CATEGORIES[category] if f"{quantized}/{t}" in files[model]["cells"]]
        return {"model": model, "quantized": quantized, "tasks": tasks}

    def above(worse: Data, better: Data) -> Data:
        return {"drop_of": worse, "above_that_of": better}

    w8a8 = [f"{method}/W8A8" for method in ("smoothquant", *ROTATIONS)]
    w3_and_w4a4 = [
        *(f"{method}/W3A16-g128" for method in WEIGHT_ONLY),
        *(f"{method}/W4A4" for method in ("smoothquant", *ROTATIONS)),
    ]
    common = [task for task in CATEGORIES["general"] if task in files[DREAM]["full_precision"]]
    supported = [
        _finding(
            "gptq-w4-within-1-percent",
            "GPTQ with 4-bit weights stays within 1 % of full precision on general tasks",
            [1, 5],
            [
                {"drop_of": of(model, "gptq/W4A16-g128", "general"), "at_most": WITHIN_GPTQ_W4}
                for model in (*LLADA, DREAM)
            ],
        ),
        _finding(
            "w8a8-near-lossless",
            "8-bit weights and activations are near-lossless on general and math tasks",
            [2, 4],
            [
                {"drop_of": of(model, quantized, category), "at_most": NEAR_LOSSLESS_W8A8}
                for model in LLADA
                for quantized in w8a8
                for category in ("general", "math")
            ],
        ),
        _finding(
            "smoothquant-w4a4-collapses",
            "SmoothQuant collapses with 4-bit weights and activations",
            [2, 4],
            [
                {
                    "drop_of": of(model, "smoothquant/W4A4", category),
                    "at_least": COLLAPSE[category],
                }
                for model in LLADA
                for category in every
            ],
        ),
        _finding(
            "w4a4-drops-sharply",
            "4-bit activations cost more than 8-bit ones, whatever the method",
            [2, 4],
            [
                above(of(model, f"{method}/W4A4", category), of(model, f"{method}/W8A8", category))
                for model in LLADA
                for method in ("smoothquant", *ROTATIONS)
                for category in every
            ],
        ),
        _finding(
            "rotation-beats-smoothquant-w4a4",
            "Methods that rotate lose less than SmoothQuant with 4-bit weights and activations",
            [2, 4],
            [
                above(
                    of(model, "smoothquant/W4A4", category), of(model, f"{method}/W4A4", category)
                )
                for model in LLADA
                for method in ROTATIONS
                for category in every
            ],
        ),
        _finding(
            "math-and-code-suffer-more",
            "Math and code lose more than general tasks with 3-bit weights and at W4A4",
            [1, 2, 3, 4],
            [
                above(of(model, quantized, category), of(model, quantized, "general"))
                for model in LLADA
                for quantized in w3_and_w4a4
                for category in ("math", "code")
            ],
        ),
        _finding(
            "dream-w3-worse-than-llada",
            "3-bit weights cost Dream more than LLaDA, on the general tasks that both were given",
            [1, 5],
            [
                above(
                    {"model": DREAM, "quantized": f"{method}/W3A16-g128", "tasks": common},
                    {"model": model, "quantized": f"{method}/W3A16-g128", "tasks": common},
                )
                for method in WEIGHT_ONLY
                for model in LLADA
            ],
        ),
    ]
    contradicted = [
        _finding(
            "gptq-always-above-awq",
            "GPTQ always loses less than AWQ",
            [1, 3, 5],
            [
                above(of(model, f"awq/{scheme}", category), of(model, f"gptq/{scheme}", category))
                for model in (*LLADA, DREAM)
                for scheme in ("W4A16-g128", "W3A16-g128")
                for category in (every if model in LLADA else every[:1])
            ],
        ),
        _finding(
            "duquant-always-above-quarot",
            "DuQuant always loses less than QuaRot",
            [2, 4],
            [
                above(
                    of(model, f"quarot/{scheme}", category),
                    of(model, f"duquant/{scheme}", category),
                )
                for model in LLADA
                for scheme in ("W8A8", "W4A4")
                for category in every
            ],
        ),
        _finding(
            "instruct-always-more-robust",
            "The instruct model always loses less than the base model",
            [1, 2, 3, 4],
            [
                above(of(LLADA[0], quantized, category), of(LLADA[1], quantized, category))
                for quantized in (
                    *(f"{m}/{s}" for s in ("W4A16-g128", "W3A16-g128") for m in WEIGHT_ONLY),
                    *w8a8,
                    *(f"{method}/W4A4" for method in ("smoothquant", *ROTATIONS)),
                )
                for category in every
            ],
        ),
    ]
    return {"findings": supported, "contradicted": contradicted}


def _finding(name: str, statement: str, tables: list[int], claims: list[Data]) -> Data:
    return {"name": name, "statement": statement, "tables": tables, "claims": claims}
