"""Laws of the paired statistics, published values, and statsmodels as an oracle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dllm_qbench.verdict.statistics import (
    Pairs,
    drop_interval,
    holm,
    items_needed,
    mcnemar_worse,
    minimum_detectable_effect,
    relative_drop,
)

counts = st.integers(0, 400)
tables = st.builds(Pairs, counts, counts, counts, counts).filter(lambda pairs: pairs.before > 0)


def test_pairs_count_the_table() -> None:
    before = [True, True, True, False, False, True]
    after = [True, False, True, True, False, False]
    assert Pairs.count(before, after) == Pairs(kept=2, lost=2, gained=1, missed=1)
    with pytest.raises(ValueError, match="2 answers cannot be paired with 1"):
        Pairs.count([True, True], [True])


def test_interval_gives_the_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), the example
    # of Fagerland et al. 2014: ratio 2/8, Tang's asymptotic score interval 0.065 to 0.907.
    low, high = drop_interval(Pairs(kept=1, lost=7, gained=1, missed=12), level=0.95)
    assert 1 - high / 100 == pytest.approx(0.065, abs=5e-4)
    assert 1 - low / 100 == pytest.approx(0.907, abs=5e-4)


@given(tables)
def test_interval_holds_the_estimate_and_has_width(pairs: Pairs) -> None:
    low, high = drop_interval(pairs)
    assert low - 1e-6 <= relative_drop(pairs) <= high + 1e-6
    assert high - low > 1e-3
    assert high <= 100.0


@given(tables)
def test_interval_widens_with_its_level(pairs: Pairs) -> None:
    (low90, high90), (low99, high99) = drop_interval(pairs, 0.90), drop_interval(pairs, 0.99)
    assert low99 <= low90 + 1e-6
    assert high90 <= high99 + 1e-6


@given(tables, st.integers(2, 5))
def test_interval_narrows_with_more_of_the_same_items(pairs: Pairs, times: int) -> None:
    assume(pairs.before >= 5)
    more = Pairs(*(times * n for n in (pairs.kept, pairs.lost, pairs.gained, pairs.missed)))
    low, high = drop_interval(pairs)
    low_more, high_more = drop_interval(more)
    assert high_more - low_more <= high - low + 1e-6


@given(st.integers(1, 5000), st.integers(0, 500))
def test_without_discordant_pairs_the_interval_is_closed_form(kept: int, missed: int) -> None:
    # (1 - theta) / theta = z^2 / kept below 1, its mirror image above.
    low, high = drop_interval(Pairs(kept, 0, 0, missed))
    z2 = 1.6448536269514722**2
    assert high == pytest.approx(100 * (1 - kept / (kept + z2)), abs=1e-4)
    assert low == pytest.approx(100 * (1 - (kept + z2) / kept), abs=1e-4)


def test_nothing_right_before_has_no_interval() -> None:
    with pytest.raises(ValueError, match="nothing was right"):
        drop_interval(Pairs(0, 0, 5, 5))


# P(right before), P(lost), P(gained): the cells of the matrix, from near-lossless to collapse.
SETTINGS = [(0.9, 0.01, 0.01), (0.9, 0.02, 0.0), (0.9, 0.05, 0.01), (0.9, 0.3, 0.01), (0.9, 0.6, 0)]


@pytest.mark.parametrize("items", [100, 500])
@pytest.mark.parametrize(("right", "lost", "gained"), SETTINGS)
def test_each_bound_covers_as_it_says(items: int, right: float, lost: float, gained: float) -> None:
    draws = 2000
    cached = cache(lambda *table: drop_interval(Pairs(*map(int, table))))
    shares = [right - lost, lost, gained, 1 - right - gained]
    tables = np.random.default_rng(0).multinomial(items, shares, size=draws)
    bounds = np.array([cached(*table) for table in tables])
    truth = 100 * (lost - gained) / right
    # Nominal 0.95 a side; an asymptotic interval and 2,000 draws (sd 0.005) are allowed 0.015.
    assert np.mean(bounds[:, 0] <= truth) >= 0.935
    assert np.mean(bounds[:, 1] >= truth) >= 0.935


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_agrees_with_statsmodels(lost: int, gained: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    assume(lost != gained)
    two_sided = mcnemar([[0, lost], [gained, 0]], exact=True).pvalue
    smaller = min(mcnemar_worse(lost, gained), mcnemar_worse(gained, lost))
    assert smaller == pytest.approx(two_sided / 2, rel=1e-9)
    assert (mcnemar_worse(lost, gained) < 0.5) == (lost > gained)


def test_mcnemar_without_changes_says_nothing() -> None:
    assert mcnemar_worse(0, 0) == 1.0


def test_ten_losses_and_no_gain_are_the_first_below_one_in_a_thousand() -> None:
    assert mcnemar_worse(9, 0) == pytest.approx(2**-9)
    assert mcnemar_worse(10, 0) == pytest.approx(2**-10)


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected)


def test_items_needed_settle_what_was_seen() -> None:
    # 2 % lost, 1 % gained of 90 % right: a drop of 1.1 % against a limit of 2.5 %.
    pairs = Pairs(kept=440, lost=10, gained=5, missed=45)
    interval = drop_interval(pairs)
    needed = items_needed(500, interval, relative_drop(pairs), limit=2.5)
    assert needed is not None
    assert needed > 500
    times = -(-needed // 500)
    more = Pairs(*(times * n for n in (440, 10, 5, 45)))
    assert drop_interval(more)[1] < 2.5
    assert minimum_detectable_effect(drop_interval(more)) < minimum_detectable_effect(interval)


def test_a_drop_at_the_limit_needs_more_items_than_anyone_has() -> None:
    assert items_needed(500, (0.0, 2.0), 1.0, limit=1.0) is None


def test_minimum_detectable_effect_is_found_in_four_of_five_runs() -> None:
    # Full precision right on 90 %, 3 % gained; losses so that the true drop is the limit of 1 %
    # plus the effect that these items are said to settle: its lower bound passes the limit in 80 %.
    items, limit, gained = 1000, 1.0, 0.03
    lost = gained + 0.9 * limit / 100
    for _ in range(20):  # the effect depends on the losses and they on it: a fixed point
        table = Pairs(*(round(items * x) for x in (0.9 - lost, lost, gained, 0.1 - gained)))
        effect = minimum_detectable_effect(drop_interval(table))
        lost = gained + 0.9 * (limit + effect) / 100
    draws = np.random.default_rng(1).multinomial(
        items, [0.9 - lost, lost, gained, 0.1 - gained], size=2000
    )
    found = np.mean([drop_interval(Pairs(*map(int, draw)))[0] > limit for draw in draws])
    assert found == pytest.approx(0.80, abs=0.03)
