"""A run as a job's Markdown summary: what fails, what changed against another run, every cell, worst first.

The texts come from record files, which a pull request's own code may have written: names are shown as
code, everything else is escaped, and the whole never outgrows what GitHub takes. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dllm_qbench.outcomes import Outcome
from dllm_qbench.run_view import items_told, rank, whole_run
from dllm_qbench.summary_changes import Change, Changes, changes, origin
from dllm_qbench.summary_files import read_outcomes
from dllm_qbench.summary_markdown import NAME, Page, code, fenced, plain
from dllm_qbench.verdict.matrix import ALPHA_RUN

LIMIT: Final = 1024 * 1024
"""Bytes that GitHub takes for the summary of one step; a longer one is refused as a whole."""
_MESSAGES: Final = 10
_SHOWN: Final = ("dllm_qbench", "python", "torch", "transformers", "lm_eval")
_HEAD: Final = (
    "| cell | full precision | quantized | drop in % | band | verdict | where |",
    "|---|---:|---:|---:|---|---|---|",
)
_HEAD_OF_CHANGES: Final = (
    "| cell | model | verdict | wrong now | right now | p | drop in % | where |",
    "|---|---|---|---:|---:|---:|---:|---|",
)
_LEGEND: Final = (
    "Accuracies in %. Drops are relative to full precision; each end of an interval is a one-sided"
    " 95 % bound. *Where*: the first module that left its baseline."
)
_LEGEND_OF_CHANGES: Final = (
    "*Wrong now*, *right now*: answers of the quantized model that were the other way in the base's run,"
    " on the items that both have. p: one-sided McNemar, that it is no worse than the base, adjusted by"
    f" Holm over all cells that both runs have; **worse** where it is at most {ALPHA_RUN:g}. *Where*: the"
    " first module whose error is another one than in the base's run."
)


def report(records: str | Path, base: str | Path | None = None, limit: int = LIMIT) -> str:
    """The summary of a file that ``--qbench-records`` wrote, beside another one's if that is given.

    Raises ``QBenchError`` naming the file and the line that cannot be read.
    """
    outcomes = read_outcomes(records)
    if base is None:
        return render(outcomes, None, limit)
    return render(outcomes, changes(outcomes, read_outcomes(base)), limit)


def render(outcomes: Sequence[Outcome], compared: Changes | None = None, limit: int = LIMIT) -> str:
    """Markdown of at most ``limit`` bytes (4,096 at least): the sections that matter most come first.

    What does not fit is left out from the end of a section, and the section says how much that is.
    """
    page = Page(max(limit, 4096))
    ranked = sorted(outcomes, key=rank)
    failing = [outcome for outcome in ranked if outcome.fails]
    page.add(_title(ranked, failing))
    whole = [plain(finding.text, 600) for finding in whole_run(outcomes)]
    whole = [f"- **whole run**: {text}" for text in whole]
    page.rows([""], whole, "findings of the whole run", 0.1)
    if compared is not None:
        _changed(page, compared)
    _reasons(page, failing)
    models = _by_model(ranked)
    for index, (title, of_model) in enumerate(models):
        head = ["", f"### {title}", "", *_HEAD]
        share = 0.9 / (len(models) - index)
        page.rows(head, [_row(outcome) for outcome in of_model], "cells", share)
    if ranked:
        page.add("", _LEGEND)
    return page.text()


def _title(ranked: Sequence[Outcome], failing: Sequence[Outcome]) -> str:
    if not ranked:
        return "## Quantization fidelity: no cell was measured"
    count = f"{len(failing)} of {len(ranked)} cells fail" if failing else "no cell fails"
    seen = Counter(outcome.status for outcome in ranked)
    told = ", ".join(f"{number} {plain(status, 40)}" for status, number in seen.items())
    where = _versions([outcome.record for outcome in ranked if outcome.record])
    return f"## Quantization fidelity: {count}\n\n{len(ranked)} cells: {told}.{where}"


def _versions(records: Sequence[Mapping[str, Any]]) -> str:
    """What the records were measured with: one sentence for each set of versions."""
    sets: Counter[str] = Counter()
    for record in records:
        told = origin(record)
        shown = [f"{name} {told[name]}" for name in _SHOWN if name in told]
        sets[", ".join([*shown, *([told["device"]] if "device" in told else [])])] += 1
    return "".join(f" {plain(told, 200)}." for told, _ in sets.most_common(3) if told)


def _changed(page: Page, compared: Changes) -> None:
    """What is different from the base's run."""
    title = ["", "### Against the base", ""]
    if not compared.both:
        page.add(*title, "No cell is in both runs.")
    elif not compared.changed:
        same = f"The same verdicts, answers and errors of modules in all {compared.both} cells."
        page.add(*title, same)
    else:
        count = f"{len(compared.changed)} of {compared.both} cells that both runs have changed."
        rows = [_change(change) for change in compared.changed]
        page.rows([*title, count, "", *_HEAD_OF_CHANGES], rows, "changed cells", 0.4)
        page.add("", _LEGEND_OF_CHANGES)
    for note in compared.notes:
        page.add("", plain(note, 600))
    for word, names in (("New", compared.new), ("Gone", compared.gone)):
        listed = [f"- {code(cell)} on {code(model)}" for model, cell in names]
        page.rows(["", f"{word} cells ({len(names)}):", ""], listed, f"{word.lower()} cells", 0.1)


