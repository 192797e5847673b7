"""What is different between two runs of the same cells: verdicts, answers, errors of modules. No torch.

Both runs' records are taken as they are: nothing is judged again, and no baseline is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dllm_qbench.noise import LEAST_DB
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.run_view import severity
from dllm_qbench.verdict.localise import locate
from dllm_qbench.verdict.matrix import ALPHA_RUN
from dllm_qbench.verdict.statistics import Pairs, holm, mcnemar_worse

Name = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """One cell that both runs have, now beside the base's.

    Attributes:
        before, status: the verdicts.
        lost, gained: right in the base's run and wrong now, and the reverse, on the common items.
        other: answers that are another text now, right or wrong.
        p_value: one-sided McNemar that it is no worse, adjusted by Holm over all cells of both runs;
            ``None`` where the two did not answer the same items.
        drops: before and now, in percent; ``None`` where there is none.
        where: the first module whose SQNR is more than ``LEAST_DB`` away from the base's.
        full_precision: answers of full precision that are right in one run and wrong in the other.
    """

    model: str
    cell: str
    before: str
    status: str
    fails: bool
    lost: int = 0
    gained: int = 0
    other: int = 0
    p_value: float | None = None
    drops: tuple[float | None, float | None] = (None, None)
    where: str | None = None
    full_precision: int = 0

    @property
    def any(self) -> bool:
        """Whether there is anything to tell."""
        return self.before != self.status or bool(
            self.other or self.lost or self.gained or self.where
        )

    @property
    def worse(self) -> bool:
        """Whether its answers are surely worse than the base's, at the error rate of a whole run."""
        return self.p_value is not None and self.p_value <= ALPHA_RUN

    @property
    def _order(self) -> tuple[bool, bool, int, float, int, str]:
        return (
            not (self.fails and self.before != self.status),
            not self.worse,
            -severity(self.status),
            1.0 if self.p_value is None else self.p_value,
            self.gained - self.lost,
            self.cell,
        )


@dataclass(frozen=True)
class Changes:
    """Two runs side by side: ``both`` counts the cells of both, ``changed`` is the worst first."""

    both: int
    changed: tuple[Change, ...]
    new: tuple[Name, ...]
    gone: tuple[Name, ...]
    notes: tuple[str, ...] = ()


def changes(now: Sequence[Outcome], base: Sequence[Outcome]) -> Changes:
    """Compare by model and cell; of a cell that occurs more than once in a run the last counts."""
    ours = {(outcome.model, outcome.cell): outcome for outcome in now}
    theirs = {(outcome.model, outcome.cell): outcome for outcome in base}
    both = sorted(ours.keys() & theirs.keys())
    found = [_change(ours[name], theirs[name]) for name in both]
    paired = [index for index, change in enumerate(found) if change.p_value is not None]
    adjusted = holm([found[index].p_value or 0.0 for index in paired])
    for index, p_value in zip(paired, adjusted, strict=True):
        found[index] = replace(found[index], p_value=p_value)
    changed = sorted((change for change in found if change.any), key=lambda change: change._order)
    return Changes(
        len(both),
        tuple(changed),
        tuple(sorted(ours.keys() - theirs.keys())),
        tuple(sorted(theirs.keys() - ours.keys())),
        (*_versions(ours, theirs, both), *_full_precision(found)),
    )


def _change(now: Outcome, base: Outcome) -> Change:
    change = Change(now.model, now.cell, base.status, now.status, now.fails)
    change = replace(change, drops=(_drop(base), _drop(now)))
    if now.record is None or base.record is None:
        return change
    ours, theirs = Record.from_dict(now.record), Record.from_dict(base.record)
    place = locate(theirs.layer_sqnr, ours.layer_sqnr, theirs.local_sqnr, ours.local_sqnr, LEAST_DB)
    change = replace(change, where=place.first)
    size = min(ours.items, theirs.items)
    ours, theirs = ours.first(size), theirs.first(size)
    if (ours.seed, ours.item_ids) != (theirs.seed, theirs.item_ids):
        return change
    pairs = Pairs.count(theirs.quantized_correct, ours.quantized_correct)
    full = Pairs.count(theirs.reference_correct, ours.reference_correct)
    answers = zip(theirs.quantized_answers, ours.quantized_answers, strict=True)
    return replace(
        change,
        lost=pairs.lost,
        gained=pairs.gained,
        other=sum(one != two for one, two in answers),
        p_value=mcnemar_worse(pairs.lost, pairs.gained),
        full_precision=full.lost + full.gained,
    )


def _drop(outcome: Outcome) -> float | None:
    drop = (outcome.verdict or {}).get("drop")
    return None if drop is None else float(drop)


def _full_precision(found: Sequence[Change]) -> list[str]:
    moved = sorted(
        {(c.model, c.cell.rpartition("/")[2], c.full_precision) for c in found if c.full_precision}
    )
    if not moved:
        return []
    told = ", ".join(f"{task} on {model} ({count})" for model, task, count in moved[:12])
    return [
        f"Full precision's own answers changed, so it is not only the quantizer that did: {told}."
    ]


def _versions(
    now: Mapping[Name, Outcome], base: Mapping[Name, Outcome], both: Sequence[Name]
) -> list[str]:
    """Say where the two runs were made with other libraries or on another machine."""
    told: dict[str, None] = {}
    for name in both:
        ours, theirs = now[name].record, base[name].record
        if ours is None or theirs is None:
            continue
        one, two = origin(theirs), origin(ours)
        told |= dict.fromkeys(
            f"{key} {one.get(key, '-')} → {two.get(key, '-')}"
            for key in sorted(one.keys() | two.keys())
            if one.get(key) != two.get(key)
        )
    return [f"Measured differently: {', '.join([*told][:12])}."] if told else []


def origin(record: Mapping[str, object]) -> dict[str, str]:
    """Versions, device and data type, as far as a record says."""
    provenance = record["provenance"]
    if not isinstance(provenance, Mapping):
        return {}
    versions = provenance.get("versions")
    told = dict(versions) if isinstance(versions, Mapping) else {}
    told |= {name: provenance[name] for name in ("device", "dtype") if name in provenance}
    return {str(name): str(value) for name, value in told.items()}
