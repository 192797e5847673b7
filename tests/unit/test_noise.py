"""Noise floors: the largest movement of each figure between repetitions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.noise import DRAWS, HEADROOM, LEAST_DB, PLATFORM, NoiseFloor, floor, wider
from dllm_qbench.records import Record
from tests.helpers.records import FIDELITY, LOCAL, PROFILE, TRAJECTORY, make_record

NUMBERS = [entry.name for entry in fields(NoiseFloor) if entry.name not in ("runs", "what")]
BASE = make_record(counts=(80, 10, 2, 8))


def turned(values: Sequence[bool], *places: int) -> tuple[bool, ...]:
    return tuple(value != (n in places) for n, value in enumerate(values))


def fidelity(**changes: Sequence[float]) -> dict[str, Any]:
    return FIDELITY | changes


@pytest.mark.parametrize(
    ("repeat", "moved"),
    [
        (BASE, {}),
        # Three right answers of 100 lost (items 0 to 79 are right in both), two wrong ones gained.
        (
            replace(BASE, quantized_correct=turned(BASE.quantized_correct, 0, 1, 2, 98, 99)),
            {"flips": 0.05, "net_loss": 0.01},
        ),
        # A net gain is no loss.
        (replace(BASE, quantized_correct=turned(BASE.quantized_correct, 98)), {"flips": 0.01}),
        (
            replace(BASE, reference_correct=turned(BASE.reference_correct, 0, 99)),
            {"reference_flips": 0.02},
        ),
        # One of the eight sequences that matched no longer does.
        (
            replace(
                BASE,
                trajectory=TRAJECTORY | {"sequence_match": turned(TRAJECTORY["sequence_match"], 0)},
            ),
            {"match_loss": 0.125},
        ),
        (replace(BASE, layer_sqnr=PROFILE | {"layers.1.q_proj": 16.5}), {"layer_sqnr": 1.5}),
        (
            replace(BASE, local_sqnr={name: db + 0.25 for name, db in LOCAL.items()}),
            {"local_sqnr": 0.25},
        ),
        # The mean over canvases: +4 on one and -2 on another of eight.
        (
            replace(
                BASE,
                fidelity=fidelity(logit_sqnr=[18.0, 13.0, *FIDELITY["logit_sqnr"][2:]]),
            ),
            {"logit_sqnr": 0.25},
        ),
        (
            replace(
                BASE,
                fidelity=fidelity(nll_difference=[x - 0.01 for x in FIDELITY["nll_difference"]]),
            ),
            {"nll": 0.01},
        ),
        (
            replace(BASE, fidelity=fidelity(log10_kl=[x + 0.5 for x in FIDELITY["log10_kl"]])),
            {"log10_kl": 0.5},
        ),
    ],
)
def test_each_figure_moves_by_what_was_changed_and_no_other(
    repeat: Record, moved: dict[str, float]
) -> None:
    found = floor(BASE, [repeat], "threads")
    assert (found.runs, found.what) == (1, "threads")
    seen = {name: getattr(found, name) for name in NUMBERS}
    assert seen == pytest.approx(dict.fromkeys(NUMBERS, 0.0) | moved, abs=1e-12)


def test_floor_is_the_largest_movement_of_each_figure_over_the_repetitions() -> None:
    one = replace(BASE, quantized_correct=turned(BASE.quantized_correct, 0, 1))
    other = replace(BASE, layer_sqnr=PROFILE | {"layers.0.q_proj": 22.0})
    found = floor(BASE, [one, other, BASE], "calibration draws")
    assert (found.runs, found.flips, found.layer_sqnr) == (3, 0.02, 2.0)
    assert found == replace(floor(BASE, [BASE, other, one], "calibration draws"))


def test_record_that_measured_only_answers_has_a_floor_of_its_answers() -> None:
    bare = make_record(layer_sqnr={}, local_sqnr={}, fidelity={}, trajectory={})
    found = floor(bare, [replace(bare, quantized_correct=turned(bare.quantized_correct, 0))], "x")
    assert found.flips == 0.01
    assert found.layer_sqnr == found.logit_sqnr == found.match_loss == 0.0


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ([], "toy gptq/W4A16-g64/math: no repetition to measure noise from"),
        ([make_record(cell="rtn/W4A16-g64/math")], "toy rtn/.* does not repeat toy gptq/"),
        ([make_record(model="else")], "else gptq/.* does not repeat toy gptq/"),
        ([make_record(ids=[f"other-{n}" for n in range(100)])], "does not repeat"),
        ([make_record(layer_sqnr={"layers.0.q_proj": 20.0})], "SQNR of 'layers.0.down_proj'"),
        ([make_record(local_sqnr=LOCAL | {"more": 1.0})], "SQNR of 'more' was measured in one"),
        (
            [make_record(fidelity=fidelity(logit_sqnr=[1.0]))],
            "logit_sqnr: 8 canvases cannot be paired with 1",
        ),
    ],
)
def test_repetition_of_something_else_is_refused(repeats: list[Record], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        floor(BASE, repeats, "threads")


def test_wider_floor_takes_the_larger_of_each_figure() -> None:
    a = replace(PLATFORM, runs=3, what="threads", flips=0.02, nll=0.5)
    b = replace(PLATFORM, runs=5, what="threads", flips=0.01, local_sqnr=1.25)
    assert wider([a, b]) == wider([b, a]) == replace(b, flips=0.02, nll=0.5)
    assert wider([a]) == a
    with pytest.raises(ValueError, match="no noise floor"):
        wider([])


@given(st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_wider_floor_covers_every_one_of_them(values: list[float]) -> None:
    floors = [replace(PLATFORM, layer_sqnr=value) for value in values]
    assert all(wider(floors).layer_sqnr >= one.layer_sqnr for one in floors)
    assert wider(floors).layer_sqnr in values


@pytest.mark.parametrize(
    ("measured", "tolerance"),
    [(0.0, LEAST_DB), (0.1, LEAST_DB), (0.2, 0.2 * HEADROOM), (2.0, 2.0 * HEADROOM)],
)
@pytest.mark.parametrize("profile", ["layer_sqnr", "local_sqnr"])
def test_tolerance_is_the_floor_with_headroom_and_never_next_to_nothing(
    measured: float, tolerance: float, profile: str
) -> None:
    made = replace(PLATFORM, **{profile: measured})
    assert made.tolerance_db(profile) == pytest.approx(tolerance)
    assert HEADROOM * measured <= made.tolerance_db(profile)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made,
        lambda made: replace(made, runs=4, what="threads 1 and 2", flips=0.0123456),
    ],
)
@pytest.mark.parametrize("made", [PLATFORM, DRAWS])
def test_floor_survives_json_with_five_digits(
    made: NoiseFloor, change: Callable[[NoiseFloor], NoiseFloor]
) -> None:
    data = change(made).to_dict()
    again = NoiseFloor.from_dict(data)
    assert again == replace(change(made), flips=round(change(made).flips, 5))
    assert again.to_dict() == data


def test_default_for_draws_is_nowhere_below_the_platforms() -> None:
    assert all(getattr(DRAWS, name) >= getattr(PLATFORM, name) for name in NUMBERS)
    assert PLATFORM.runs == DRAWS.runs == 0