def _change(change: Change) -> str:
    now = change.status if change.status == change.before else f"{change.before} → {change.status}"
    p_value = "other items" if change.p_value is None else f"{change.p_value:.2g}"
    if change.worse:
        p_value = f"**{p_value} worse**"
    drops = " → ".join("-" if drop is None else f"{drop:.1f}" for drop in change.drops)
    told = [code(change.cell), code(change.model), plain(now, 60)]
    told += [str(change.lost), str(change.gained)] if change.p_value is not None else ["-", "-"]
    return f"| {' | '.join([*told, p_value, drops, code(change.where) if change.where else ''])} |"


def _by_model(ranked: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """The model with the worst cell first."""
    models: dict[str, list[Outcome]] = {}
    for outcome in ranked:
        models.setdefault(outcome.model, []).append(outcome)
    found = []
    for model, of_model in models.items():
        items = items_told(outcome.items for outcome in of_model)
        found.append((f"{code(model)}, {items} items a cell", of_model))
    return found


def _row(outcome: Outcome) -> str:
    record, verdict = outcome.record, outcome.verdict or {}
    shares = [
        f"{100 * record[name]:.1f}" if record else "-"
        for name in ("reference_accuracy", "quantized_accuracy")
    ]
    drop = "-"
    if verdict.get("drop") is not None:
        low, high = verdict["interval"]
        drop = f"{verdict['drop']:.1f} [{low:.1f}, {high:.1f}]"
    status = plain(outcome.status, 40)
    first = (verdict.get("place") or {}).get("first")
    cells = [code(outcome.cell), *shares, drop, plain(outcome.band or "-", 60)]
    cells += [f"**{status}**" if outcome.fails else status, code(first) if first else ""]
    return f"| {' | '.join(cells)} |"


def _reasons(page: Page, failing: Sequence[Outcome]) -> None:
    """Why the worst cells fail, folded away."""
    for outcome in failing[:_MESSAGES]:
        page.add(
            "",
            f"<details><summary>{plain(outcome.cell, NAME)} on {plain(outcome.model, NAME)}</summary>",
            "",
            *fenced(why(outcome), 6000),
            "",
            "</details>",
        )
    if len(failing) > _MESSAGES:
        page.add("", f"{len(failing) - _MESSAGES} more failing cells: see the records.")


def why(outcome: Outcome) -> str:
    """The error, or the place and the findings, one a line, the worst first."""
    verdict = outcome.verdict or {}
    place = verdict.get("place") or {}
    lines = [outcome.error] if outcome.error else []
    if place.get("first"):
        lines.append(f"where: {place['first']}: {place.get('why', '')}")
    if verdict.get("symptom"):
        lines.append(f"looks like: {verdict['symptom']}")
    lines += [f"- {finding['text']}" for finding in verdict.get("findings", ())]
    lines += [verdict["text"]] if verdict.get("text") else []
    return "\n".join(lines) or f"{outcome.status}: the records say no more"
