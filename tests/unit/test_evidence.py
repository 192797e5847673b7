"""A record beside its baseline in numbers: which noise floor counts, margins, p-values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.noise import HEADROOM, NoiseFloor
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.evidence import (
    ITEM_TESTS,
    METRICS,
    TESTS_A_CELL,
    Evidence,
    gather,
    machine_class,
)
from dllm_qbench.verdict.statistics import drop_p_value, mcnemar_worse
from tests.helpers.records import FIDELITY, LOCAL, PROFILE, PROVENANCE, TRAJECTORY, make_record

RECORD = make_record(counts=(810, 90, 0, 100))
BANDS = (
    Band("near-lossless", max_drop=2.5),
    Band("graceful", 5.0, 15.0),
    Band("collapse", min_drop=20.0),
)


def floor_of(value: float, what: str) -> NoiseFloor:
    names = (
        "flips net_loss reference_flips match_loss layer_sqnr local_sqnr logit_sqnr nll log10_kl"
    )
    return NoiseFloor(runs=3, what=what, **dict.fromkeys(names.split(), value))


NARROW, WIDE = floor_of(0.01, "threads"), floor_of(0.5, "draws")


def stored(record: Record = RECORD, band: Band = BANDS[1]) -> CellBaseline:
    cell = CellBaseline.from_record(record)
    return replace(cell, band=band, platform=NARROW, draws=WIDE)


def against(now: Record, baseline: CellBaseline | None = None, common: int = 1000) -> Evidence:
    return gather(now, baseline or stored(), common)


def elsewhere(**changes: Any) -> dict[str, Any]:
    return {**PROVENANCE, **changes}


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({}, True),
        # Threads, dates, commits and other libraries are what the platform's floor is about.
        ({"provenance": elsewhere(threads=8, date="2027-01-01", commit="def")}, True),
        ({"provenance": elsewhere(versions={"torch": "2.13.0+cpu", "numpy": "9"})}, True),
        ({"provenance": elsewhere(device="cuda: NVIDIA H100")}, False),
        ({"provenance": elsewhere(dtype="bfloat16")}, False),
        ({"provenance": elsewhere(execution="packed")}, False),
        ({"provenance": elsewhere(versions={"torch": "2.12.1"})}, False),
        ({"recipe_hash": "another"}, False),
    ],
)
def test_floor_that_counts_is_the_platforms_only_for_the_same_recipe_on_the_same_class_of_machine(
    changes: dict[str, Any], alike: bool
) -> None:
    found = against(replace(RECORD, **changes))
    assert found.alike == alike
    assert found.floor == (NARROW if alike else WIDE)


def test_machine_class_is_device_data_type_torch_and_execution() -> None:
    seen = machine_class(elsewhere(device="cuda: H100", versions={"torch": "2.13.0+cu130"}))
    assert seen == ("cuda: H100", "float32", "2.13.0")
    assert machine_class({}) == ("", "", "")
    packed = machine_class(elsewhere(execution="packed"))
    assert packed == (*machine_class(elsewhere(execution="fake")), "packed weights")


@pytest.mark.parametrize(("recipe_hash", "share"), [(RECORD.recipe_hash, 0.01), ("other", 0.5)])
def test_margins_follow_the_floor_that_counts(recipe_hash: str, share: float) -> None:
    now = replace(
        RECORD,
        recipe_hash=recipe_hash,
        layer_sqnr={name: db - 0.3 for name, db in PROFILE.items()},
        local_sqnr={name: db - 9.0 for name, db in LOCAL.items()},
    )
    found = against(now)
    assert found.margin == share * 1000
    margins = {shift.name: shift.margin for shift in found.shifts}
    # As much more than was measured, and not less than 0.1 dB, 0.005 nats, 0.02 decades.
    smallest = {name: least for name, _, _, least in METRICS.values()}
    assert margins == {name: max(least, HEADROOM * share) for name, least in smallest.items()}
    assert found.layer is not None
    assert found.local is not None
    assert found.layer.tolerance_db == found.local.tolerance_db == max(0.25, HEADROOM * share)
    # 0.3 dB is beyond the least tolerance, and within the draws' of HEADROOM / 2 dB; 9 dB never is.
    assert [shift.module for shift in found.layer.shifts] == (list(PROFILE) if share < 0.1 else [])
    assert [shift.module for shift in found.local.shifts] == list(LOCAL)
    assert found.place.first == "layers.0.q_proj"


def test_counts_are_those_of_the_common_items() -> None:
    quantized = (False,) * 20 + RECORD.quantized_correct[20:]
    reference = (False,) * 5 + RECORD.reference_correct[5:]
    now = replace(RECORD, quantized_correct=quantized, reference_correct=reference)
    for common, lost, gone in ((1000, 20, 5), (10, 10, 5), (3, 3, 3)):
        found = against(now, common=common)
        assert (found.common, found.answers.lost, found.answers.gained) == (common, lost, 0)
        assert found.reference.lost == gone
        assert found.p_values["answers"] == mcnemar_worse(lost, 0, 0.01 * common)


def test_full_precision_is_compared_by_its_texts_and_scores() -> None:
    texts = ("else",) * 3 + RECORD.reference_answers[3:]
    scores = [-1.5, -2.3, -0.125, -2.9]  # -2.25 and -3.0 in the baseline
    now = replace(RECORD, reference_answers=texts, fidelity=FIDELITY | {"reference_scores": scores})
    found = against(now)
    assert (found.reference_texts, found.reference_checked) == (3, 500)
    assert found.score_shift == pytest.approx(0.1)
    assert against(now.first(2), common=2).reference_texts == 2


def test_finished_sequences_are_compared_where_both_have_them() -> None:
    match = [False, True, True, False, True, False]
    now = replace(RECORD, trajectory=TRAJECTORY | {"sequence_match": match})
    found = against(now)
    # The baseline's first six: yes yes no yes yes no.
    assert (found.matches.items, found.matches.lost, found.matches.gained) == (6, 2, 1)
    assert found.p_values["finished sequences"] == mcnemar_worse(2, 1, 0.01 * 6)
    assert against(replace(RECORD, trajectory={})).p_values["finished sequences"] == 1.0


def test_shift_is_a_paired_test_beyond_its_margin() -> None:
    moved = [x - d for x, d in zip(FIDELITY["logit_sqnr"], [1, 2, 1, 0, 3, 1, 2, 2], strict=True)]
    found = against(replace(RECORD, fidelity=FIDELITY | {"logit_sqnr": moved}))
    (shift,) = (shift for shift in found.shifts if shift.name == "logit SQNR")
    assert (shift.stored, shift.seen) == (14.75, 13.25)
    assert str(shift) == "logit SQNR 14.8 -> 13.2 dB"
    differences = [
        after - before for before, after in zip(FIDELITY["logit_sqnr"], moved, strict=True)
    ]
    nearer = ttest_1samp(differences, -0.1, alternative="less").pvalue
    assert shift.p_value == found.p_values["logit SQNR"] == pytest.approx(2 * nearer)


def test_metric_that_is_missing_or_of_other_canvases_is_not_tested() -> None:
    few = replace(RECORD, fidelity=FIDELITY | {"logit_sqnr": [14.0] * 7})
    assert [shift.name for shift in against(few).shifts] == ["NLL of the true tokens", "log10 KL"]
    assert against(replace(RECORD, fidelity={})).shifts == ()


@pytest.mark.parametrize(
    ("band", "ends"),
    [
        (BANDS[0], {"drop above the band": 2.5}),
        (BANDS[1], {"drop above the band": 15.0, "drop below the band": 5.0}),
        (BANDS[2], {"drop below the band": 20.0}),
    ],
)
def test_p_values_are_named_by_what_they_test_and_a_cell_has_at_most_seven(
    band: Band, ends: dict[str, float]
) -> None:
    found = against(RECORD, stored(band=band))
    rest = {"answers", "finished sequences", "logit SQNR", "NLL of the true tokens", "log10 KL"}
    assert set(found.p_values) == rest | set(ends)
    assert len(found.p_values) <= TESTS_A_CELL
    assert set(ends) | {"answers"} <= set(ITEM_TESTS)
    for name, limit in ends.items():
        side: Any = name.split()[1]
        pairs = against(RECORD, stored(RECORD)).answers  # full precision against today's: the same
        pairs = replace(pairs, kept=810, lost=90, gained=0, missed=100)
        assert found.p_values[name] == drop_p_value(pairs, limit, side)
    assert all(0.0 <= p_value <= 1.0 for p_value in found.p_values.values())


def test_graceful_band_makes_all_seven_tests() -> None:
    assert len(against(RECORD).p_values) == TESTS_A_CELL


def test_full_precision_without_a_right_answer_has_no_drop_to_test() -> None:
    now = make_record(counts=(0, 0, 0, 1000))
    assert not {name for name in against(now).p_values if name.startswith("drop")}


def test_nothing_moved_is_nothing_found() -> None:
    found = against(RECORD)
    assert (found.answers.lost, found.answers.gained, found.reference_texts) == (0, 0, 0)
    assert found.score_shift == 0.0
    assert all(shift.stored == shift.seen for shift in found.shifts)
    assert found.place.first is None
    moved = {name: p for name, p in found.p_values.items() if not name.startswith("drop")}
    assert set(moved.values()) == {1.0}
