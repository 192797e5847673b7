"""Verdicts beside the drop: layers, fidelity, full precision, machines, and stopping early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.noise import HEADROOM
from dllm_qbench.records import Record
from dllm_qbench.verdict.judge import Verdict, judge
from dllm_qbench.verdict.layers import compare_layers
from dllm_qbench.verdict.matrix import cell_alpha
from dllm_qbench.verdict.sequential import Sequential, Watch
from tests.helpers.records import FIDELITY, PROFILE, PROVENANCE, make_record, spread
from tests.helpers.verdicts import (
    GRACEFUL,
    against,
    flipped,
    with_drop,
    with_floor,
)


def test_layer_that_left_its_profile_is_named_first_and_the_others_by_their_share() -> None:
    now = {"layers.0.q_proj": 19.8, "layers.0.down_proj": 12.0, "layers.1.q_proj": 8.0}
    own = {"layers.0.q_proj": 21.0, "layers.0.down_proj": 14.0, "layers.1.q_proj": 9.0}
    stored = with_drop(90)
    verdict = against(GRACEFUL, replace(stored, layer_sqnr=now, local_sqnr=own), stored)
    assert verdict.status == "degraded"
    assert verdict.layers is not None
    assert str(verdict.layers.first) == "layers.0.down_proj: 12.0 dB (baseline 15.0)"
    assert str(verdict.layers.worst) == "layers.1.q_proj: 8.0 dB (baseline 18.0)"
    assert verdict.local is not None
    assert str(verdict.local.first) == "layers.0.down_proj: 14.0 dB (baseline 17.0)"
    assert verdict.place is not None
    assert (verdict.place.first, verdict.place.by) == ("layers.0.down_proj", "own error")
    assert "first  layers.0.down_proj: fed with full precision's inputs it is at" in verdict.message
    assert "also   layers.1.q_proj: 9.0 dB (baseline 22.0), 86 % of the change" in verdict.message
    assert [reason[:28] for reason in verdict.reasons[:2]] == [
        "own SQNR of 2 of 3 modules l",
        "SQNR of 2 of 3 modules left ",
    ]


def test_layer_left_unquantized_is_degraded_although_its_sqnr_rises() -> None:
    stored = with_drop(90)
    now = {**PROFILE, "layers.1.q_proj": 60.0}
    assert against(GRACEFUL, replace(stored, layer_sqnr=now), stored).status == "degraded"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("profile", ["layer_sqnr", "local_sqnr"])
@pytest.mark.parametrize(
    ("floor", "shift", "status"),
    [
        (0.0, 0.24, "equivalent"),  # never less than a quarter of a dB
        (0.0, 0.26, "degraded"),
        (2.0, 2.0 * HEADROOM - 0.01, "equivalent"),  # so much more than was measured
        (2.0, 2.0 * HEADROOM + 0.01, "degraded"),
    ],
)
def test_tolerance_of_a_layer_follows_its_noise(
    floor: float, shift: float, status: str, profile: str, sign: int
) -> None:
    stored = with_drop(90)
    moved = {name: db + sign * shift for name, db in getattr(stored, profile).items()}
    now = replace(stored, **{profile: moved})
    assert judge(now, with_floor(stored, **{profile: floor})).status == status


def test_layers_that_come_or_go_count_as_shifts() -> None:
    found = compare_layers({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 3.0}, 1.0)
    assert found is not None
    assert [str(shift) for shift in found.shifts] == [
        "c: 3.0 dB, not in the baseline",
        "b: no longer measured (baseline 2.0 dB)",
    ]


def test_profile_that_was_not_measured_is_said_and_passes() -> None:
    stored = with_drop(90)
    verdict = against(GRACEFUL, replace(stored, layer_sqnr={}), stored)
    assert verdict.status == "equivalent"
    assert "not measured" in verdict.message


def test_changed_full_precision_is_reported_apart_from_the_quantizer() -> None:
    stored = with_drop(90)
    reference = list(stored.reference_correct)
    reference[0] = False
    verdict = against(GRACEFUL, replace(stored, reference_correct=tuple(reference)), stored)
    assert (verdict.status, verdict.reference_lost, verdict.lost) == ("changed", 1, 0)
    assert "not the quantizer" in verdict.message


def test_full_precision_that_got_worse_is_degraded_though_the_drop_is_not() -> None:
    stored = make_record(counts=(810, 90, 0, 100))
    now = make_record(counts=(729, 81, 0, 190), ids=stored.item_ids)
    verdict = against(GRACEFUL, now, stored)
    assert verdict.drop == pytest.approx(10.0)
    assert verdict.status == "degraded"
    assert any("full precision itself changed" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("texts", "status"), [(0, "equivalent"), (2, "changed"), (3, "degraded"), (500, "degraded")]
)
def test_full_precision_that_writes_otherwise_is_not_the_quantizers_doing(
    texts: int, status: str
) -> None:
    """Right and wrong as before; 0.5 % of the 500 answers that are compared is 2.5."""
    stored = with_drop(90)
    answers = ("else",) * texts + stored.reference_answers[texts:]
    verdict = against(GRACEFUL, replace(stored, reference_answers=answers), stored)
    assert (verdict.status, verdict.findings[0].check == "reference") == (status, texts > 0)
    assert (f"{texts} of 500 answers read otherwise" in verdict.reasons[0]) == (texts > 0)


def with_fidelity(record: Record, **changes: Any) -> Record:
    return replace(record, fidelity={**record.fidelity, **changes})


@pytest.mark.parametrize(("by", "status"), [(0.009, "equivalent"), (-0.02, "degraded")])
def test_full_precision_that_scores_otherwise_is_degraded(by: float, status: str) -> None:
    stored = with_drop(90)
    scores = [*FIDELITY["reference_scores"][:-1], FIDELITY["reference_scores"][-1] + by]
    verdict = against(GRACEFUL, with_fidelity(stored, reference_scores=scores), stored)
    assert verdict.status == status
    assert ("log-likelihood moved by 0.02 nats" in verdict.message) == (status == "degraded")


@pytest.mark.parametrize(
    ("metric", "by", "status"),
    [
        ("logit_sqnr", -0.05, "equivalent"),  # within the smallest margin, 0.1 dB
        ("logit_sqnr", -0.2, "degraded"),
        ("logit_sqnr", 0.2, "degraded"),
        ("nll_difference", 0.004, "equivalent"),  # 0.005 nats
        ("nll_difference", 0.01, "degraded"),
        ("log10_kl", 0.01, "equivalent"),  # 0.02 decades
        ("log10_kl", 0.05, "degraded"),
    ],
)
def test_fidelity_that_moves_on_every_canvas_is_degraded(
    metric: str, by: float, status: str
) -> None:
    stored = with_drop(90)
    now = with_fidelity(stored, **{metric: [value + by for value in FIDELITY[metric]]})
    verdict = against(GRACEFUL, now, stored)
    assert verdict.status == status
    assert (verdict.findings[0].check == "fidelity") == (status == "degraded")


def test_fidelity_that_moves_on_one_canvas_is_changed() -> None:
    stored = with_drop(90)
    now = with_fidelity(stored, logit_sqnr=[*FIDELITY["logit_sqnr"][:-1], 10.5])
    verdict = against(GRACEFUL, now, stored)
    assert (verdict.status, verdict.findings[0].check) == ("changed", "fidelity")
    assert "logit SQNR 14.8 -> 14.4 dB" in verdict.reasons[0]


def test_finished_sequences_that_no_longer_match_are_degraded() -> None:
    stored = replace(with_drop(90), trajectory={"sequence_match": [True] * 40})
    for lost, status in ((9, "equivalent"), (10, "degraded")):  # 2^-9 is above 0.01 / 7
        match = [False] * lost + [True] * (40 - lost)
        now = replace(stored, trajectory={"sequence_match": match})
        assert against(GRACEFUL, now, stored).status == status
    assert "10 finished sequences no longer match" in against(GRACEFUL, now, stored).reasons[0]


def test_every_finding_says_which_check_made_it() -> None:
    stored = with_drop(90)
    now = replace(
        with_fidelity(flipped(stored, 300, 0), logit_sqnr=[1.0] * 8),
        layer_sqnr=dict.fromkeys(PROFILE, 1.0),
        audit_findings=("grid: q: 17 levels",),
        reference_answers=("else",) * 1000,
        recipe={"method": "awq"},
        recipe_hash="another",
    )
    found = {finding.check for finding in against(GRACEFUL, now, stored).findings}
    assert found == {"audit", "layers", "fidelity", "accuracy", "reference", "origin"}


def test_another_class_of_machine_is_said_and_judged_by_the_wider_floor() -> None:
    stored = with_drop(90)
    moved = {name: db + 0.9 for name, db in PROFILE.items()}  # draws nobody measured: 1 dB
    there = {**PROVENANCE, "device": "cuda: NVIDIA H100"}
    assert against(GRACEFUL, replace(stored, layer_sqnr=moved), stored).status == "degraded"
    verdict = against(GRACEFUL, replace(stored, layer_sqnr=moved, provenance=there), stored)
    assert verdict.status == "equivalent"
    assert "another class of machine (cuda: NVIDIA H100, float32, 2.13.0)" in verdict.message


def watched(record: Record, stored: Record, upto: int) -> Verdict:
    """The verdict on a cell of which so many items were run, 50 at a time, and it may stop early."""
    baseline = replace(CellBaseline.from_record(stored), band=GRACEFUL)
    watch = Watch(Sequential(GRACEFUL, cell_alpha(7)), stored.quantized_correct)
    for start in range(0, upto, 50):
        part = slice(start, start + 50)
        if watch(record.reference_correct[part], record.quantized_correct[part]):
            break
    return judge(record.first(upto), baseline, watch=watch)


def test_settled_evidence_takes_the_place_of_tests_of_a_fixed_number_of_items() -> None:
    stored = spread(with_drop(90))
    same, worse = watched(stored, stored, 150), watched(flipped(stored, 60, 0), stored, 100)
    assert (same.status, worse.status) == ("equivalent", "degraded")
    for verdict, items in ((same, 150), (worse, 50)):
        assert any(f"settled after {items} items" in reason for reason in verdict.reasons)
        names = set(verdict.p_values)
        assert "answers, sequentially" in names
        assert not names & {"answers", "drop above the band", "drop below the band"}
    assert "sequential test" in worse.message
    assert "McNemar" not in worse.message


def test_unsettled_evidence_is_never_degraded_by_a_test_of_a_fixed_number_of_items() -> None:
    """12 losses and no gain are surely worse on a settled number of items (p = 0.0002)."""
    stored = with_drop(90)
    now = flipped(stored, 12, 0)
    assert against(GRACEFUL, now.first(100), stored).status == "degraded"
    baseline = replace(CellBaseline.from_record(stored), band=GRACEFUL)
    watch = Watch(Sequential(GRACEFUL, cell_alpha(7)), stored.quantized_correct)
    assert judge(now.first(100), baseline, watch=watch).status != "degraded"
