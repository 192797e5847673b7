"""Laws of betting: the capital is a supermartingale under its hypothesis, exactly, on any path."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.betting import Wager
from dllm_qbench.verdict.sequential import Sequential, wagers

limits = st.floats(-20, 99.9)
deltas = st.floats(0.001, 0.5)


@st.composite
def graceful(draw: st.DrawFn) -> Band:
    low, high = sorted((draw(limits), draw(limits)))
    return Band("graceful", low, high)


@st.composite
def bets(draw: st.DrawFn) -> Wager:
    delta = draw(deltas)
    every = wagers(draw(graceful()), delta, draw(st.floats(0, delta)))
    return every[draw(st.sampled_from(sorted(every)))]


def worst_cases(wager: Wager) -> list[list[float]]:
    """The corners of all distributions with mean at most the bound: on one value, or on two with the
    mean exactly at the bound. What holds at the corners holds between them.
    """
    corners = []
    for i, low in enumerate(wager.values):
        if low <= wager.bound:
            corners.append([float(n == i) for n in range(len(wager.values))])
        for j, high in enumerate(wager.values):
            if low < wager.bound < high:
                share = (wager.bound - low) / (high - low)
                corners.append(
                    [(1 - share) * (n == i) + share * (n == j) for n in range(len(wager.values))]
                )
    return corners


def capital(wager: Wager, counts: np.ndarray) -> np.ndarray:
    return np.exp(wager.log_evidence(counts))


@given(bets())
def test_capital_is_a_supermartingale_on_every_short_path(wager: Wager) -> None:
    kinds = len(wager.values)
    steps = np.eye(kinds)
    paths = [p for n in range(5) for p in combinations_with_replacement(range(kinds), n)]
    for path in paths:
        counts = np.bincount(np.array(path, dtype=int), minlength=kinds)
        now = float(capital(wager, counts))
        after = capital(wager, counts + steps)
        for shares in worst_cases(wager):
            assert shares @ after <= now * (1 + 1e-9)


@given(bets(), st.lists(st.integers(0, 400), min_size=4, max_size=4))
def test_capital_is_a_supermartingale_anywhere(wager: Wager, counts: list[int]) -> None:
    seen = np.array(counts[: len(wager.values)])
    now = wager.log_evidence(seen)
    after = np.exp(wager.log_evidence(seen + np.eye(len(wager.values))) - now)
    for shares in worst_cases(wager):
        assert shares @ after <= 1 + 1e-9


@given(bets())
def test_capital_starts_at_one_and_is_never_negative(wager: Wager) -> None:
    assert wager.log_evidence(np.zeros(len(wager.values))) == pytest.approx(0.0, abs=1e-12)
    worst = np.zeros(len(wager.values))
    worst[int(np.argmin(wager.values))] = 1000
    assert capital(wager, worst) >= 0
    assert math.isfinite(float(wager.log_evidence(worst)))


@given(bets(), st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_items_above_the_bound_add_evidence_and_those_below_take_it(
    wager: Wager, counts: list[int]
) -> None:
    seen = np.array(counts[: len(wager.values)])
    now, after = wager.log_evidence(seen), wager.log_evidence(seen + np.eye(len(wager.values)))
    for value, evidence in zip(wager.values, after, strict=True):
        assert (evidence - now) * (value - wager.bound) >= -1e-12


def test_bound_below_every_value_is_refused() -> None:
    with pytest.raises(ValueError, match="no stake can be lost"):
        Wager((0.0, 1.0), 0.0)


answers = st.lists(st.tuples(*[st.booleans()] * 3), max_size=60)


@given(graceful(), answers, st.randoms(use_true_random=False))
def test_evidence_does_not_depend_on_the_order_within_a_chunk(
    band: Band, items: list[tuple[bool, bool, bool]], random: object
) -> None:
    assume(items)
    turned = [*items]
    random.shuffle(turned)  # type: ignore[attr-defined]
    runs = []
    for order in (items, turned):
        runs.append(Sequential(band, 1e-6))
        runs[-1].add(*(list(column) for column in zip(*order, strict=True)))
    assert runs[0].settled == runs[1].settled
    assert runs[0].p_values == pytest.approx(runs[1].p_values)


@given(graceful(), answers)
def test_p_values_never_rise(band: Band, items: list[tuple[bool, bool, bool]]) -> None:
    run = Sequential(band, 1e-300, alpha_equivalent=1e-300)
    before = run.p_values
    for item in items:
        run.add(*([value] for value in item))
        after = run.p_values
        assert all(after[name] <= before[name] <= 1.0 for name in before)
        before = after
