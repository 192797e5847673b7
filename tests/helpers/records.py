"""Records and baselines with chosen counts, for tests of verdicts and reports. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def make_record(
    reference: Sequence[bool] | None = None,
    quantized: Sequence[bool] | None = None,
    *,
    counts: tuple[int, int, int, int] = (80, 10, 2, 8),
    cell: str = "gptq/W4A16-g64/math",
    model: str = "toy",
    seed: int = 0,
    layer_sqnr: Mapping[str, float] = PROFILE,
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
        recipe_hash=str(sorted(recipe.items())),
        provenance=provenance,
        layer_sqnr=layer_sqnr,
        seconds=1.5,
    )
