"""What can be found about a cell, one question a function. A verdict is the worst of its findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.layers import LayerComparison
from dllm_qbench.verdict.statistics import Pairs, mcnemar_worse

Status = Literal["equivalent", "changed", "inconclusive", "improved", "degraded", "infra"]
SEVERITY: Final[tuple[Status, ...]] = (
    "equivalent",
    "changed",
    "inconclusive",
    "improved",
    "degraded",
    "infra",
)
"""From harmless to worst; a verdict is the worst of what was found."""
ALPHA: Final = 0.001
"""Of each McNemar test. With 24 cells the chance of one false alarm in a run stays below 2.4 %."""

_AUDITS_SHOWN: Final = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and what it makes of the verdict at least."""

    status: Status
    text: str


def judge_audits(record: Record) -> list[Finding]:
    """What the audits found: a quantized model that is not built as it says is never equivalent."""
    shown = [Finding("degraded", f"audit {text}") for text in record.audit_findings[:_AUDITS_SHOWN]]
    more = len(record.audit_findings) - len(shown)
    if more:
        shown.append(Finding("degraded", f"audits: {more} more finding(s), in the record"))
    return shown


def judge_drop(band: Band, drop: float, interval: tuple[float, float]) -> Finding:
    """The drop's interval (percent, each end a one-sided 95 % bound) against the band.

    Near-lossless and collapse put the burden of proof on the cell: what is neither shown nor ruled
    out is ``inconclusive``. A graceful band only asks that the interval overlaps it.
    """
    low, high = interval
    at_least, at_most = band.min_drop, band.max_drop
    if at_most is not None and low > at_most:
        return Finding(
            "degraded", f"the drop is surely above {at_most:g} % (95 % bound {low:.1f} %)"
        )
    if at_least is not None and high < at_least:
        return Finding(
            "improved",
            f"the drop is surely below {at_least:g} % (95 % bound {high:.1f} %): better than the band, "
            "which is stale, or something is not quantized",
        )
    if band.kind == "near-lossless" and at_most is not None and high > at_most:
        return Finding("inconclusive", f"a drop above {at_most:g} % is neither shown nor ruled out")
    if band.kind == "collapse" and at_least is not None and low < at_least:
        return Finding(
            "inconclusive", f"a drop below {at_least:g} % is neither shown nor ruled out"
        )
    return Finding("equivalent", "the drop is what the band allows")


def judge_answers(pairs: Pairs, p_value: float, common: int) -> list[Finding]:
    """Quantized answers, the baseline's before and today's after, on the common items."""
    flips = f"{pairs.lost} answers became wrong and {pairs.gained} right on {common} common items"
    if p_value <= ALPHA:
        return [Finding("degraded", f"{flips}: worse than the baseline (p = {p_value:.1g})")]
    return [Finding("changed", flips)] if pairs.lost or pairs.gained else []


def judge_layers(
    layers: LayerComparison | None, stored: CellBaseline, record: Record
) -> list[Finding]:
    """Modules whose SQNR left the stored profile, in either direction."""
    if layers is None:
        if stored.layer_sqnr and not record.layer_sqnr:
            return [Finding("equivalent", "per-module SQNR was not measured this time")]
        return []
    if layers.first is None:
        return []
    text = (
        f"SQNR of {len(layers.shifts)} of {layers.modules} modules left its baseline by more than "
        f"{layers.tolerance_db:g} dB, first at {layers.first.module}"
    )
    return [Finding("degraded", text)]


def judge_reference(pairs: Pairs, common: int) -> list[Finding]:
    """Full precision's answers, the baseline's before and today's after, on the common items."""
    if not pairs.lost and not pairs.gained:
        return []
    text = (
        f"full precision itself changed: {pairs.lost} answers became wrong and {pairs.gained} right on "
        f"{common} common items; that is the model or the evaluation, not the quantizer"
    )
    worse = mcnemar_worse(pairs.lost, pairs.gained) <= ALPHA
    return [Finding("degraded" if worse else "changed", text)]


def judge_origin(record: Record, stored: CellBaseline) -> list[Finding]:
    """Another recipe or another checkpoint than the baseline was measured with."""
    findings = []
    if record.recipe_hash != stored.recipe_hash:
        changes = recipe_changes(stored.recipe, json.loads(json.dumps(dict(record.recipe))))
        shown = "; ".join(changes[:4]) + (f"; {len(changes) - 4} more" if len(changes) > 4 else "")
        findings.append(
            Finding(
                "changed", f"another recipe than the baseline's: {shown or 'only its hash differs'}"
            )
        )
    old = stored.provenance.get("checkpoint_sha256")
    new = record.provenance.get("checkpoint_sha256")
    if old and new and old != new:
        text = f"another checkpoint ({new[:12]}) than the baseline's ({old[:12]})"
        findings.append(Finding("changed", text))
    return findings


def recipe_changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two recipes (plain JSON values) differ: ``damp 0.01 -> 0.1``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            change
            for key in keys
            for change in recipe_changes(
                old.get(key, "absent"), new.get(key, "absent"), f"{path}.{key}".removeprefix(".")
            )
        ]
    return [] if old == new else [f"{path} {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
