"""The table of verdicts: what a record is against its baseline, and what the message says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.baselines import CellBaseline, write_cell
from dllm_qbench.errors import BaselineError
from dllm_qbench.noise import HEADROOM
from dllm_qbench.verdict.bands import Band, propose
from dllm_qbench.verdict.judge import judge
from dllm_qbench.verdict.statistics import items_needed
from tests.helpers.records import PROFILE, PROVENANCE, make_record
from tests.helpers.verdicts import (
    COLLAPSE,
    GRACEFUL,
    LOSSLESS,
    against,
    flipped,
    with_drop,
    with_floor,
)


@pytest.mark.parametrize(
    ("band", "lost", "status"),
    [
        (LOSSLESS, 5, "equivalent"),  # 0.6 %, upper bound 1.1
        (LOSSLESS, 18, "inconclusive"),  # 2.0 %, upper bound 2.9
        (LOSSLESS, 28, "inconclusive"),  # 3.1 %, lower bound 2.3
        (LOSSLESS, 36, "inconclusive"),  # 4.0 %, lower bound 3.1, but p = 0.0020
        (LOSSLESS, 37, "degraded"),  # 4.1 %, p = 0.00098
        (GRACEFUL, 90, "equivalent"),
        (GRACEFUL, 40, "equivalent"),  # 4.4 %, upper bound 5.7 overlaps
        (GRACEFUL, 34, "inconclusive"),  # 3.8 %, upper bound 4.97, but p = 0.046
        (GRACEFUL, 25, "improved"),  # 2.8 %, p = 0.0011
        (GRACEFUL, 145, "equivalent"),  # 16.1 %, lower bound 14.2 overlaps
        (GRACEFUL, 166, "inconclusive"),  # 18.4 %, lower bound 16.4, but p = 0.0019
        (GRACEFUL, 167, "degraded"),  # 18.6 %, p = 0.0014
        (COLLAPSE, 400, "equivalent"),
        (COLLAPSE, 185, "inconclusive"),  # 20.6 %, lower bound 18.5
        (COLLAPSE, 146, "inconclusive"),  # 16.2 %, upper bound 18.3, but p = 0.0023
        (COLLAPSE, 144, "improved"),  # 16.0 %, p = 0.0013
    ],
)
def test_drop_against_its_band_at_a_seventh_of_one_percent(
    band: Band, lost: int, status: str
) -> None:
    verdict = against(band, with_drop(lost))
    assert verdict.status == status
    assert verdict.fails() == (status in {"degraded", "improved"})
    assert verdict.fails(strict=True) == (status != "equivalent")


def test_inconclusive_says_what_would_settle_it() -> None:
    verdict = against(LOSSLESS, with_drop(18))
    assert verdict.items_needed is not None
    assert verdict.items_needed > 1000
    assert f"about {verdict.items_needed} items" in verdict.message
    settled = against(LOSSLESS, with_drop(18 * 20, right=18000, items=20000))
    assert verdict.items_needed <= 20000
    assert settled.status == "equivalent"


@pytest.mark.parametrize(
    ("band", "lost", "limit"), [(GRACEFUL, 155, 15.0), (GRACEFUL, 34, 5.0), (LOSSLESS, 34, 2.5)]
)
def test_drop_outside_its_band_is_settled_by_as_many_items_as_promised(
    band: Band, lost: int, limit: float
) -> None:
    """At the run's share of alpha and from the limit that was passed, not from the band's other one."""
    verdict = against(band, with_drop(lost))
    assert (verdict.status, verdict.drop) == ("inconclusive", pytest.approx(lost / 9))
    assert verdict.interval is not None
    assert verdict.drop is not None
    needed = items_needed(1000, verdict.interval, verdict.drop, limit, 0.01 / 7)
    assert verdict.items_needed == needed is not None
    assert verdict.minimum_effect is not None
    assert verdict.minimum_effect > abs(lost / 9 - limit)
    times = -(-needed // 1000)
    more = with_drop(times * lost, right=times * 900, items=times * 1000)
    assert against(band, more).status in {"degraded", "improved"}


def test_share_of_alpha_shrinks_with_the_tests_of_the_run() -> None:
    record = with_drop(39)
    stored = replace(CellBaseline.from_record(record), band=LOSSLESS)
    alone, of_many = judge(record, stored), judge(record, stored, tests_in_run=84 * 8)
    assert alone.p_values == of_many.p_values
    assert alone.p_values["drop above the band"] == pytest.approx(2.1e-4, rel=0.05)
    assert (alone.status, alone.alpha) == ("degraded", 0.01 / 7)
    assert (of_many.status, of_many.alpha) == ("inconclusive", 0.01 / 672)


def test_inconclusive_at_the_limit_promises_nothing() -> None:
    verdict = against(Band("near-lossless", max_drop=2.0), with_drop(18))
    assert (verdict.status, verdict.items_needed) == ("inconclusive", None)
    assert "at the limit" in verdict.message


def test_worse_than_the_stored_answers_is_degraded_inside_the_band() -> None:
    stored = with_drop(60)
    verdict = against(GRACEFUL, flipped(stored, 12, 0), stored)
    assert (verdict.lost, verdict.gained, verdict.status) == (12, 0, "degraded")
    assert verdict.p_value == pytest.approx(2**-12)
    assert "12 answers became wrong" in verdict.reasons[0]


def test_noise_of_the_baseline_is_forgiven() -> None:
    stored = with_drop(60)
    now = flipped(stored, 12, 0)
    # Three net losses in a thousand: P(lost) <= 1/2 + 3 / 24 of 12 answers that changed.
    verdict = judge(now, with_floor(stored, net_loss=0.003, flips=0.0121 / HEADROOM))
    assert verdict.p_value == pytest.approx(0.625**12)
    assert (verdict.margin, verdict.status) == (3.0, "equivalent")
    assert "12 answers became wrong and 0 right on 1000 common items, as noise does" in (
        verdict.reasons
    )
    assert (
        judge(now, with_floor(stored, net_loss=0.003, flips=0.0119 / HEADROOM)).status == "changed"
    )


@pytest.mark.parametrize(("lost", "gained"), [(3, 0), (0, 12), (8, 8)])
def test_other_answers_inside_the_band_are_changed_and_pass(lost: int, gained: int) -> None:
    stored = with_drop(60)
    verdict = against(GRACEFUL, flipped(stored, lost, gained), stored)
    assert (verdict.status, verdict.fails()) == ("changed", False)


@given(st.integers(0, 30), st.integers(0, 30))
def test_verdict_does_not_depend_on_the_order_of_items(lost: int, gained: int) -> None:
    stored = with_drop(60)
    now = flipped(stored, lost, gained)
    turn = lambda r: replace(  # noqa: E731
        r,
        item_ids=r.item_ids[::-1],
        reference_correct=r.reference_correct[::-1],
        quantized_correct=r.quantized_correct[::-1],
    )
    a, b = against(GRACEFUL, now, stored), against(GRACEFUL, turn(now), turn(stored))
    assert (a.status, a.p_value, a.interval) == (b.status, b.p_value, b.interval)


def test_another_recipe_says_what_differs() -> None:
    recipe: dict[str, Any] = {"method": "gptq", "parameters": {"damp": 0.01, "act_order": False}}
    other = {"method": "gptq", "parameters": {"damp": 1.0, "act_order": False}}
    stored = make_record(counts=(810, 90, 0, 100), recipe=recipe)
    now = make_record(counts=(810, 90, 0, 100), recipe=other)
    verdict = against(GRACEFUL, now, stored)
    assert verdict.status == "changed"
    assert "another recipe than the baseline's: parameters.damp 0.01 -> 1.0" in verdict.message


def test_another_checkpoint_is_said() -> None:
    stored = with_drop(90)
    now = replace(stored, provenance={**PROVENANCE, "checkpoint_sha256": "f" * 64})
    assert "another checkpoint (ffffffffffff)" in against(GRACEFUL, now, stored).message


def test_full_precision_without_a_right_answer_is_infra_and_no_accuracy() -> None:
    stored = with_drop(90)
    verdict = against(GRACEFUL, make_record(counts=(0, 0, 0, 1000)), stored)
    assert (verdict.status, verdict.drop, verdict.fails()) == ("infra", None, True)
    assert "no drop to measure" in verdict.message


def test_other_number_of_items_is_compared_on_the_common_ones() -> None:
    kinds = [True] * 810 + [False] * 90 + [False] * 100
    order = [n * 7 % 1000 for n in range(1000)]  # the counts spread over the items
    reference = [n < 900 for n in order]
    stored = make_record(reference, [kinds[n] for n in order])
    few = stored.first(300)
    for now, before in ((few, stored), (stored, few)):
        verdict = against(GRACEFUL, now, before)
        assert (verdict.status, verdict.common, verdict.lost) == ("equivalent", 300, 0)
        assert "on the first 300" in verdict.message


def test_other_items_are_an_error_and_not_a_verdict() -> None:
    stored = with_drop(90)
    with pytest.raises(BaselineError, match="drawn with seed 1"):
        against(GRACEFUL, replace(stored, seed=1), stored)
    ids = tuple(f"other-{n}" for n in range(1000))
    with pytest.raises(BaselineError, match=r"another one than the record's 'other-"):
        against(GRACEFUL, replace(stored, item_ids=ids), stored)
    with pytest.raises(BaselineError, match="belongs to model 'toy'"):
        against(GRACEFUL, replace(stored, model="else"), stored)


def test_judge_takes_a_cell_a_file_and_a_folder(tmp_path: Path) -> None:
    record = with_drop(90)
    path = tmp_path / "toy.json"
    cell = write_cell(path, record)
    assert cell is not None
    assert {judge(record, b).status for b in (cell, path, str(path), tmp_path)} == {"equivalent"}


def test_message_fits_one_screen_at_its_longest() -> None:
    names = [f"model.layers.{n}.self_attn.some_long_projection_name" for n in range(30)]
    stored = make_record(
        counts=(810, 90, 0, 100),
        layer_sqnr=dict.fromkeys(names, 20.0),
        local_sqnr=dict.fromkeys(names, 25.0),
        recipe={f"parameter_{n}": "a" * 40 for n in range(20)},
    )
    now = make_record(
        counts=(400, 400, 5, 195),
        ids=stored.item_ids,
        layer_sqnr=dict.fromkeys(names, 3.0),
        local_sqnr=dict.fromkeys(names, 4.0),
        fidelity={name: [9.0] * 8 for name in ("logit_sqnr", "nll_difference", "log10_kl")},
        recipe={f"parameter_{n}": "b" * 40 for n in range(20)},
        provenance={**PROVENANCE, "checkpoint_sha256": "f" * 64},
    )
    now = replace(now, audit_findings=("grid: " + names[0] + ": 17 levels of 16, " + "x" * 80,) * 9)
    baseline = replace(
        CellBaseline.from_record(stored), band=GRACEFUL, source="/a/long/folder" * 5 + ".json"
    )
    verdict = replace(judge(now, baseline), symptom="scale: " + "its output is twice as large " * 4)
    lines = verdict.message.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_message_says_expected_seen_items_and_where() -> None:
    stored = with_drop(90)
    now = replace(flipped(stored, 300, 0), layer_sqnr={**PROFILE, "layers.0.down_proj": 3.0})
    message = re.sub(" +", " ", against(GRACEFUL, now, stored).message)
    assert message.splitlines()[0] == "gptq/W4A16-g64/math on toy: degraded"
    for part in (
        "expected graceful: a drop of 5 to 15 %",
        "seen a drop of 43.3 % [",
        "full precision 90.0 %, quantized 51.0 %",
        "items 1000, the same items and masks for both",
        "where first layers.0.down_proj: what reaches it is at 3.0 dB, 15.0 in the baseline",
        "fidelity logit SQNR 14.8 -> 14.8 dB; NLL of the true tokens 0.0262 -> 0.0262 nats;",
        "kinds even 90 -> 51 % of 500",
    ):
        assert part in message, message


def test_verdict_is_plain_json() -> None:
    data = against(GRACEFUL, with_drop(90)).to_dict()
    assert data["band"] == {"kind": "graceful", "min_drop": 5.0, "max_drop": 15.0}
    assert data["interval"][0] < data["drop"] < data["interval"][1]


@pytest.mark.parametrize(
    ("interval", "band"),
    [
        ((-1.0, 0.9), Band("near-lossless", max_drop=1.0)),
        ((0.0, 2.4), Band("near-lossless", max_drop=2.5)),
        ((1.1, 4.3), Band("graceful", -1.0, 6.5)),
        ((18.0, 24.0), Band("graceful", 16.0, 26.0)),
        ((20.0, 24.0), Band("collapse", min_drop=20.0)),
        ((5.0, 99.5), Band("graceful", 3.0, 100.0)),
    ],
)
def test_proposed_band_follows_its_rule(interval: tuple[float, float], band: Band) -> None:
    assert propose(interval) == band


@given(st.integers(0, 900), st.integers(0, 50))
def test_proposed_band_accepts_the_measurement_it_came_from(lost: int, gained: int) -> None:
    record = with_drop(lost, gained)
    assert not judge(record, CellBaseline.from_record(record)).fails(strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharp",), "kind is 'sharp'"),
        (("collapse",), "min_drop is missing"),
        (("near-lossless", 1.0, 2.0), "min_drop is 1.0, a near-lossless band has none"),
        (("graceful", 5.0, 4.0), "min_drop 5 is above max_drop 4"),
        (("graceful", 5.0, float("nan")), "max_drop is nan"),
        (("collapse", 120.0), "min_drop is 120.0"),
    ],
)
def test_band_that_means_nothing_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        Band(*arguments)


def test_judging_needs_no_torch() -> None:
    code = (
        "import sys, dllm_qbench.verdict.judge, dllm_qbench.verdict.message, dllm_qbench.outcomes;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
