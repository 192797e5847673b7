"""A run of the full tier's size, made up: what a page of 300 cells weighs is measured on it. No torch.

Three models of 8B's shape, ten quantizers, the paper's ten tasks, 500 items a cell. Records have the
fields, lengths and magnitudes of measured ones; verdicts are the judge's own, on baselines made with
them. About one cell in 17 has a module that is 8 dB worse than its baseline, one in 41 was not measured.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final

from dllm_qbench.baselines import SCHEMA_VERSION, CellBaseline, baseline_path
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.jsonfiles import dump
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.tasks.paper_settings import SETTINGS
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.judge import judge
from tests.helpers.records import PROVENANCE, SHA

MODELS: Final = ("LLaDA-8B-Base", "LLaDA-8B-Instruct", "Dream-v0-Base-7B")
# Method, scheme, SQNR of a linear in dB, share of right answers that it loses.
QUANTIZERS: Final = (
    ("gptq", "W4A16-g128", 24.0, 0.01),
    ("gptq", "W3A16-g128", 17.0, 0.06),
    ("awq", "W4A16-g128", 22.0, 0.01),
    ("awq", "W3A16-g128", 15.0, 0.10),
    ("smoothquant", "W8A8", 30.0, 0.01),
    ("smoothquant", "W4A4", 6.0, 0.60),
    ("quarot", "W8A8", 35.0, 0.005),
    ("quarot", "W4A4", 16.0, 0.12),
    ("duquant", "W8A8", 35.0, 0.005),
    ("duquant", "W4A4", 17.0, 0.08),
)
TASKS: Final = tuple(SETTINGS)
_ACCURACY: Final = dict(
    zip(TASKS, (0.74, 0.74, 0.73, 0.46, 0.7, 0.66, 0.7, 0.32, 0.34, 0.4), strict=True)
)
ITEMS: Final = 500
# The ids of ``paper_data.write_paper_data(folder, ITEMS)``, so that a report finds prompts there.
_ID: Final = {
    "arc_easy": "ARC_EASY_{}",
    "arc_challenge": "ARC_CHALLENGE_{}",
    "mmlu": "abstract_algebra/{}",
    "minerva_math": "algebra/{}",
    "humaneval": "Made/{}",
}
_FIRST: Final = {"hellaswag": 10, "mbpp": 11}
_CANVASES: Final = 64
_TAPS: Final = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp",
    "mlp.down_proj",
)
_WORDS: Final = (
    "the of and a to in is it that for was on are with as they at be this from have or by one had not"
    " but what all were when we there can an your which their if do will each how them then she many some"
    " so these would other into has more two like him see time could no make than first been its who now"
).split()
_AUDITS: Final = (
    "coverage",
    "grid",
    "equivalence",
    "bidirectional",
    "calibration_contract",
    "finite",
    "input_untouched",
    "deterministic",
    "size",
)
_BROKEN_DB: Final = 8.0


def many_cells(count: int = 300, layers: int = 32, seed: int = 0) -> list[Outcome]:
    """So many cells of the matrix of 300, drawn from it in order; the same ones for a seed."""
    return [outcome for outcome, _ in _made(count, layers, seed)]


def many_baselines(folder: Path, count: int = 300, layers: int = 32, seed: int = 0) -> Path:
    """Write the baselines that :func:`many_cells` was judged by, a file a model; return the folder."""
    by_model: dict[str, dict[str, Any]] = {}
    for _, stored in _made(count, layers, seed):
        if stored is not None:
            by_model.setdefault(stored.model, {})[stored.cell] = stored.to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    for model, cells in by_model.items():
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": model,
            "checkpoint_sha256": SHA,
            "cells": dict(sorted(cells.items())),
        }
        baseline_path(folder, model).write_text(dump(document) + "\n", encoding="utf-8")
    return folder


def modules(layers: int = 32) -> list[str]:
    """The taps of a model in forward order."""
    names = [f"model.layers.{layer}.{tap}" for layer in range(layers) for tap in _TAPS]
    return [*names, "lm_head"]


def _made(count: int, layers: int, seed: int) -> Iterator[tuple[Outcome, CellBaseline | None]]:
    every = list(product(MODELS, QUANTIZERS, TASKS))
    if not 1 <= count <= len(every):
        raise ValueError(f"count is {count}, expected 1 to {len(every)}")
    chosen = sorted(random.Random(seed).sample(range(len(every)), count))
    for index, place in enumerate(chosen):
        model, (method, scheme, sqnr, loss), task = every[place]
        cell = f"{method}/{scheme}/{task}"
        if index % 41 == 11:
            error = NonFiniteError(f"{model}: the logits hold a NaN at denoising step 17")
            yield Outcome.of_error(cell, model, error, None), None
            continue
        rng = random.Random(f"{seed} {model} {cell}")
        before = _record(rng, model, (method, scheme, task), sqnr, loss, layers, seed)
        stored = CellBaseline.from_record(before)
        now = _again(rng, before)
        if index % 17 == 5:
            now = _broken(rng, now)
        verdict = judge(now, stored, most_tests(count))
        if verdict.fails() and verdict.place is not None and verdict.place.first:
            verdict = replace(verdict, symptom="the module's own error is another one")
        yield Outcome.of_verdict(now, verdict, verdict.fails()), stored


@cache
def _reference(model: str, task: str, seed: int) -> tuple[bool, ...]:
    rng = random.Random(f"{seed} {model} {task}")
    return tuple(rng.random() < _ACCURACY[task] for _ in range(ITEMS))


@cache
def _texts(task: str, seed: int) -> tuple[str, ...]:
    """Answers: a choice's few words, a solution's many, a program's lines."""
    rng = random.Random(f"{seed} {task}")
    settings = SETTINGS[task]
    words = (8, 25) if settings.code else (30, 90) if settings.gen_length else (2, 14)
    return tuple(" ".join(rng.choices(_WORDS, k=rng.randint(*words))) for _ in range(4 * ITEMS))


