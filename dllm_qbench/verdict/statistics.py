"""Paired statistics on right/wrong answers to the same items.

Notation of the 2x2 table, ``before`` in the rows and ``after`` in the columns (full precision and
quantized, or the baseline's quantized answers and today's):

    n = kept + lost + gained + missed;  right before: kept + lost;  right after: kept + gained

Interval for the ratio of paired proportions: the asymptotic score interval of Tang, Tang and Chan,
"On tests of equivalence via non-unity relative risk for matched-pair design", Statistics in Medicine
22 (2003) 1217-1233, recommended by Fagerland, Lydersen and Laake, "Recommended tests and confidence
intervals for paired binomial proportions", Statistics in Medicine 33 (2014) 2850-2875. The closed
form that they recommend beside it (Bonett and Price 2006) was rejected after simulation: where losses
are few and all one way, the usual case here, its one-sided lower bound for the ratio covers 0.89 to
0.90 instead of 0.95; the score interval covers 0.95 to 0.97.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student

LEVEL: Final = 0.90
"""Two-sided level of the intervals, so that each end is a one-sided 95 % bound."""
BOUND: Final = 0.05
"""One-sided level of an interval's end."""
POWER: Final = 0.80
"""Power that the minimum detectable effect and the number of items needed refer to."""
MAX_ITEMS_NEEDED: Final = 1_000_000


@dataclass(frozen=True)
class Pairs:
    """Counts of the paired table: right both times, right before only, after only, never."""

    kept: int
    lost: int
    gained: int
    missed: int

    @classmethod
    def count(cls, before: Sequence[bool], after: Sequence[bool]) -> Pairs:
        """Count two equally long sequences of right (true) and wrong answers."""
        if len(before) != len(after):
            raise ValueError(f"{len(before)} answers cannot be paired with {len(after)}")
        kept = sum(a and b for a, b in zip(before, after, strict=True))
        lost, gained = sum(before) - kept, sum(after) - kept
        return cls(kept, lost, gained, len(before) - kept - lost - gained)

    @property
    def items(self) -> int:
        """Number of pairs."""
        return self.kept + self.lost + self.gained + self.missed

    @property
    def before(self) -> int:
        """Number right before."""
        return self.kept + self.lost

    @property
    def after(self) -> int:
        """Number right after."""
        return self.kept + self.gained


def relative_drop(pairs: Pairs) -> float:
    """Drop in percent of what was right before; ``ValueError`` when nothing was."""
    if pairs.before == 0:
        raise ValueError("nothing was right before, so there is no relative drop")
    return 100.0 * (pairs.lost - pairs.gained) / pairs.before


def drop_interval(pairs: Pairs, level: float = LEVEL) -> tuple[float, float]:
    """Interval for the relative drop in percent, by inverting the score test of the ratio.

    Sound without a single discordant pair, where its ends are about ``-+100 z^2 / before``.
    ``ValueError`` when nothing was right before.
    """
    relative_drop(pairs)
    z = float(norm.ppf(0.5 + level / 2))
    ratio = pairs.after / pairs.before
    low = 0.0
    if ratio > 0:
        low = brentq(lambda theta: _score(pairs, theta) - z, ratio * 1e-9, ratio, xtol=1e-9)
    above = ratio + 1.0
    while _score(pairs, above) > -z:
        above *= 2
    high = brentq(lambda theta: _score(pairs, theta) + z, ratio, above, xtol=1e-9)
    return 100.0 * (1.0 - float(high)), 100.0 * (1.0 - float(low))


def drop_p_value(pairs: Pairs, limit: float, side: Literal["above", "below"]) -> float:
    """P-value that the relative drop lies on ``side`` of ``limit`` (percent, at most 100).

    ``above`` tests the hypothesis "the drop is at most the limit", ``below`` "at least the limit", by
    the score test whose inversion is ``drop_interval``: it is at most 0.05 exactly where that
    interval's end, a one-sided 95 % bound, lies beyond the limit. ``ValueError`` when nothing was
    right before, and for a limit that no drop can exceed.
    """
    relative_drop(pairs)
    if not limit <= 100.0:
        raise ValueError(f"limit is {limit:g} %, expected a relative drop of at most 100 %")
    score = _score(pairs, 1.0 - limit / 100.0)
    return float(norm.cdf(score) if side == "above" else norm.sf(score))


