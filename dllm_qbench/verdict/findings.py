"""What can be found about a cell, one question a function. A verdict is the worst of its findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.noise import HEADROOM
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.evidence import Evidence, machine_class
from dllm_qbench.verdict.statistics import mcnemar_worse

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
REFERENCE_SHARE: Final = 0.005
"""Share of full precision's answers that may differ. None of 500 did over 1,600 repeated cells: threads,
batch sizes, CPU against CUDA, torch 2.13 against 2.11."""
SCORE_NATS: Final = 0.01
"""Largest change of a log-likelihood that counts as none; an estimator's fault moves it by whole nats."""
_AUDITS_SHOWN: Final = 3


Check = Literal["audit", "layers", "fidelity", "accuracy", "reference", "origin"]
"""What found it, the cheapest first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, what it makes of the verdict at least, and which check found it."""

    status: Status
    text: str
    check: Check = "accuracy"


def judge_audits(record: Record) -> list[Finding]:
    """What the audits found: a quantized model that is not built as it says is never equivalent."""
    shown = [
        Finding("degraded", f"audit {text}", "audit")
        for text in record.audit_findings[:_AUDITS_SHOWN]
    ]
    more = len(record.audit_findings) - len(shown)
    if more:
        shown.append(Finding("degraded", f"audits: {more} more finding(s), in the record", "audit"))
    return shown


def judge_drop(
    band: Band, interval: tuple[float, float], p_values: Mapping[str, float], alpha: float
) -> Finding:
    """The drop (percent; each end of the interval a one-sided 95 % bound) against the band.

    Outside it is what holds at ``alpha``, the test's share of the run's error rate. Near-lossless and
    collapse put the burden of proof on the cell: what is neither shown nor ruled out is
    ``inconclusive``, and so is, for every band, what shows at 95 % only.
    """
    low, high = interval
    at_least, at_most = band.min_drop, band.max_drop
    if at_most is not None and p_values["drop above the band"] <= alpha:
        return Finding(
            "degraded",
            f"the drop is surely above {at_most:g} % (p = {p_values['drop above the band']:.1g})",
        )
    if at_least is not None and p_values["drop below the band"] <= alpha:
        return Finding(
            "improved",
            f"the drop is surely below {at_least:g} % (p = {p_values['drop below the band']:.1g}): better "
            "than the band, which is stale, or something is not quantized",
        )
    if at_most is not None and (low > at_most or (band.kind == "near-lossless" and high > at_most)):
        return Finding("inconclusive", f"a drop above {at_most:g} % is neither shown nor ruled out")
    if at_least is not None and (high < at_least or (band.kind == "collapse" and low < at_least)):
        return Finding(
            "inconclusive", f"a drop below {at_least:g} % is neither shown nor ruled out"
        )
    return Finding("equivalent", "the drop is what the band allows")


def judge_answers(found: Evidence, alpha: float) -> list[Finding]:
    """Quantized answers, the baseline's before and today's after, on the common items."""
    lost, gained = found.answers.lost, found.answers.gained
    flips = f"{lost} answers became wrong and {gained} right on {found.common} common items"
    p_value = found.p_values["answers"]
    if p_value <= alpha:
        return [Finding("degraded", f"{flips}: worse than the baseline (p = {p_value:.1g})")]
    if lost + gained > HEADROOM * found.floor.flips * found.common:
        return [Finding("changed", flips)]
    return [Finding("equivalent", f"{flips}, as noise does")] if lost + gained else []


