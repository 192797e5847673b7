"""Records and baselines with chosen counts, for tests of verdicts and reports. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

from dllm_qbench.records import Record

SHA = "0123456789abcdef" * 4
PROVENANCE: dict[str, Any] = {
    "source": "measured",
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc",
    "versions": {"torch": "2.13.0"},
    "device": "cpu: test",
    "dtype": "float32",
    "threads": 1,
    "seeds": {"items": 0},
    "checkpoint_sha256": SHA,
}
PROFILE = {"layers.0.q_proj": 20.0, "layers.0.down_proj": 15.0, "layers.1.q_proj": 18.0}
LOCAL = {"layers.0.q_proj": 21.0, "layers.0.down_proj": 17.0, "layers.1.q_proj": 22.0}
FIDELITY: dict[str, Any] = {
    "canvases": 8,
    "masked_tokens": 40,
    "logit_sqnr": [14.0, 15.0, 16.0, 13.0, 14.5, 15.5, 16.5, 13.5],
    "nll_difference": [0.02, 0.03, 0.01, 0.04, 0.02, 0.05, 0.03, 0.01],
    "log10_kl": [-2.0, -2.1, -1.9, -2.2, -1.8, -2.3, -2.0, -1.7],
    "kl": {"high": {"tokens": 40, "q25": 0.005, "q50": 0.011, "q75": 0.02}},
    "agreement": 0.925,
    "reference_scores": [-1.5, -2.25, -0.125, -3.0],
}
TRAJECTORY: dict[str, Any] = {
    "items": 8,
    "commit_flips": [0.0, 0.125, 0.25],
    "first_divergence": [-1, -1, 1, 2, -1, 2, -1, -1],
    "sequence_match": [True, True, False, True, True, False, True, True],
}


def make_record(
    reference: Sequence[bool] | None = None,
    quantized: Sequence[bool] | None = None,
    *,
    counts: tuple[int, int, int, int] = (80, 10, 2, 8),
    cell: str = "gptq/W4A16-g64/math",
    model: str = "toy",
    seed: int = 0,
    layer_sqnr: Mapping[str, float] = PROFILE,
    local_sqnr: Mapping[str, float] = LOCAL,
    fidelity: Mapping[str, Any] = FIDELITY,
    trajectory: Mapping[str, Any] = TRAJECTORY,
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] = PROVENANCE,
    ids: Sequence[str] | None = None,
) -> Record:
    """A record with these answers, or with ``counts`` = (kept, lost, gained, missed) of each."""
    if reference is None or quantized is None:
        kept, lost, gained, missed = counts
        reference = [True] * kept + [True] * lost + [False] * gained + [False] * missed
        quantized = [True] * kept + [False] * lost + [True] * gained + [False] * missed
    method, scheme, task = cell.split("/")
    recipe = {"method": method, "scheme": scheme} if recipe is None else recipe
    size = len(reference)
    return Record(
        model=model,
        method=method,
        scheme=scheme,
        task=task,
        seed=seed,
        item_ids=tuple(ids) if ids is not None else tuple(f"{task}-{n}" for n in range(size)),
        reference_correct=tuple(reference),
        quantized_correct=tuple(quantized),
        reference_answers=tuple("yes" if right else "no" for right in reference),
        quantized_answers=tuple("yes" if right else "no" for right in quantized),
        kinds=tuple("even" if n % 2 == 0 else "odd" for n in range(size)),
        recipe=recipe,
        recipe_hash=_hash(recipe),
        provenance=provenance,
        layer_sqnr=layer_sqnr,
        local_sqnr=local_sqnr,
        fidelity=fidelity,
        trajectory=trajectory,
        seconds=1.5,
    )


def spread(record: Record) -> Record:
    """The same answers with right and wrong ones mixed, as items come, and not in blocks."""
    # Steps by the golden ratio: any stretch of items has its share of each block.
    step = next(
        step for step in range(round(0.618 * record.items), 2**31) if gcd(step, record.items) == 1
    )
    order = [n * step % record.items for n in range(record.items)]
    names = ("reference_correct", "quantized_correct", "reference_answers", "quantized_answers")
    mixed = {name: tuple(getattr(record, name)[n] for n in order) for name in names}
    return replace(record, **mixed)


def _hash(recipe: Mapping[str, Any]) -> str:
    """What ``dllm_qbench.quant.quantize.recipe_hash`` gives, without torch."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
