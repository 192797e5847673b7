"""A report's data, made by hand in the shape that ``dllm_qbench.report.data.build`` gives.

Two models, five quantizers, three tasks. In ``llada-embedded`` the down projection of layer 2 is broken
under GPTQ: two of its cells fail and name it. One cell of ``dream-embedded`` could not be measured.
"""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from typing import Any, Final

MODELS: Final = ("llada-embedded", "dream-embedded")
ROWS: Final = (
    ("rtn", "W4A16-g64"),
    ("gptq", "W4A16-g64"),
    ("gptq", "W3A16-g64"),
    ("smoothquant", "W8A8"),
    ("quarot", "W4A4"),
)
TASKS: Final = ("general", "math", "code")
BROKEN: Final = "model.layers.2.mlp.down_proj"
FAILING: Final = {
    "llada-embedded/gptq/W3A16-g64/math": "degraded",
    "llada-embedded/gptq/W4A16-g64/math": "degraded",
    "dream-embedded/smoothquant/W8A8/code": "infra",
}
_DROPS: Final = (
    (1.7, 12.3, 4.8),
    (-0.2, 9.9, 3.6),
    (2.3, 21.9, 11.7),
    (0.0, 1.3, 1.9),
    (7.8, 42.2, 24.7),
)
_BANDS: Final = ("near-lossless <=2.5", "graceful 0.5..7", "graceful 11.5..19.5", "collapse >=20")
_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_ORDER: Final = ("infra", "degraded", "improved", "inconclusive", "changed", "equivalent")


def modules() -> list[str]:
    """The taps of four layers, in forward order."""
    found = []
    for layer in range(4):
        prefix = f"model.layers.{layer}"
        found += [f"{prefix}.input_layernorm"]
        found += [f"{prefix}.self_attn.{name}" for name in _PROJECTIONS]
        found += [f"{prefix}.post_attention_layernorm"]
        found += [f"{prefix}.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    return found


def example() -> dict[str, Any]:
    """A fresh copy; change it as a test needs."""
    cells = [
        _cell(model, row, task)
        for model in MODELS
        for row in range(len(ROWS))
        for task in range(len(TASKS))
    ]
    cells.sort(key=lambda cell: (_ORDER.index(cell["status"]), -(cell["drop"] or 0), cell["id"]))
    places = {cell["id"]: index for index, cell in enumerate(cells)}
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell["status"]] = counts.get(cell["status"], 0) + 1
    return {
        "version": 1,
        "generated": "2026-11-26T21:04:00+00:00",
        "package": "0.1.0",
        "notes": ["1 cell was measured twice: the last one counts"],
        "verdict": {
            "fails": True,
            "failing": len(FAILING),
            "cells": len(cells),
            "counts": counts,
            "headline": f"{len(FAILING)} of {len(cells)} cells fail",
            "whole_run": [],
            "first": [[BROKEN, 2]],
        },
        "models": [_model(name, places) for name in MODELS],
        "profiles": {name: modules() for name in MODELS},
        "items": {
            task: {
                f"{task}-{n}": {"prompt": f"{n} + {n} =", "expected": f"{n + n}"} for n in range(6)
            }
            for task in TASKS
        },
        "cells": cells,
        "environments": [
            [
                ["dllm_qbench", "0.1.0"],
                ["python", "3.11.7"],
                ["torch", "2.13.0+cpu"],
                ["transformers", "5.23.0"],
                ["device", "cpu: AMD EPYC"],
                ["dtype", "float32"],
                ["commit", "cb4aafc7c0bb"],
            ]
        ],
        "comparison": _comparison(places),
        "outliers": _outliers(),
        "roofline": _roofline(),
    }


def _model(name: str, places: dict[str, int]) -> dict[str, Any]:
    rows = [
        {
            "method": method,
            "scheme": scheme,
            "cells": [places[f"{name}/{method}/{scheme}/{task}"] for task in TASKS],
        }
        for method, scheme in ROWS
    ]
    return {"name": name, "items": "500", "tasks": list(TASKS), "rows": rows}