def _record(
    rng: random.Random,
    model: str,
    cell: tuple[str, str, str],
    sqnr: float,
    loss: float,
    layers: int,
    seed: int,
) -> Record:
    method, scheme, task = cell
    reference, texts = _reference(model, task, seed), _texts(task, seed)
    quantized = tuple(
        rng.random() >= loss if right else rng.random() < loss / 4 for right in reference
    )
    full = texts[:ITEMS]
    answers = tuple(
        text if a == b and rng.random() > loss else rng.choice(texts)
        for text, a, b in zip(full, reference, quantized, strict=True)
    )
    names = modules(layers)
    layer_sqnr = {
        name: 100.0 if n == 0 else max(2.0, sqnr - 4 - 6 * n / len(names) + rng.gauss(0, 1.5))
        for n, name in enumerate(names)
    }
    local_sqnr = {name: sqnr + rng.gauss(0, 2) for name in names if name.endswith("_proj")}
    steps = SETTINGS[task].steps or 16
    return Record(
        model=model,
        method=method,
        scheme=scheme,
        task=task,
        seed=0,
        item_ids=tuple(_ID.get(task, "{}").format(n + _FIRST.get(task, 0)) for n in range(ITEMS)),
        reference_correct=reference,
        quantized_correct=quantized,
        reference_answers=full,
        quantized_answers=answers,
        kinds=tuple(task for _ in range(ITEMS)),
        recipe=_recipe(method, scheme),
        recipe_hash=SHA,
        provenance=_PROVENANCE,
        layer_sqnr=layer_sqnr,
        local_sqnr=local_sqnr,
        fidelity=_fidelity(rng, sqnr),
        trajectory=_trajectory(rng, loss, steps, ITEMS if SETTINGS[task].gen_length else _CANVASES),
        audits=_AUDITS,
        seconds=rng.uniform(60, 4000),
    )


