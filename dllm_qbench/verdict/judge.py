"""``judge(record, baseline)``: does the cell still behave as its baseline says? No torch.

What is looked at, in this order of weight:

0. what the structural audits found before anything was measured;
1. the per-module SQNR against the stored profiles, in both directions;
2. fidelity: logits, likelihood of the true tokens, finished sequences, paired with the stored ones;
3. the drop against full precision, paired item by item, against the cell's band;
4. the answers against the baseline's own quantized answers, by a one-sided McNemar test;
5. full precision's answers against the stored ones: a change there is not the quantizer's.

Tests share the error rate of the run that they are part of (``matrix.ALPHA_RUN``); what a test forgives
is measured noise (``dllm_qbench.noise``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dllm_qbench.baselines import (
    Baselines,
    CellBaseline,
    baseline_path,
    read_baselines,
    update_command,
)
from dllm_qbench.bitsets import item_checks
from dllm_qbench.errors import BaselineError
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.evidence import ITEM_TESTS, TESTS_A_CELL, Shift, gather
from dllm_qbench.verdict.findings import (
    SEVERITY,
    Finding,
    Status,
    judge_answers,
    judge_audits,
    judge_drop,
    judge_fidelity,
    judge_layers,
    judge_origin,
    judge_reference,
)
from dllm_qbench.verdict.layers import LayerComparison
from dllm_qbench.verdict.localise import Localisation
from dllm_qbench.verdict.matrix import cell_alpha
from dllm_qbench.verdict.sequential import Watch
from dllm_qbench.verdict.statistics import (
    BOUND,
    Pairs,
    drop_interval,
    items_needed,
    minimum_detectable_effect,
    relative_drop,
)

SEQUENTIAL: Final = "answers, sequentially"
"""Among a verdict's p-values: the test that takes McNemar's place where a cell may stop early."""
FAILING: Final[frozenset[Status]] = frozenset({"improved", "degraded", "infra"})


@dataclass(frozen=True)
class Verdict:
    """What became of one cell. Drops are relative, in percent; ``interval`` is the 90 % interval.

    Attributes:
        status: ``equivalent`` as the band says; ``changed`` inside the band but other answers,
            recipe or checkpoint than stored; ``inconclusive`` too few items to tell; ``improved``
            better than the band allows (it is stale); ``degraded``; ``infra`` could not be measured.
        findings: why, the worst first.
        common: items that could be compared with the baseline's own answers.
        lost, gained: right in the baseline and wrong now, and the reverse (quantized answers).
        p_value: of ``lost`` against ``gained``, one-sided McNemar.
        margin: net loss in items that the noise floor allows.
        p_values: of every test that was made, by name; ``alpha`` is what each is held against.
        layers, local: modules whose accumulated SQNR, or whose own, left the stored one.
        place: where the error comes from; ``symptom``: what kind it looks like, if it was looked at.
        shifts: the fidelity metrics, stored and seen.
        reference_lost, reference_gained: the same for full precision.
        minimum_effect: percent from the band's nearest limit that this many items settle (power 0.8):
            at 95 % for a drop inside the band, at ``alpha`` for one outside.
        items_needed: items that would settle it; only when ``inconclusive``.
        kinds: per kind of item: its name, items, right in full precision, right when quantized.
    """

    status: Status
    cell: str
    model: str
    band: Band
    items: int
    baseline_items: int
    common: int
    reference_accuracy: float
    quantized_accuracy: float
    drop: float | None
    interval: tuple[float, float] | None
    lost: int
    gained: int
    p_value: float
    reference_lost: int
    reference_gained: int
    findings: tuple[Finding, ...]
    margin: float = 0.0
    p_values: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 1.0
    local: LayerComparison | None = None
    place: Localisation | None = None
    shifts: tuple[Shift, ...] = ()
    symptom: str | None = None
    minimum_effect: float | None = None
    items_needed: int | None = None
    layers: LayerComparison | None = None
    kinds: tuple[tuple[str, int, int, int], ...] = ()
    baseline: str = "baseline"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The findings' texts, the worst first."""
        return tuple(finding.text for finding in self.findings)

    def fails(self, strict: bool = False) -> bool:
        """Whether a run has to fail; ``strict`` accepts nothing but ``equivalent``."""
        return self.status != "equivalent" if strict else self.status in FAILING

    @property
    def message(self) -> str:
        """What was expected, what was seen, on how many items, where: fits one screen."""
        from dllm_qbench.verdict.message import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for record files."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data | {"band": self.band.to_dict()}