def _cell(model: str, row: int, task: int) -> dict[str, Any]:
    method, scheme = ROWS[row]
    name = f"{model}/{method}/{scheme}/{TASKS[task]}"
    rng = random.Random(name)
    status = FAILING.get(name, "inconclusive" if (row, task) == (3, 2) else "equivalent")
    shared = {
        "id": name,
        "model": model,
        "method": method,
        "scheme": scheme,
        "task": TASKS[task],
        "status": status,
        "fails": name in FAILING,
        "audits": ["coverage", "grid", "finite"],
        "audit_findings": [],
        "recipe": [["method", method], ["scheme", scheme], ["calibration.sequences", "512"]],
        "provenance": [["date", "2026-11-26T08:46:34+00:00"], ["commit", "cb4aafc7c0bb"]],
        "seconds": 9.1,
        "versions": 0,
    }
    if status == "infra":
        return shared | _unmeasured(name)
    drop = _DROPS[row][task]
    broken = status == "degraded"
    return shared | {
        "items": 500,
        "band": _BANDS[min(3, 1 + row if broken else (drop > 3) + (drop > 11) + (drop > 20))],
        "reference": 91.0,
        "quantized": round(91.0 * (1 - drop / 100), 1),
        "drop": drop,
        "interval": [round(drop - 1.9, 2), round(drop + 2.1, 2)],
        "error": None,
        "message": f"{method}/{scheme}/{TASKS[task]} on {model}: {status}\n  expected   its band",
        "text": None,
        "place": _place(broken),
        "symptom": "noise: no pattern" if broken else None,
        "findings": _findings(status),
        "discordant": _discordant(TASKS[task]),
        "kinds": [
            {"kind": "two-step", "items": 260, "reference": 252, "quantized": 208},
            {"kind": "three-step", "items": 240, "reference": 204, "quantized": 194},
        ],
        "mask_ratio": [
            {
                "ratio": ratio,
                "log10_kl": [round(-4 + 2.5 * ratio + step, 2) for step in (-0.6, 0.0, 0.7)],
                "agreement": round(0.99 - 0.1 * ratio, 3),
                "tokens": 130,
            }
            for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)
        ],
        "fidelity": {
            "logit_sqnr": 21.0,
            "nll_difference": 0.0232,
            "agreement": 0.94,
            "masked_tokens": 604,
        },
        "trajectory": {
            "items": 64,
            "flips": [0.05, 0.09, 0.14, 0.11],
            "diverged": [0.05, 0.11, 0.19, 0.22],
            "sequence_match": 0.81,
        },
        "layers": _layers(rng, broken),
    }


def _unmeasured(name: str) -> dict[str, Any]:
    error = "NonFiniteError: model.layers.3.mlp.down_proj: 12 values are NaN"
    return {
        "items": 0,
        "band": "",
        "reference": None,
        "quantized": None,
        "drop": None,
        "interval": None,
        "error": error,
        "message": f"{name}: infra\n{error}",
        "text": None,
        "place": None,
        "symptom": None,
        "findings": [],
        "discordant": {"lost": 0, "gained": 0, "against_baseline": None, "shown": []},
        "kinds": [],
        "mask_ratio": [],
        "fidelity": {},
        "trajectory": None,
        "layers": {
            "sqnr": [],
            "local": [],
            "baseline": None,
            "local_baseline": None,
            "suspect": None,
        },
    }


def _place(broken: bool) -> dict[str, Any]:
    if not broken:
        why = "every module's SQNR is within 0.25 dB of the baseline's"
        return {"first": None, "why": why, "by": "nothing", "contributors": []}
    return {
        "first": BROKEN,
        "why": "fed with full precision's inputs it is at 17.1 dB, 22.7 in the baseline; all before it"
        " is within 0.25 dB",
        "by": "own error",
        "contributors": [{"module": BROKEN, "share": 0.93, "stored": 22.7, "seen": 17.1}],
    }


def _findings(status: str) -> list[dict[str, str]]:
    if status == "degraded":
        text = (
            f"own SQNR of 1 of 28 modules left its baseline by more than 0.25 dB, first at {BROKEN}"
        )
        return [
            {"status": "degraded", "check": "layers", "text": text},
            {"status": "degraded", "check": "fidelity", "text": "logit SQNR 22.0 -> 21.0 dB"},
        ]
    if status == "inconclusive":
        text = "a drop above 2.5 % is neither shown nor ruled out"
        return [{"status": "inconclusive", "check": "accuracy", "text": text}]
    return [
        {"status": "equivalent", "check": "accuracy", "text": "the drop is what the band allows"}
    ]


