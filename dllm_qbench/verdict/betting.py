"""Evidence that may be looked at after every item: betting against a bound on a mean.

Whoever bets a share ``bet`` of the capital, item by item, that X lies above ``bound`` has

    W_t = (1 + bet (X_1 - bound)) ... (1 + bet (X_t - bound)),    W_0 = 1.

Under the hypothesis that each X has mean at most ``bound``, whatever came before, W is a nonnegative
supermartingale, so that it ever exceeds 1/alpha with probability at most alpha (Ville). A mixture of
such bets is one too: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", Journal of the Royal Statistical Society B 86 (2024) 1-27 (their diversified bets on a grid).
The grid is fixed in advance, so that W depends on how often each value came and on nothing else: the
same items give the same evidence, in chunks of any size.

Items must come in an order that has nothing to do with how hard they are: drawn, or shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SMALLEST: Final = 0.05
_LARGEST: Final = 0.999
_BETS: Final = 10
_ON_LARGEST: Final = 0.25


@dataclass(frozen=True)
class Wager:
    """A mixture of bets that X, one of ``values``, is above ``bound`` on average.

    A quarter of the capital goes on the largest bet, which a single item on the wrong side ruins and
    which needs the fewest items where no answer changes, the usual case; the rest is spread evenly
    over smaller ones, down to 5 % of the largest, for streams with changes in both directions.
    ``ValueError`` for a bound that no value lies below: there is nothing to bet against.
    """

    values: tuple[float, ...]
    bound: float

    def __post_init__(self) -> None:
        if not min(self.values) < self.bound:
            raise ValueError(
                f"bound {self.bound:g} is not above the smallest of {self.values}: no stake can be lost"
            )

    def log_evidence(self, counts: ArrayLike) -> NDArray[np.float64]:
        """Natural logarithm of W for how often each value came; ``[..., values]`` -> ``[...]``."""
        shares = np.geomspace(_SMALLEST, _LARGEST, _BETS)
        bets = shares / (self.bound - min(self.values))
        weights = np.full(_BETS, (1.0 - _ON_LARGEST) / (_BETS - 1))
        weights[-1] = _ON_LARGEST
        factors = 1.0 + np.outer(np.asarray(self.values) - self.bound, bets)
        logs = np.asarray(counts, dtype=np.float64) @ np.log(factors) + np.log(weights)
        return np.asarray(np.logaddexp.reduce(logs, axis=-1), dtype=np.float64)
