"""Sequential evaluation: what settles which verdict, and how often wrongly at any stopping time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.sequential import Sequential, Settled, wagers

LOSSLESS = Band("near-lossless", max_drop=2.5)
GRACEFUL = Band("graceful", 5.0, 15.0)
COLLAPSE = Band("collapse", min_drop=20.0)
ALPHA = 1e-4

STREAMS, ITEMS, CHUNK = 2000, 1000, 50


def right(pattern: Sequence[int], items: int) -> list[bool]:
    """Answers that repeat a pattern."""
    return [bool(pattern[n % len(pattern)]) for n in range(items)]


def feed(
    run: Sequential, reference: Sequence[bool], now: Sequence[bool], before: Sequence[bool]
) -> Settled | None:
    for at in range(0, len(now), CHUNK):
        part = slice(at, at + CHUNK)
        if run.add(reference[part], now[part], before[part]):
            break
    return run.settled


def test_unchanged_cell_is_equivalent_long_before_its_items_end() -> None:
    for band, pattern in ((LOSSLESS, [1]), (GRACEFUL, [1] * 9 + [0]), (COLLAPSE, [1, 1, 0])):
        run = Sequential(band, ALPHA)
        before = right(pattern, 500)
        settled = feed(run, right([1], 500), before, before)
        # (1 + bet delta)^n passes 1 / 0.05 with a quarter of the capital on the largest bet, about
        # 1 / (1 - delta), at n = log(80) / -log(0.97) = 144: the third chunk of 50.
        assert settled is not None
        assert (settled.status, settled.items) == ("equivalent", 150)
        assert 0.8 < settled.p_value / (4 * 0.97**150) < 1  # smaller bets add a little
        assert "0 answers became wrong and 0 right: no worse" in settled.text


def test_lost_answers_are_degraded() -> None:
    run = Sequential(GRACEFUL, ALPHA)
    settled = feed(run, right([1], 500), right([1] * 4 + [0], 500), right([1] * 9 + [0], 500))
    assert settled is not None
    assert settled.status == "degraded"
    assert settled.text.startswith(f"{settled.items // 10} answers became wrong and 0 right: worse")
    assert settled.p_value == run.p_value == 3 * run.p_values["worse"] <= ALPHA  # of three tests


def test_drop_above_the_band_is_degraded_though_the_baseline_is_as_bad() -> None:
    settled = feed(Sequential(LOSSLESS, ALPHA), *[right([1], 500), *[right([1, 0], 500)] * 2])
    assert settled is not None
    assert settled.status == "degraded"
    assert settled.text.startswith("the drop is surely above 2.5 %")


def test_unchanged_cell_outside_its_band_is_not_called_equivalent() -> None:
    run = Sequential(LOSSLESS, 1e-12)  # far too strict to settle the drop of 12.5 % as degraded
    assert feed(run, right([1], 150), *[right([1] * 7 + [0], 150)] * 2) is None
    assert max(run.p_values["above"], run.p_values["no worse"]) < 0.05


def test_layer_left_unquantized_is_improved() -> None:
    settled = feed(
        Sequential(COLLAPSE, ALPHA), right([1], 500), right([1], 500), right([1, 0], 500)
    )
    assert settled is not None
    assert settled.status == "improved"
    assert settled.text.startswith("the drop is surely below 20 %")


def test_gain_inside_the_band_is_never_settled_as_equivalent() -> None:
    run = Sequential(GRACEFUL, ALPHA)  # 14 % before, 6 % now: both inside 5 to 15 %
    settled = feed(
        run, right([1], 2000), right([1] * 47 + [0] * 3, 2000), right([1] * 43 + [0] * 7, 2000)
    )
    assert settled is None
    assert run.p_values["no worse"] < 0.05 < run.p_values["no better"]


def test_margin_forgives_a_small_loss() -> None:
    answers = right([1], 2000), right([1] * 49 + [0], 2000), right([1], 2000)
    wide = Band("near-lossless", max_drop=50.0)
    strict, lenient = (Sequential(wide, 0.01, margin=m) for m in (0.0, 0.02))
    for run in (strict, lenient):
        feed(run, *answers)
    assert strict.p_values["worse"] < 0.01 < lenient.p_values["worse"]


def test_what_is_settled_stays_settled() -> None:
    run = Sequential(LOSSLESS, ALPHA)
    first = feed(run, right([1], 500), right([1], 500), right([1], 500))
    assert run.add([True] * 50, [False] * 50, [True] * 50) is first
    assert run.items == 150


def test_chunks_of_any_size_give_the_same_evidence() -> None:
    rng = np.random.default_rng(1)
    columns = [list(map(bool, rng.random(300) < p)) for p in (0.95, 0.85, 0.85)]
    runs = [Sequential(GRACEFUL, 1e-9, alpha_equivalent=1e-9) for _ in range(2)]
    runs[0].add(*columns)
    for at in range(0, 300, 7):
        runs[1].add(*(column[at : at + 7] for column in columns))
    assert runs[0].items == runs[1].items == 300
    # The p-value keeps the most evidence there ever was, which more looks can only add to.
    for name, p_value in runs[1].p_values.items():
        assert p_value <= runs[0].p_values[name] * (1 + 1e-9)


def test_nothing_seen_is_nothing_settled() -> None:
    run = Sequential(GRACEFUL, ALPHA)
    assert run.add([], [], []) is None
    assert set(run.p_values) == {"worse", "no worse", "no better", "above", "below"}
    assert all(p == 1.0 for p in [run.p_value, *run.p_values.values()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 0.01, "alpha_equivalent": 1.0}, "alpha_equivalent is 1.0"),
        ({"alpha": 0.01, "delta": 0.01, "margin": 0.01}, "margin 0.01 and delta 0.01"),
    ],
)
def test_levels_that_mean_nothing_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequential(LOSSLESS, **arguments)


def test_answers_of_other_lengths_are_refused_and_leave_no_trace() -> None:
    run = Sequential(LOSSLESS, ALPHA)
    with pytest.raises(ValueError, match="cannot be paired"):
        run.add([True], [True, True], [True, True])
    assert run.items == 0


def test_band_that_starts_at_everything_has_no_bet() -> None:
    assert "below" not in wagers(Band("collapse", min_drop=100.0))


def crossed(
    name: str, shares: Sequence[float], alpha: float, seed: int, band: Band = GRACEFUL
) -> float:
    """How often the evidence of i.i.d. items ever passes 1 / alpha, looked at after every item."""
    wager = wagers(band)[name]
    kinds = np.random.default_rng(seed).choice(len(shares), size=(STREAMS, ITEMS), p=shares)
    ever = np.zeros(STREAMS, dtype=bool)
    counts = np.cumsum(kinds[:, :, None] == np.arange(len(shares)), axis=1)
    for at in range(0, ITEMS, 100):
        evidence = wager.log_evidence(counts[:, at : at + 100])
        ever |= (evidence >= -np.log(alpha)).any(axis=1)
    return float(ever.mean())


# Shares of (lost, gained, rest), or of (kept, lost, gained, missed), on the edge of each hypothesis.
EDGES = [
    ("worse", [0.01, 0.01, 0.98]),
    ("worse", [0.08, 0.08, 0.84]),
    ("no worse", [0.03, 0.0, 0.97]),
    ("no worse", [0.07, 0.04, 0.89]),
    ("no better", [0.04, 0.07, 0.89]),
    ("above", [0.765, 0.135, 0.0, 0.1]),  # 15 % of 0.9
    ("above", [0.725, 0.175, 0.04, 0.06]),
    ("below", [0.855, 0.045, 0.0, 0.1]),  # 5 % of 0.9
    ("below", [0.815, 0.085, 0.04, 0.06]),
]


@pytest.mark.parametrize(("name", "shares"), EDGES)
def test_true_hypothesis_is_ever_rejected_no_more_often_than_alpha(
    name: str, shares: list[float]
) -> None:
    alpha = 0.05
    rate = crossed(name, shares, alpha, seed=3)
    slack = 3 * (alpha * (1 - alpha) / STREAMS) ** 0.5
    assert 0 < rate <= alpha + slack  # 0 < : the bound is not so loose that nothing is tested


@pytest.mark.parametrize(
    ("name", "shares"),
    [("worse", [0.07, 0.0, 0.93]), ("no worse", [0.0, 0.0, 1.0]), ("above", [0.6, 0.3, 0.0, 0.1])],
)
def test_clearly_false_hypothesis_is_rejected(name: str, shares: list[float]) -> None:
    assert crossed(name, shares, 1e-4, seed=4) > 0.99


def outcomes(drop: float, flips: float, alpha: float, streams: int = 400) -> dict[str, float]:
    """Shares of settled verdicts over simulated cells with the verdicts' own class."""
    rng = np.random.default_rng([5, round(1000 * drop)])
    found: dict[str, float] = {}
    for _ in range(streams):
        reference = rng.random(ITEMS) < 0.97
        before = reference & (rng.random(ITEMS) < 0.9)
        lose = (flips + drop) / (0.97 * 0.9)
        now = np.where(
            before, rng.random(ITEMS) >= lose, rng.random(ITEMS) < flips / (1 - 0.97 * 0.9)
        )
        run = Sequential(GRACEFUL, alpha)
        settled = feed(run, *(list(map(bool, column)) for column in (reference, now, before)))
        status = settled.status if settled else "open"
        found[status] = found.get(status, 0.0) + 1 / streams
    return found


def test_unchanged_quantizer_is_blamed_no_more_often_than_alpha() -> None:
    found = outcomes(drop=0.0, flips=0.02, alpha=0.1)
    # 400 streams: sd 0.015.
    assert found.get("degraded", 0.0) + found.get("improved", 0.0) <= 0.145
    assert found["equivalent"] > 0.4


def test_loss_of_delta_is_equivalent_no_more_often_than_its_alpha() -> None:
    found = outcomes(drop=0.03, flips=0.01, alpha=0.01)
    assert found.get("equivalent", 0.0) <= 0.05 + 3 * 0.011
    assert found["degraded"] > 0.4