def judge_fidelity(
    found: Evidence, stored: CellBaseline, alpha: float, items_alpha: float
) -> list[Finding]:
    """Paired shifts of the fidelity metrics, and finished sequences that no longer match.

    ``items_alpha`` is the level of what counts items: 0 where their number was not fixed beforehand.
    """
    if stored.fidelity and not found.shifts:
        return [Finding("equivalent", "fidelity was not measured this time", "fidelity")]
    findings = []
    for shift in found.shifts:
        moved = f"{shift} (paired over the canvases, more than {shift.margin:.2g} {shift.unit}"
        if shift.p_value <= alpha:
            text = f"{moved}; p = {shift.p_value:.1g})"
            findings.append(Finding("degraded", text, "fidelity"))
        elif abs(shift.seen - shift.stored) > shift.margin:
            findings.append(Finding("changed", f"{moved}; p = {shift.p_value:.1g})", "fidelity"))
    matches, p_value = found.matches, found.p_values["finished sequences"]
    text = (
        f"{matches.lost} finished sequences no longer match full precision's and {matches.gained} "
        f"now do, of {matches.items}"
    )
    if p_value <= items_alpha:
        findings.append(Finding("degraded", f"{text} (p = {p_value:.1g})", "fidelity"))
    return findings


def judge_layers(found: Evidence, stored: CellBaseline) -> list[Finding]:
    """Modules whose SQNR left the stored profiles, in either direction.

    Between calibration draws and rotation seeds the accumulated profile has heavy tails (some module moved
    by up to 5.4 dB, most by less than 0.2): there it is reported only, and the linears' own errors decide.
    """
    if stored.layer_sqnr and found.layer is None:
        return [Finding("equivalent", "per-module SQNR was not measured this time", "layers")]
    findings = []
    for compared, which in ((found.local, "own "), (found.layer, "")):
        if compared is not None and compared.first is not None:
            text = (
                f"{which}SQNR of {len(compared.shifts)} of {compared.modules} modules left its baseline "
                f"by more than {compared.tolerance_db:.2g} dB, first at {compared.first.module}"
            )
            own = compared is found.local
            status: Status = "degraded" if own or found.alike else "changed"
            findings.append(Finding(status, text, "layers"))
    return findings


def judge_reference(found: Evidence, alpha: float) -> list[Finding]:
    """Full precision beside the stored one: a change there is the model's or the evaluation's."""
    pairs, seen = found.reference, []
    if pairs.lost or pairs.gained:
        seen.append(
            f"{pairs.lost} answers became wrong and {pairs.gained} right on {found.common} common items"
        )
    if found.reference_texts:
        seen.append(f"{found.reference_texts} of {found.reference_checked} answers read otherwise")
    if found.score_shift > SCORE_NATS:
        seen.append(f"a log-likelihood moved by {found.score_shift:.2g} nats")
    if not seen:
        return []
    text = (
        f"full precision itself changed: {'; '.join(seen)}; that is the model or the evaluation, not "
        "the quantizer"
    )
    flips = (pairs.lost + pairs.gained) / max(found.common, 1)
    grave = (
        mcnemar_worse(pairs.lost, pairs.gained) <= alpha
        or flips > REFERENCE_SHARE + HEADROOM * found.floor.reference_flips
        or found.reference_texts > REFERENCE_SHARE * found.reference_checked
        or found.score_shift > SCORE_NATS
    )
    return [Finding("degraded" if grave else "changed", text, "reference")]


def judge_origin(record: Record, stored: CellBaseline) -> list[Finding]:
    """Another recipe or another checkpoint than the baseline was measured with."""
    findings = []
    if record.recipe_hash != stored.recipe_hash:
        changes = recipe_changes(stored.recipe, json.loads(json.dumps(dict(record.recipe))))
        shown = "; ".join(changes[:4]) + (f"; {len(changes) - 4} more" if len(changes) > 4 else "")
        findings.append(
            Finding(
                "changed",
                f"another recipe than the baseline's: {shown or 'only its hash differs'}",
                "origin",
            )
        )
    old = stored.provenance.get("checkpoint_sha256")
    new = record.provenance.get("checkpoint_sha256")
    if old and new and old != new:
        text = f"another checkpoint ({new[:12]}) than the baseline's ({old[:12]})"
        findings.append(Finding("changed", text, "origin"))
    here, there = machine_class(record.provenance), machine_class(stored.provenance)
    if here != there:
        text = (
            f"measured on another class of machine ({', '.join(here)}) than the baseline "
            f"({', '.join(there)}): judged by the wider noise floor"
        )
        findings.append(Finding("equivalent", text, "origin"))
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