def _score(pairs: Pairs, theta: float) -> float:
    """Score statistic of the hypothesis P(right after) = theta P(right before); falls with theta.

    ``lost`` is the maximum-likelihood probability of a loss under the hypothesis: the larger root
    of a x^2 + b x + c = 0 (Tang et al. 2003).
    """
    n, seen = pairs.items, pairs.kept + pairs.lost + pairs.gained
    a = n * (1.0 + theta)
    b = pairs.before * theta**2 - (pairs.after + 2 * pairs.lost)
    c = pairs.lost * (1.0 - theta) * seen / n
    lost = (-b + math.sqrt(max(b * b - 4.0 * a * c, 0.0))) / (2.0 * a)
    variance = n * (1.0 + theta) * lost + seen * (theta - 1.0)
    difference = pairs.after - theta * pairs.before
    # Zero only where the difference is zero too, when no discordant pair pulls at theta = 1.
    return difference / math.sqrt(max(variance, 1e-12))


def mcnemar_worse(lost: int, gained: int, margin: float = 0.0) -> float:
    """One-sided McNemar p-value against "answers are lost no more often than gained".

    ``margin`` is the net loss, in items, that a benign change may have. Given the N discordant pairs,
    the hypothesis is P(lost) <= 1/2 + margin / (2 N), tested by the binomial distribution.

    Exact without a margin. With one, N stands for its own expectation; enumerated on 2,000 items the
    error rate stays below its level, except where more than about 10 items are forgiven and next to
    none are gained: there (20 forgiven, none gained) it reaches 4.5 times a level of 0.001.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin is {margin}, expected a number of items, zero or more")
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    share = min(1.0, 0.5 + margin / (2 * discordant))
    return float(binomtest(lost, discordant, share, alternative="greater").pvalue)


def shift_p_value(differences: Sequence[float], margin: float) -> float:
    """P-value against "the mean of paired per-item differences is within ``margin`` of zero".

    Student's t against the nearer end of the margin, two-sided by doubling: with no margin it is the
    paired t test, with one it errs on the safe side. Fewer than two items say nothing (1.0);
    differences without any spread are outside the margin (0.0) or not (1.0). Margin and differences
    in the same unit. ``ValueError`` for values that are not finite, and for a negative margin.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin is {margin}, expected a finite number, zero or more")
    if not all(map(math.isfinite, differences)):
        raise ValueError(
            "differences hold a value that is not finite; score what was measured only"
        )
    items = len(differences)
    if items < 2:
        return 1.0
    mean = math.fsum(differences) / items
    if min(differences) == max(differences):
        return 1.0 if abs(differences[0]) <= margin else 0.0
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (items - 1) / items)
    return min(1.0, 2.0 * float(student.sf((abs(mean) - margin) / error, items - 1)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment: reject where the result is at most the family-wise alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def minimum_detectable_effect(interval: tuple[float, float], alpha: float = BOUND) -> float:
    """Distance from a limit, in percent, that as many items settle at ``alpha`` in four of five runs.

    Taken from the interval's width, so it holds for the share of changed answers that was seen.
    """
    error = (interval[1] - interval[0]) / (2.0 * float(norm.ppf(0.5 + LEVEL / 2)))
    return float((norm.isf(alpha) + norm.ppf(POWER)) * error)


def items_needed(
    items: int,
    interval: tuple[float, float],
    drop: float,
    limit: float,
    alpha: float = BOUND,
) -> int | None:
    """Items that would settle, at ``alpha``, on which side of ``limit`` a true drop like this lies.

    ``None`` when that takes more than a million: the drop is at the limit as far as one can tell.
    """
    distance = abs(limit - drop)
    effect = minimum_detectable_effect(interval, alpha)
    if distance * math.sqrt(MAX_ITEMS_NEEDED) <= effect * math.sqrt(items):
        return None
    return max(items + 1, math.ceil(items * (effect / distance) ** 2))
