"""A cell's record beside its baseline, in numbers: what moved, by how much, how surely. No torch.

Which noise floor counts is decided by how alike the two measurements are. Same recipe, same class of
machine: only the *platform*'s floor, since threads and batch sizes are all that may differ. Another
recipe (another calibration draw, another rotation seed) or another class of machine: the *draws*'.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.bitsets import item_checks
from dllm_qbench.noise import HEADROOM, NoiseFloor
from dllm_qbench.records import Record
from dllm_qbench.verdict.layers import LayerComparison, compare_layers
from dllm_qbench.verdict.localise import Localisation, locate
from dllm_qbench.verdict.statistics import Pairs, drop_p_value, mcnemar_worse, shift_p_value

TESTS_A_CELL: Final = 7
"""P-values that a cell can have: two ends of a band, answers, sequences, three fidelity metrics."""


def most_tests(cells: int) -> int:
    """At most how many tests a run of so many cells makes: each cell's, and a pooled one a cell at most."""
    return max(1, cells) * (TESTS_A_CELL + 1)


ITEM_TESTS: Final = (
    "drop above the band",
    "drop below the band",
    "answers",
    "finished sequences",
)
"""Those of a fixed number of items."""

# Metric in a record -> its name for people, unit, field of the noise floor, smallest margin.
METRICS: Final = {
    "logit_sqnr": ("logit SQNR", "dB", "logit_sqnr", 0.1),
    "nll_difference": ("NLL of the true tokens", "nats", "nll", 0.005),
    "log10_kl": ("log10 KL", "decades", "log10_kl", 0.02),
}


@dataclass(frozen=True)
class Shift:
    """A fidelity metric's mean over canvases, stored and seen, and the mean paired difference."""

    name: str
    unit: str
    stored: float
    seen: float
    margin: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.name} {self.stored:#.3g} -> {self.seen:#.3g} {self.unit}"


@dataclass(frozen=True)
class Evidence:
    """What a record says against its baseline.

    Attributes:
        alike: same recipe and same class of machine.
        floor: the noise floor that counts.
        answers: the baseline's quantized answers and today's on the common items; ``margin`` is the
            net loss in items that the floor allows.
        matches: the same for finished sequences that equal full precision's.
        reference: full precision's right answers, before and today.
        reference_texts: of ``reference_checked`` answers of full precision how many are others now.
        score_shift: largest change of full precision's log-likelihoods, nats.
        shifts: fidelity metrics.
        layer, local: modules outside their tolerance; where both are empty, ``place`` names nothing.
        p_values: by test; every test that could be made.
    """

    alike: bool
    floor: NoiseFloor
    common: int
    answers: Pairs
    margin: float
    matches: Pairs
    reference: Pairs
    reference_texts: int
    reference_checked: int
    score_shift: float
    shifts: tuple[Shift, ...]
    layer: LayerComparison | None
    local: LayerComparison | None
    place: Localisation
    p_values: Mapping[str, float]


def gather(record: Record, stored: CellBaseline, common: int) -> Evidence:
    """Compare a record with its baseline on the ``common`` first items of both."""
    alike = are_alike(record.recipe_hash, record.provenance, stored)
    floor = stored.platform if alike else stored.draws
    answers = Pairs.count(stored.quantized_correct[:common], record.quantized_correct[:common])
    seen_match = tuple(record.trajectory.get("sequence_match", ()))
    size = min(len(seen_match), len(stored.sequence_match))
    matches = Pairs.count(stored.sequence_match[:size], seen_match[:size])
    shifts = tuple(_shifts(record, stored, floor))
    checks = item_checks(record.reference_answers[: len(stored.reference_checks)])
    layer = compare_layers(stored.layer_sqnr, record.layer_sqnr, floor.tolerance_db("layer_sqnr"))
    local = compare_layers(stored.local_sqnr, record.local_sqnr, floor.tolerance_db("local_sqnr"))
    return Evidence(
        alike=alike,
        floor=floor,
        common=common,
        answers=answers,
        margin=floor.net_loss * common,
        matches=matches,
        reference=Pairs.count(stored.reference_correct[:common], record.reference_correct[:common]),
        reference_texts=sum(a != b for a, b in zip(checks, stored.reference_checks, strict=False)),
        reference_checked=min(len(checks), len(stored.reference_checks)),
        score_shift=_score_shift(record.fidelity, stored.fidelity),
        shifts=shifts,
        layer=layer,
        local=local,
        place=locate(
            stored.layer_sqnr,
            record.layer_sqnr,
            stored.local_sqnr,
            record.local_sqnr,
            floor.tolerance_db("layer_sqnr"),
            floor.tolerance_db("local_sqnr"),
        ),
        p_values={
            **_band_p_values(record, stored),
            "answers": mcnemar_worse(answers.lost, answers.gained, floor.net_loss * common),
            "finished sequences": mcnemar_worse(
                matches.lost, matches.gained, floor.match_loss * size
            ),
            **{shift.name: shift.p_value for shift in shifts},
        },
    )


def are_alike(recipe_hash: str, provenance: Mapping[str, Any], stored: CellBaseline) -> bool:
    """Whether a measurement has the baseline's recipe and class of machine."""
    same_machine = machine_class(provenance) == machine_class(stored.provenance)
    return recipe_hash == stored.recipe_hash and same_machine


def machine_class(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Kind of device, data type, torch's version, and whether weights are packed: what decides the
    bits of a matrix product.
    """
    device = str(provenance.get("device", ""))
    torch = str(provenance.get("versions", {}).get("torch", ""))
    seen = device, str(provenance.get("dtype", "")), torch.partition("+")[0]
    packed = provenance.get("execution", "fake") != "fake"
    return (*seen, "packed weights") if packed else seen


def _band_p_values(record: Record, stored: CellBaseline) -> dict[str, float]:
    pairs = Pairs.count(record.reference_correct, record.quantized_correct)
    if pairs.before == 0:
        return {}
    found = {}
    if stored.band.max_drop is not None:
        found["drop above the band"] = drop_p_value(pairs, stored.band.max_drop, "above")
    if stored.band.min_drop is not None:
        found["drop below the band"] = drop_p_value(pairs, stored.band.min_drop, "below")
    return found


def _shifts(record: Record, stored: CellBaseline, floor: NoiseFloor) -> Sequence[Shift]:
    found = []
    for metric, (name, unit, field, least) in METRICS.items():
        before, after = stored.fidelity.get(metric, []), record.fidelity.get(metric, [])
        if not before or len(before) != len(after):
            continue
        margin = max(least, HEADROOM * float(getattr(floor, field)))
        differences = [b - a for a, b in zip(before, after, strict=True)]
        found.append(
            Shift(
                name,
                unit,
                statistics.fmean(before),
                statistics.fmean(after),
                margin,
                shift_p_value(differences, margin),
            )
        )
    return found


def _score_shift(seen: Mapping[str, Any], stored: Mapping[str, Any]) -> float:
    pairs = zip(stored.get("reference_scores", ()), seen.get("reference_scores", ()), strict=False)
    return max((abs(a - b) for a, b in pairs), default=0.0)