_PROVENANCE: Final[dict[str, Any]] = {
    **PROVENANCE,
    "commit": "cb4aafc7c0bb",
    "versions": {
        "dllm_qbench": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0+cu130",
        "transformers": "5.23.0",
        "lm_eval": "0.4.13",
        "datasets": "5.2.0",
        "numpy": "2.4.6",
    },
    "device": "cuda: NVIDIA H100 80GB HBM3",
    "dtype": "bfloat16",
    "model": {
        "repository": "made/up",
        "revision": SHA[:40],
        "profile": "paper",
        "stands_in": False,
    },
    "task": {"shots": 4, "metric": "exact_match", "filter": "none", "data_sha256": SHA},
}


def _recipe(method: str, scheme: str) -> dict[str, Any]:
    return {
        "method": method,
        "scheme": scheme,
        "symmetric": False,
        "parameters": {"block": 128, "damp": 0.01, "sequences": 128},
        "calibration": {
            "source": "C4, masked",
            "seed": 0,
            "sequences": 128,
            "length": 2048,
            "mask_ratios": [0.0, 0.25, 0.5, 0.75, 1.0],
            "sha256": SHA,
        },
    }


def _fidelity(rng: random.Random, sqnr: float) -> dict[str, Any]:
    kl = 10 ** (-sqnr / 8)
    return {
        "canvases": _CANVASES,
        "masked_tokens": 1216,
        "logit_sqnr": [round(rng.gauss(sqnr - 4, 1.5), 6) for _ in range(_CANVASES)],
        "nll_difference": [round(abs(rng.gauss(0, kl)), 6) for _ in range(_CANVASES)],
        "log10_kl": [round(rng.gauss(-sqnr / 8, 0.4), 6) for _ in range(_CANVASES)],
        "kl": {
            name: {
                "tokens": tokens,
                "q25": kl * scale / 10,
                "q50": kl * scale,
                "q75": 9 * kl * scale,
            }
            for name, tokens, scale in (("low", 200, 0.3), ("middle", 400, 1.0), ("high", 616, 2.0))
        },
        "agreement": round(1 - min(0.6, 2 * kl), 6),
        "reference_scores": [],
    }


def _trajectory(rng: random.Random, loss: float, steps: int, items: int) -> dict[str, Any]:
    first = [
        rng.randrange(steps) if rng.random() < min(1, 0.2 + loss) else -1 for _ in range(items)
    ]
    return {
        "items": items,
        "commit_flips": [
            round(min(1.0, (0.1 + loss) * (step + 1) / steps), 6) for step in range(steps)
        ],
        "first_divergence": first,
        "sequence_match": [step < 0 for step in first],
    }


def _again(rng: random.Random, before: Record) -> Record:
    """The same cell on another day: hundredths of a dB, no other answers."""
    return replace(
        before,
        layer_sqnr={name: db + rng.gauss(0, 0.01) for name, db in before.layer_sqnr.items()},
        local_sqnr={name: db + rng.gauss(0, 0.01) for name, db in before.local_sqnr.items()},
    )


def _broken(rng: random.Random, record: Record) -> Record:
    """A fault in one linear: its own error grows, what follows it suffers, answers are lost."""
    names: Sequence[str] = list(record.layer_sqnr)
    at = names.index(rng.choice([*record.local_sqnr]))
    layer_sqnr = {
        name: db if n < at else db - _BROKEN_DB * 0.97 ** (n - at)
        for n, (name, db) in enumerate(record.layer_sqnr.items())
    }
    local_sqnr = {**record.local_sqnr, names[at]: record.local_sqnr[names[at]] - _BROKEN_DB}
    quantized = tuple(right and rng.random() > 0.15 for right in record.quantized_correct)
    return replace(
        record, layer_sqnr=layer_sqnr, local_sqnr=local_sqnr, quantized_correct=quantized
    )
