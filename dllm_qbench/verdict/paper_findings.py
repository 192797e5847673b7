"""The paper's findings against a run's records: inequalities between drops of averages. No torch.

A finding *holds* when each of its claims is shown at one-sided 5 % (all must be, so that nothing adds
up), *does not hold* when one of them is refuted after Holm over every claim that the run could test (at
most 1 % for any false one), and else *cannot be told*.

A drop here is that of the average score over tasks, as in the paper's tables; ``averages.py`` says how
it is paired and how sure it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dllm_qbench.paper import Claim, Group, Paper, PaperFinding
from dllm_qbench.records import Record
from dllm_qbench.verdict.averages import (
    TaskAnswers,
    compare_drops,
    drop_of_tasks,
    drop_of_tasks_p_value,
    interval_of_tasks,
)
from dllm_qbench.verdict.matrix import ALPHA_RUN
from dllm_qbench.verdict.paper import Interval, answers_of, stored_paper
from dllm_qbench.verdict.statistics import BOUND, holm

Holding = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class ClaimResult:
    """What a run says about one claim.

    ``value`` and ``interval`` are the group's drop, or the difference of the two drops; ``shown`` and
    ``refuted`` the p-values of either answer. All are ``None`` where ``missing`` names cells that the
    run lacks, or full precision answers nothing.
    """

    claim: Claim
    missing: tuple[str, ...] = ()
    value: float | None = None
    interval: Interval | None = None
    shown: float | None = None
    refuted: float | None = None


@dataclass(frozen=True)
class FindingResult:
    """Whether a finding of the paper holds in a run, and what each claim's cells say."""

    finding: PaperFinding
    status: Holding
    text: str
    claims: tuple[ClaimResult, ...]


def judge_findings(
    records: Sequence[Record], paper: Paper | None = None, alpha: float = ALPHA_RUN
) -> tuple[FindingResult, ...]:
    """Hold a run's records against every finding; one record a cell and model.

    Each record is read by model, method, scheme and task; others than the paper's play no part.
    ``ValueError`` where a cell comes twice.
    """
    paper = stored_paper() if paper is None else paper
    by_cell: dict[tuple[str, str], Record] = {}
    for record in records:
        if (record.model, record.cell) in by_cell:
            raise ValueError(f"{record.cell} on {record.model} comes twice; expected one record")
        by_cell[record.model, record.cell] = record
    results = [[_test(claim, by_cell) for claim in f.claims] for f in paper.findings]
    tested = [r for of_finding in results for r in of_finding if r.refuted is not None]
    adjusted = holm([r.refuted for r in tested if r.refuted is not None])
    wrong = {id(r) for r, p in zip(tested, adjusted, strict=True) if p <= alpha}
    return tuple(
        _conclude(finding, of_finding, wrong)
        for finding, of_finding in zip(paper.findings, results, strict=True)
    )


def _test(claim: Claim, records: dict[tuple[str, str], Record]) -> ClaimResult:
    groups = [claim.drop_of] + ([claim.above_that_of] if claim.above_that_of else [])
    wanted = [(g.model, f"{g.quantized}/{task}") for g in groups for task in g.tasks]
    missing = tuple(f"{cell} on {model}" for model, cell in wanted if (model, cell) not in records)
    if missing:
        return ClaimResult(claim, missing)
    sides = [_answers(group, records) for group in groups]
    if not all(any(any(task.before) for task in side) for side in sides):
        return ClaimResult(claim)
    if claim.above_that_of is not None:
        found = compare_drops(sides[0], sides[1])
        return ClaimResult(claim, (), found.value, found.interval, found.p_above, found.p_below)
    drop, interval = drop_of_tasks(sides[0]), interval_of_tasks(sides[0])
    if claim.at_most is not None:
        below = drop_of_tasks_p_value(sides[0], claim.at_most, "below")
        above = drop_of_tasks_p_value(sides[0], claim.at_most, "above")
        return ClaimResult(claim, (), drop, interval, below, above)
    limit = claim.at_least or 0.0
    above = drop_of_tasks_p_value(sides[0], limit, "above")
    below = drop_of_tasks_p_value(sides[0], limit, "below")
    return ClaimResult(claim, (), drop, interval, above, below)


def _conclude(
    finding: PaperFinding, claims: Sequence[ClaimResult], wrong: set[int]
) -> FindingResult:
    refuted = [c for c in claims if id(c) in wrong]
    shown = [c for c in claims if c.shown is not None and c.shown <= BOUND]
    tested = [c for c in claims if c.shown is not None]
    count = f"{len(shown)} of {len(claims)} claims are shown"
    if refuted:
        first = min(refuted, key=lambda c: c.refuted or 0.0)
        text = f"{len(refuted)} of {len(claims)} claims are refuted, first {_seen(first)}"
        return FindingResult(finding, "does not hold", text, tuple(claims))
    if len(shown) == len(claims):
        return FindingResult(finding, "holds", count, tuple(claims))
    if len(tested) < len(claims):
        count += f", {len(claims) - len(tested)} could not be measured"
    open_claims = [c for c in tested if c not in shown]
    if open_claims:
        least = max(open_claims, key=lambda c: c.shown or 0.0)
        count += f"; least sure {_seen(least)}"
    return FindingResult(finding, "cannot be told", count, tuple(claims))


def _seen(result: ClaimResult) -> str:
    low, high = result.interval or (0.0, 0.0)
    what = "the difference is" if result.claim.above_that_of else "it is"
    return f"{result.claim}: {what} {result.value:.1f} [{low:.1f}, {high:.1f}]"


def _answers(group: Group, records: dict[tuple[str, str], Record]) -> list[TaskAnswers]:
    return [answers_of(records[group.model, f"{group.quantized}/{task}"]) for task in group.tasks]
