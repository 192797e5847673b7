"""What a record says of the inside of a model: fidelity by mask ratio, trajectories by denoising step.

Everything may be missing: an own task or an own model need not measure it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.report.reading import count, listed, mapping, number, numbers

BINS: Final = {"low": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "high": (2 / 3, 1.0)}
"""As ``evaluation.fidelity.BINS``, which cannot be imported here: it stands beside torch."""
_LEAST_KL: Final = 1e-9  # nats, as in evaluation.fidelity: what float32 logits can tell apart
_QUARTILES: Final = ("q25", "q50", "q75")
_MEANS: Final = ("logit_sqnr", "nll_difference", "log10_kl")
_MOST_STEPS: Final = 10_000


def by_mask_ratio(fidelity: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """For each bin that has tokens: its middle, its ends, its tokens, and log10 of the quartiles of KL.

    KL is in nats and counted from 1e-9 on, so that its logarithm exists.
    """
    table = mapping(fidelity.get("kl", {}), f"{place}: fidelity.kl")
    if unknown := sorted({*table} - {*BINS}):
        raise QBenchError(
            f"{place}: fidelity.kl has a bin {unknown[0]!r}, expected {', '.join(BINS)}"
        )
    found = []
    for name, (low, high) in BINS.items():
        if name not in table:
            continue
        field = f"{place}: fidelity.kl.{name}"
        given = mapping(table[name], field)
        found.append(
            {
                "bin": name,
                "ratio": round((low + high) / 2, 4),
                "ends": [round(low, 4), round(high, 4)],
                "tokens": count(given.get("tokens"), f"{field}.tokens"),
                "log10_kl": [_log10(given.get(q), f"{field}.{q}") for q in _QUARTILES],
            }
        )
    return found


def _log10(value: object, field: str) -> float:
    found = number(value, field)
    if found < 0:
        raise QBenchError(f"{field} is {found:g}, expected nats, zero or more")
    return round(math.log10(found + _LEAST_KL), 4)


def fidelity_means(fidelity: Mapping[str, Any], place: str) -> dict[str, float]:
    """The counts, the means over canvases and the agreement: those that were measured."""
    found: dict[str, float] = {}
    for name in ("canvases", "masked_tokens"):
        if name in fidelity:
            found[name] = count(fidelity[name], f"{place}: fidelity.{name}")
    for name in _MEANS:
        if values := numbers(fidelity.get(name, ()), f"{place}: fidelity.{name}"):
            found[name] = round(math.fsum(values) / len(values), 4)
    if "agreement" in fidelity:
        found["agreement"] = round(_share(fidelity["agreement"], f"{place}: fidelity.agreement"), 4)
    return found


def trajectory(given: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """Where the two models part ways, by denoising step; ``None`` where it was not measured.

    ``flips``: share of commits that differ in each step. ``diverged``: share of items whose first
    difference is in that step or an earlier one. Dream's sampler may commit nothing in its first
    step, and a record then begins with the second: such a step counts as one without flips, as
    far as it shows (an item that parts ways in a step beyond the record's last one).
    """
    if not given:
        return None
    place = f"{place}: trajectory"
    flips = [
        _share(value, f"{place}.commit_flips[{n}]")
        for n, value in enumerate(listed(given.get("commit_flips", ()), f"{place}.commit_flips"))
    ]
    first = _steps(given.get("first_divergence", ()), f"{place}.first_divergence")
    match = listed(given.get("sequence_match", ()), f"{place}.sequence_match")
    for n, value in enumerate(match):
        if type(value) is not bool:
            raise QBenchError(
                f"{place}.sequence_match[{n}] is {value!r:.60}, expected true or false"
            )
    steps = max(len(flips), max(first, default=-1) + 1)
    flips = [0.0] * (steps - len(flips)) + flips
    return {
        "items": max(len(first), len(match)),
        "flips": [round(share, 4) for share in flips],
        "diverged": _diverged(first, steps),
        "sequence_match": round(sum(match) / len(match), 4) if match else None,
    }


def _steps(value: object, field: str) -> list[int]:
    """Steps from 0 on, -1 for an item that never parts ways."""
    found = list(listed(value, field))
    for n, step in enumerate(found):
        if type(step) is not int or not -1 <= step < _MOST_STEPS:
            raise QBenchError(
                f"{field}[{n}] is {step!r:.60}, expected a step below {_MOST_STEPS:,}, or -1"
            )
    return found


def _diverged(first: Sequence[int], steps: int) -> list[float]:
    at = [0] * steps
    for step in first:
        if step >= 0:
            at[step] += 1
    total, found = 0, []
    for number_of_items in at:
        total += number_of_items
        found.append(round(total / len(first), 4) if first else 0.0)
    return found


def _share(value: object, field: str) -> float:
    found = number(value, field)
    if not 0 <= found <= 1:
        raise QBenchError(f"{field} is {found:g}, expected a share from 0 to 1")
    return found