def judge(
    record: Record,
    baseline: CellBaseline | Baselines | str | Path,
    tests_in_run: int = TESTS_A_CELL,
    watch: Watch | None = None,
) -> Verdict:
    """Judge a record against a cell's baseline, a model's baselines, or a file or folder of them.

    ``tests_in_run`` is how many tests the whole run makes: each gets an equal share of the run's error
    rate. By default this cell is the run. ``watch`` is the sequential evidence of a cell that could have
    stopped early: it takes the place of the tests that need a fixed number of items.

    Raises ``BaselineError`` when the baseline cannot be read, lacks the cell, or was measured on
    other items, so that a comparison would mean nothing.
    """
    stored = _find(record, baseline)
    common = _common_items(record, stored)
    alpha = cell_alpha(tests_in_run)
    found = gather(record, stored, common)
    pairs = Pairs.count(record.reference_correct, record.quantized_correct)
    measurable = pairs.before > 0
    drop = relative_drop(pairs) if measurable else None
    interval = drop_interval(pairs) if measurable else None

    findings: list[Finding] = judge_audits(record)
    findings += judge_layers(found, stored)
    items_alpha = alpha if watch is None else 0.0
    findings += judge_fidelity(found, stored, alpha, items_alpha)
    p_values = dict(found.p_values)
    if watch is not None:
        # A fixed test after looking 50 items at a time would be wrong more often than it says.
        p_values = {name: p for name, p in p_values.items() if name not in ITEM_TESTS}
        p_values[SEQUENTIAL] = watch.p_value
    if watch is not None and watch.settled is not None:
        findings.append(Finding(watch.settled.status, watch.settled.text))
    elif drop is None or interval is None:
        text = f"full precision answers none of {record.items} items correctly: no drop to measure"
        findings.append(Finding("infra", text))
    else:
        findings.append(judge_drop(stored.band, interval, found.p_values, items_alpha))
    findings += judge_answers(found, items_alpha)
    findings += judge_reference(found, alpha)
    findings += judge_origin(record, stored)
    findings.sort(key=lambda finding: -SEVERITY.index(finding.status))
    status = findings[0].status
    effect = needed = None
    if drop is not None and interval is not None:
        limit, level = _nearest_limit(stored.band, drop, alpha)
        effect = minimum_detectable_effect(interval, level)
        if status == "inconclusive":
            needed = items_needed(record.items, interval, drop, limit, level)
    return Verdict(
        status=status,
        cell=record.cell,
        model=record.model,
        band=stored.band,
        items=record.items,
        baseline_items=stored.items,
        common=common,
        reference_accuracy=record.reference_accuracy,
        quantized_accuracy=record.quantized_accuracy,
        drop=drop,
        interval=interval,
        lost=found.answers.lost,
        gained=found.answers.gained,
        p_value=found.p_values["answers"],
        margin=found.margin,
        p_values=p_values,
        alpha=alpha,
        local=found.local,
        place=found.place,
        shifts=found.shifts,
        reference_lost=found.reference.lost,
        reference_gained=found.reference.gained,
        findings=tuple(findings),
        minimum_effect=effect,
        items_needed=needed,
        layers=found.layer,
        kinds=_kinds(record),
        baseline=stored.source,
    )


def _find(record: Record, baseline: CellBaseline | Baselines | str | Path) -> CellBaseline:
    if isinstance(baseline, str | Path):
        path = Path(baseline)
        baseline = read_baselines(baseline_path(path, record.model) if path.is_dir() else path)
    stored = baseline.cell(record.cell) if isinstance(baseline, Baselines) else baseline
    if stored.model != record.model:
        raise BaselineError(
            f"{stored.source}: belongs to model {stored.model!r}, the record to {record.model!r}"
        )
    if stored.cell != record.cell:
        raise BaselineError(
            f"{stored.source}: is cell {stored.cell!r}, the record is {record.cell!r}"
        )
    return stored


def _common_items(record: Record, stored: CellBaseline) -> int:
    """Number of leading items that both have; they must be the same items."""
    again = f"record it again with: {update_command(record.model, record.cell)}"
    if record.seed != stored.items_seed:
        raise BaselineError(
            f"{stored.source}.items_seed is {stored.items_seed}, the record's items were drawn with "
            f"seed {record.seed}: other items cannot be compared; evaluate with "
            f"seed={stored.items_seed}, or {again}"
        )
    common = min(record.items, stored.items)
    checks = item_checks(record.item_ids[:common])
    for index, (seen, wanted) in enumerate(zip(checks, stored.item_checks[:common], strict=True)):
        if seen != wanted:
            raise BaselineError(
                f"{stored.source}.item_checks: item {index + 1} of {common} is another one than the "
                f"record's {record.item_ids[index]!r}: the items changed since the baseline was "
                f"measured; {again}"
            )
    return common


def _nearest_limit(band: Band, drop: float, alpha: float) -> tuple[float, float]:
    """The band's limit that a drop is nearest to, and the level that settles on which side it lies."""
    limits = [limit for limit in (band.min_drop, band.max_drop) if limit is not None]
    above = band.max_drop is not None and drop > band.max_drop
    below = band.min_drop is not None and drop < band.min_drop
    return min(limits, key=lambda limit: abs(limit - drop)), alpha if above or below else BOUND


def _kinds(record: Record) -> tuple[tuple[str, int, int, int], ...]:
    """Per kind, in the order of first appearance."""
    table: dict[str, list[int]] = {}
    triples = zip(record.kinds, record.reference_correct, record.quantized_correct, strict=False)
    for kind, reference, quantized in triples:
        row = table.setdefault(kind, [0, 0, 0])
        row[0] += 1
        row[1] += reference
        row[2] += quantized
    return tuple((kind, row[0], row[1], row[2]) for kind, row in table.items())
