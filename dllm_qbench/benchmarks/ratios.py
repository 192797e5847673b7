"""How many times as fast one contender is as another: median over rounds, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Ratio:
    """``rival's time / our time``: above 1, ours is the faster one.

    Attributes:
        median: over the rounds.
        low, high: ends of the 95 % bootstrap interval of the median.
        best: the rival's shortest call over our shortest. Other programs make times longer and never
            shorter, so this is what they disturb least.
        rounds: how many; of a single round the interval is a point.
    """

    median: float
    low: float
    high: float
    best: float
    rounds: int


def ratio(
    ours_s: Sequence[float],
    rival_s: Sequence[float],
    seed: int = 0,
    *,
    shortest_s: tuple[float, float] | None = None,
) -> Ratio:
    """Take the ratio round by round.

    Args:
        ours_s: seconds of each round ``[rounds]``.
        rival_s: seconds of the rival in the same rounds ``[rounds]``.
        seed: of the resampling.
        shortest_s: seconds of the shortest call of ours and of the rival's; ``None``: of the shortest
            rounds.

    Raises:
        ValueError: no rounds, as many of one as not of the other, or a time that is not above 0.
    """
    if len(ours_s) != len(rival_s) or not ours_s:
        raise ValueError(
            f"ratio: needs the same rounds of both, at least one; found {len(ours_s)} of ours and"
            f" {len(rival_s)} of the rival"
        )
    if not min(*ours_s, *rival_s) > 0:
        raise ValueError("ratio: a time of 0 seconds or less: time more calls a round")
    rounds = np.asarray(rival_s, dtype=float) / np.asarray(ours_s, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(rounds), size=(RESAMPLES, len(rounds)))
    low, high = np.quantile(np.median(rounds[drawn], axis=1), (0.025, 0.975))
    ours, rival = shortest_s or (min(ours_s), min(rival_s))
    return Ratio(float(np.median(rounds)), float(low), float(high), rival / ours, len(rounds))