def _discordant(task: str) -> dict[str, Any]:
    shown = [
        {
            "item": f"{task}-{n}",
            "kind": "two-step",
            "reference": f"{n + n}" if n < 4 else "7",
            "quantized": "9" if n < 4 else f"{n + n}",
            "reference_correct": n < 4,
            "quantized_correct": n >= 4,
        }
        for n in range(6)
    ]
    return {
        "lost": 4,
        "gained": 2,
        "against_baseline": {"lost": 23, "gained": 31},
        "shown": shown,
    }


def _layers(rng: random.Random, broken: bool) -> dict[str, Any]:
    names = modules()
    suspect = names.index(BROKEN) if broken else None
    stored, seen, local, local_stored = [], [], [], []
    for index, name in enumerate(names):
        base = round(26 - 0.12 * index + rng.uniform(-1.2, 1.2), 2)
        own = None if "layernorm" in name else round(24.5 + rng.uniform(-1.5, 1.5), 2)
        after = suspect is not None and index >= suspect
        stored.append(base)
        seen.append(round(base - (2.4 * math.exp(-(index - suspect) / 9) if after else 0), 2))
        local_stored.append(own)
        local.append(round(own - 5.6, 2) if own is not None and index == suspect else own)
    return {
        "sqnr": seen,
        "local": local,
        "baseline": stored,
        "local_baseline": local_stored,
        "suspect": suspect,
    }


def _comparison(places: dict[str, int]) -> dict[str, Any]:
    return {
        "base": "main",
        "both": len(places),
        "changed": [
            {
                "cell": places["llada-embedded/gptq/W3A16-g64/math"],
                "before": "equivalent",
                "status": "degraded",
                "lost": 31,
                "gained": 6,
                "p_value": 0.00002,
                "worse": True,
                "drops": [13.6, 21.9],
                "where": BROKEN,
            },
            {
                "cell": places["dream-embedded/gptq/W4A16-g64/general"],
                "before": "inconclusive",
                "status": "equivalent",
                "lost": 0,
                "gained": 0,
                "p_value": None,
                "worse": False,
                "drops": [None, -0.2],
                "where": None,
            },
        ],
        "new": [],
        "gone": ["dream-embedded/awq/W4A16-g64/math"],
        "notes": ["torch is 2.13.0+cpu here and 2.12.0+cpu in the base's run"],
    }


def _outliers() -> list[dict[str, Any]]:
    return [
        {
            "model": "llada-embedded",
            "module": BROKEN,
            "kind": "massive",
            "rotated_by": rotated_by,
            "maximum": maximum,
            "max_over_rms": ratio,
            "tokens": 96,
            "channels": 256,
            "png": png(24, 16, shade),
            "alt": f"Surface of magnitudes, at most {maximum:g}, {ratio:g} times the mean square's root.",
        }
        for rotated_by, maximum, ratio, shade in ((None, 42.5, 31.0, 90), ("quarot", 4.1, 4.2, 200))
    ]


def png(width: int, height: int, shade: int) -> str:
    """A flat grey picture as a data URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes([shade]) * width) * height)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _roofline() -> dict[str, Any]:
    points = [
        ("packed W4A16, 512 rows", "packed", "512 x 4096 x 4096", 180.0, 61.0, 0.57, False),
        ("dense fp32, 512 rows", "dense", "512 x 4096 x 4096", 95.0, 88.0, 0.82, True),
        ("Hadamard, 12288", "hadamard", "512 x 12288", 1.6, 19.0, 0.66, False),
        ("W8A8, 512 rows", "integer", "512 x 4096 x 4096", 210.0, 130.0, 0.61, False),
    ]
    names = ("name", "kind", "shape", "intensity", "performance", "share", "rival")
    return {
        "machine": "AMD EPYC, 1 core",
        "roofs": {"GB/s": 18.0, "peaks": {"fp32": 107.0, "int8": 214.0}},
        "points": [dict(zip(names, point, strict=True)) for point in points],
    }
