"""A verdict as a person reads it: expected, seen, on how many items, where. One screen."""

from __future__ import annotations

import textwrap
from typing import Final

from dllm_qbench.verdict.judge import SEQUENTIAL, Verdict

WIDTH: Final = 100
_LABEL: Final = 11
_REASONS: Final = 6
_ACTIONS: Final = {
    "degraded": "fix the quantizer; if the change is wanted, review it and update the baseline",
    "improved": "check that everything is quantized; if it is, tighten the band and update",
    "infra": "this is not an accuracy: fix what kept the cell from being measured",
}


def render(verdict: Verdict) -> str:
    """At most about 24 lines of at most 100 columns."""
    lines = [f"{verdict.cell} on {verdict.model}: {verdict.status}"]

    def row(label: str, text: str) -> None:
        indent = " " * (_LABEL + 2)
        lines.extend(
            textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"  {label:<{_LABEL}}",
                subsequent_indent=indent,
                break_long_words=True,
                break_on_hyphens=False,
            )
        )

    row("expected", f"{verdict.band.sentence()} ({verdict.baseline})")
    row("seen", _seen(verdict))
    row("items", _items(verdict))
    if verdict.lost or verdict.gained:
        row("answers", _answers(verdict))
    if verdict.shifts:
        row("fidelity", "; ".join(map(str, verdict.shifts)))
    if verdict.place and verdict.place.first:
        row("where", f"first  {verdict.place.first}: {verdict.place.why}")
        for contributor in verdict.place.contributors:
            if contributor.module != verdict.place.first:
                row("", f"also   {contributor}")
    if verdict.symptom:
        row("looks like", verdict.symptom)
    if verdict.fails() and (kinds := _kinds(verdict)):
        row("kinds", kinds)
    if verdict.status == "inconclusive" and verdict.minimum_effect is not None:
        row("power", _power(verdict))
    shown = verdict.reasons[:_REASONS]
    for index, reason in enumerate(shown):
        row("because" if index == 0 else "", f"- {reason}")
    if len(verdict.reasons) > len(shown):
        row("", f"- {len(verdict.reasons) - len(shown)} more, in the record")
    if verdict.status in _ACTIONS:
        row("do", _ACTIONS[verdict.status])
    return "\n".join(lines)


def _seen(verdict: Verdict) -> str:
    accuracies = (
        f"full precision {100 * verdict.reference_accuracy:.1f} %, "
        f"quantized {100 * verdict.quantized_accuracy:.1f} %"
    )
    if verdict.drop is None or verdict.interval is None:
        return accuracies
    low, high = verdict.interval
    return f"a drop of {verdict.drop:.1f} % [{low:.1f}, {high:.1f}] (90 % interval); {accuracies}"


def _answers(verdict: Verdict) -> str:
    flips = (
        f"{verdict.lost} right in the baseline are wrong now, {verdict.gained} wrong are right; p ="
    )
    # A cell that may stop early is read more than once: McNemar's p-value would not hold there.
    sequential = verdict.p_values.get(SEQUENTIAL)
    if sequential is not None:
        return f"{flips} {sequential:.2g} that it is no worse (sequential test, holds at any item)"
    forgiven = f", {verdict.margin:.3g} forgiven as noise" if verdict.margin else ""
    return f"{flips} {verdict.p_value:.2g} that it is no worse (one-sided McNemar{forgiven})"


def _items(verdict: Verdict) -> str:
    text = f"{verdict.items}, the same items and masks for both"
    if verdict.common != verdict.items or verdict.common != verdict.baseline_items:
        text += (
            f"; the baseline has {verdict.baseline_items}, its answers are compared on the first "
            f"{verdict.common}"
        )
    return text


def _kinds(verdict: Verdict) -> str:
    """The three kinds of item that lost the largest share of what full precision gets right."""
    measured = [kind for kind in verdict.kinds if kind[2]]
    measured.sort(key=lambda kind: (kind[3] - kind[2]) / kind[2])
    return ", ".join(
        f"{name} {100 * reference / items:.0f} -> {100 * quantized / items:.0f} % of {items}"
        for name, items, reference, quantized in measured[:3]
    )


def _power(verdict: Verdict) -> str:
    settled = f"{verdict.items} items settle {verdict.minimum_effect:.1f} points from the limit"
    if verdict.items_needed is None:
        return f"{settled}; the drop is at the limit as far as any number of items can tell"
    return f"{settled}; about {verdict.items_needed} items would settle the drop seen"
