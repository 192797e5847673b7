"""Laws of the paired statistics, published values, and statsmodels as an oracle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from dllm_qbench.verdict.statistics import (
    Pairs,
    drop_interval,
    drop_p_value,
    holm,
    items_needed,
    mcnemar_worse,
    minimum_detectable_effect,
    relative_drop,
    shift_p_value,
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
    assert (mcnemar_worse(lost, gained) <= 0.5) == (lost > gained)  # 1:0 is 0.5 itself


def test_mcnemar_without_changes_says_nothing() -> None:
    assert mcnemar_worse(0, 0) == 1.0


def test_ten_losses_and_no_gain_are_the_first_below_one_in_a_thousand() -> None:
    assert mcnemar_worse(9, 0) == pytest.approx(2**-9)
    assert mcnemar_worse(10, 0) == pytest.approx(2**-10)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0, 50), st.floats(0, 50))
def test_mcnemar_forgives_more_with_a_wider_margin(
    lost: int, gained: int, margin: float, more: float
) -> None:
    assert mcnemar_worse(lost, gained, 0.0) == mcnemar_worse(lost, gained)
    assert mcnemar_worse(lost, gained, margin) <= mcnemar_worse(lost, gained, margin + more) + 1e-12


def test_mcnemar_with_a_margin_of_all_discordant_pairs_says_nothing() -> None:
    assert mcnemar_worse(12, 0, 12) == 1.0
    assert mcnemar_worse(12, 0, 4) == pytest.approx((2 / 3) ** 12)  # 1/2 + 4 / 24
    with pytest.raises(ValueError, match="margin is -1"):
        mcnemar_worse(3, 1, -1)


def error_rate(margin: float, gained: float, level: float, items: int = 2000) -> float:
    """How often a net loss of exactly the margin is rejected, enumerated over losses and gains."""
    lost = gained + margin / items
    most = int(items * lost + 8 * (items * lost) ** 0.5 + 20)
    total = 0.0
    for gains in range(most):
        share = binom.pmf(gains, items, gained)
        losses = np.arange(most)
        p_values = binom.sf(
            losses - 1,
            losses + gains,
            np.minimum(1, 0.5 + margin / 2 / np.maximum(1, losses + gains)),
        )
        given_gains = binom.pmf(losses, items - gains, lost / (1 - gained))
        total += share * given_gains[(p_values <= level) & (losses + gains > 0)].sum()
    return float(total)


@pytest.mark.parametrize("level", [0.05, 0.001])
@pytest.mark.parametrize(("margin", "gained"), [(0, 0.04), (4, 0.002), (10, 0.005), (20, 0.02)])
def test_mcnemar_with_a_margin_keeps_its_level(margin: float, gained: float, level: float) -> None:
    assert 0 < error_rate(margin, gained, level) <= level


def test_mcnemar_with_a_margin_is_too_bold_where_nothing_is_ever_gained() -> None:
    # The limit that its docstring states; a change of the formula has to change that sentence too.
    assert error_rate(20, 0.0, 0.001) == pytest.approx(0.0045, rel=0.05)


limits = st.floats(-50, 100)


@given(tables, limits)
def test_drop_p_value_agrees_with_the_interval(pairs: Pairs, limit: float) -> None:
    low, high = drop_interval(pairs)
    assume(min(abs(low - limit), abs(high - limit)) > 1e-5)  # the interval's ends are searched for
    assert (drop_p_value(pairs, limit, "above") <= 0.05) == (low > limit)
    assert (drop_p_value(pairs, limit, "below") <= 0.05) == (high < limit)


@given(st.integers(1, 5000), st.integers(0, 500))
def test_drop_p_value_without_discordant_pairs_is_closed_form(kept: int, missed: int) -> None:
    z2 = 1.6448536269514722**2
    at_most, at_least = 100 * (1 - kept / (kept + z2)), 100 * (1 - (kept + z2) / kept)
    assert drop_p_value(Pairs(kept, 0, 0, missed), at_most, "below") == pytest.approx(0.05)
    assume(at_least > -1000)
    assert drop_p_value(Pairs(kept, 0, 0, missed), at_least, "above") == pytest.approx(0.05)


@given(tables, limits)
def test_drop_p_values_of_both_sides_add_up(pairs: Pairs, limit: float) -> None:
    above, below = drop_p_value(pairs, limit, "above"), drop_p_value(pairs, limit, "below")
    assert above + below == pytest.approx(1.0)


def test_drop_p_value_without_a_margin_is_mcnemars_asymptotic_one() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    two_sided = mcnemar([[0, 40], [20, 0]], exact=False, correction=False).pvalue
    assert drop_p_value(Pairs(300, 40, 20, 40), 0.0, "above") == pytest.approx(two_sided / 2)


def test_no_drop_exceeds_everything() -> None:
    with pytest.raises(ValueError, match="limit is 101 %"):
        drop_p_value(Pairs(5, 1, 0, 0), 101, "above")
    with pytest.raises(ValueError, match="nothing was right"):
        drop_p_value(Pairs(0, 0, 1, 1), 1, "above")


# Tenths from -10 to 10: spread enough for the t test, and equal ones are truly equal.
shifts = st.lists(st.integers(-100, 100).map(lambda n: n / 10), min_size=2, max_size=30)


@given(shifts)
def test_shift_without_a_margin_is_the_paired_t_test(differences: list[float]) -> None:
    from statsmodels.stats.weightstats import DescrStatsW

    assume(min(differences) < max(differences))
    expected = DescrStatsW(differences).ttest_mean(0.0)[1]
    assert shift_p_value(differences, 0.0) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(shifts, st.floats(0, 10), st.floats(0, 5))
def test_shift_forgives_more_with_a_wider_margin_and_ignores_the_sign(
    differences: list[float], margin: float, more: float
) -> None:
    p_value = shift_p_value(differences, margin)
    assert p_value <= shift_p_value(differences, margin + more)
    assert p_value == pytest.approx(shift_p_value([-x for x in differences], margin))


def test_shift_without_spread_is_inside_or_outside() -> None:
    assert shift_p_value([0.1] * 3, 0.1) == 1.0
    assert shift_p_value([-0.11] * 3, 0.1) == 0.0
    assert shift_p_value([5.0], 0.0) == shift_p_value([], 0.0) == 1.0


@pytest.mark.parametrize(
    ("differences", "margin", "message"),
    [([0.0, float("nan")], 0.0, "not finite"), ([0.0, 1.0], -0.1, "margin is -0.1")],
)
def test_shift_refuses_what_means_nothing(
    differences: list[float], margin: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shift_p_value(differences, margin)


def test_shift_keeps_its_level_at_the_margin() -> None:
    draws = np.random.default_rng(2).normal(0.3, 1.0, size=(2000, 40))
    rejected = np.mean([shift_p_value(list(row), 0.3) <= 0.05 for row in draws])
    # Half of 0.05, since the other end of the margin is out of reach; 2,000 draws: sd 0.0035.
    assert rejected == pytest.approx(0.025, abs=0.011)


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


def test_items_needed_settle_it_at_the_level_that_is_asked_for() -> None:
    # 4 % lost, none gained of 90 % right: a drop of 4.4 % against a limit of 2.5 %.
    pairs = Pairs(kept=430, lost=20, gained=0, missed=50)
    interval = drop_interval(pairs)
    needed = items_needed(500, interval, relative_drop(pairs), limit=2.5, alpha=1e-4)
    assert needed is not None
    times = -(-needed // 500)
    more = Pairs(*(times * n for n in (430, 20, 0, 50)))
    assert drop_p_value(more, 2.5, "above") <= 1e-4
    at_a_bound = items_needed(500, interval, relative_drop(pairs), limit=2.5)
    # (z + 0.84)^2 for z = 3.72 and 1.64.
    assert needed / at_a_bound == pytest.approx((3.719 + 0.842) ** 2 / (1.645 + 0.842) ** 2, 0.01)


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
