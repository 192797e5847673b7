"""When may an evaluation stop? A verdict that holds at whatever item it is read.

Every item gives three answers: full precision's, the quantized model's, and the quantized model's
when the baseline was stored. Five hypotheses are bet against (``betting.py``), with

    change = baseline - quantized                in {-1, 0, 1}
    excess = reference (1 - L) - quantized       in {-1, -L, 0, 1 - L},  L the drop as a fraction

    worse         mean change <= margin          rejected: answers are lost
    no worse      mean change >= delta           rejected: not by as much as delta
    no better     mean change <= -delta          rejected: not by as much as delta
    above         mean excess <= 0, L = max_drop rejected: the drop is above the band
    below         mean excess >= 0, L = min_drop rejected: the drop is below the band

``degraded`` is settled by *worse* or *above*, ``improved`` by *below*, each at an equal share of
``alpha``: the chance that a quantizer that is no worse than its baseline and inside its band is ever
called either is at most ``alpha``, over all items together. ``equivalent`` is settled by *no worse*
(and by *no better* where the band has a ``min_drop``, which a layer left unquantized would pass)
unless the drop looks to be outside the band: the baseline's own place in the band was settled on
more items. The chance to settle it on a quantizer that loses ``delta`` or more is at most
``alpha_equivalent``.

The fixed test at the last item remains. It and this one are two chances for a false alarm, so both
count as tests of the run (``matrix.cell_alpha``); ``Sequential.p_value`` is what to hand on as one more
of the cell's tests. The fixed test's p-value holds only where the last item was reached: who stops
when things look well, or ill, may not then test as if the number of items had been settled before.
(The run's pooled test takes the counts of cells that stopped early as well. In simulated unchanged
runs it stayed below its level; that is not proved.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.betting import Wager
from dllm_qbench.verdict.statistics import Pairs

DELTA: Final = 0.03
"""Smallest loss of interest, as a share of all items (0.03: three points of accuracy)."""
ALPHA_EQUIVALENT: Final = 0.05
"""Chance to call a quantizer that loses ``DELTA`` equivalent; the level of the intervals' ends."""

_CHANGES: Final = (1.0, -1.0, 0.0)  # lost, gained, the rest


@dataclass(frozen=True)
class Settled:
    """A verdict that more items would not be needed for, and on how many it stands.

    ``text`` says why. ``p_value`` holds at any stopping time: ``Sequential.p_value``, or that of *no
    worse* (and *no better*, the larger) where the verdict is ``equivalent``.
    """

    status: Literal["degraded", "improved", "equivalent"]
    text: str
    items: int
    p_value: float


class Sequential:
    """The evidence of one cell, chunk by chunk; ``settled`` is ``None`` as long as nothing is.

    Args:
        band: the cell's band.
        alpha: chance of ever settling ``degraded`` or ``improved`` without cause; in a run of many
            tests, ``matrix.cell_alpha(tests_in_run)``.
        alpha_equivalent: chance of settling ``equivalent`` on a loss of ``delta``.
        delta: smallest loss of interest, a share of all items.
        margin: net loss that a benign change may have, a share of all items, below ``delta``.

    Raises ``ValueError`` for levels outside 0 to 1 and margins that leave no room.
    """

    def __init__(
        self,
        band: Band,
        alpha: float,
        *,
        alpha_equivalent: float = ALPHA_EQUIVALENT,
        delta: float = DELTA,
        margin: float = 0.0,
    ) -> None:
        for name, level in (("alpha", alpha), ("alpha_equivalent", alpha_equivalent)):
            if not 0.0 < level < 1.0:
                raise ValueError(f"{name} is {level}, expected a probability between 0 and 1")
        if not 0.0 <= margin < delta < 1.0:
            raise ValueError(
                f"margin {margin} and delta {delta}: expected 0 <= margin < delta < 1, as shares of items"
            )
        self.band = band
        self.alpha, self.alpha_equivalent = alpha, alpha_equivalent
        self.delta, self.margin = delta, margin
        self.settled: Settled | None = None
        self._answers = Pairs(0, 0, 0, 0)  # the baseline's and today's
        self._drop = Pairs(0, 0, 0, 0)  # full precision's and today's
        self._wagers = wagers(band, delta, margin)
        self._best = dict.fromkeys(self._wagers, 0.0)  # W_0 = 1

    @property
    def items(self) -> int:
        """Number of items seen."""
        return self._answers.items

    @property
    def p_values(self) -> Mapping[str, float]:
        """Of each hypothesis, valid at any stopping time: one over the most evidence there ever was.

        A small one of *no worse* or *no better* is good news.
        """
        return {name: math.exp(-best) for name, best in self._best.items()}

    @property
    def p_value(self) -> float:
        """Against "no worse than the baseline and inside the band", for ``matrix.CellTests``; at most
        ``alpha`` exactly where ``degraded`` or ``improved`` is settled.
        """
        p_values, failing = self.p_values, self._failing
        return min(1.0, len(failing) * min(p_values[name] for name in failing))

    @property
    def _failing(self) -> list[str]:
        return [name for name in ("worse", "above", "below") if name in self._wagers]

    def add(
        self,
        reference_correct: Sequence[bool],
        quantized_correct: Sequence[bool],
        baseline_correct: Sequence[bool],
    ) -> Settled | None:
        """Take the next items' answers, any number of them, and return ``settled``.

        What is settled stays settled, and items after it change nothing. ``ValueError`` when the three
        are not equally long.
        """
        answers = Pairs.count(baseline_correct, quantized_correct)
        drop = Pairs.count(reference_correct, quantized_correct)
        if self.settled is None:
            self._answers = _sum(self._answers, answers)
            self._drop = _sum(self._drop, drop)
            self._weigh()
            self.settled = self._settle()
        return self.settled

    def _weigh(self) -> None:
        for name, wager in self._wagers.items():
            counts = (
                _drop_counts(self._drop) if name in {"above", "below"} else _counts(self._answers)
            )
            self._best[name] = max(self._best[name], float(wager.log_evidence(counts)))

    def _settle(self) -> Settled | None:
        p_values = self.p_values
        worst = min(self._failing, key=lambda name: p_values[name])
        if self.p_value <= self.alpha:
            return Settled(
                "improved" if worst == "below" else "degraded",
                f"{self._reason(worst)}; settled after {self.items} items "
                f"(p = {self.p_value:.1g} at any stopping time)",
                self.items,
                self.p_value,
            )
        needed = ["no worse"] if self.band.min_drop is None else ["no worse", "no better"]
        p_value = max(p_values[name] for name in needed)
        # As sure as the interval's ends would have to be for a verdict at a fixed number of items.
        outside = min((p_values[n] for n in ("above", "below") if n in p_values), default=1.0)
        if p_value <= self.alpha_equivalent < outside:
            return Settled(
                "equivalent",
                f"{self._flips()}: {' and '.join(needed)} than the baseline by {100 * self.delta:g} "
                f"points; settled after {self.items} items (p = {p_value:.1g} at any stopping time)",
                self.items,
                p_value,
            )
        return None

    def _reason(self, name: str) -> str:
        if name == "worse":
            allowed = f" by more than {100 * self.margin:g} points" if self.margin else ""
            return f"{self._flips()}: worse than the baseline{allowed}"
        limit = self.band.max_drop if name == "above" else self.band.min_drop
        return f"the drop is surely {name} {limit:g} %"

    def _flips(self) -> str:
        return f"{self._answers.lost} answers became wrong and {self._answers.gained} right"


class Watch:
    """A cell's evidence as an evaluation loop feeds it; ``watch(reference, quantized)`` says to stop.

    ``baseline`` holds the stored right and wrong answers; items beyond them cannot be compared.
    """

    def __init__(self, evidence: Sequential, baseline: Sequence[bool]) -> None:
        self.evidence = evidence
        self._baseline = baseline
        self._seen = 0

    def __call__(
        self, reference_correct: Sequence[bool], quantized_correct: Sequence[bool]
    ) -> bool:
        """Take the next items' answers and say whether the verdict is settled."""
        before = self._baseline[self._seen : self._seen + len(quantized_correct)]
        self._seen += len(quantized_correct)
        size = len(before)
        return (
            self.evidence.add(reference_correct[:size], quantized_correct[:size], before)
            is not None
        )

    @property
    def settled(self) -> Settled | None:
        """The verdict that more items would not be needed for."""
        return self.evidence.settled

    @property
    def p_value(self) -> float:
        """Of ``evidence``."""
        return self.evidence.p_value


def wagers(band: Band, delta: float = DELTA, margin: float = 0.0) -> dict[str, Wager]:
    """What is bet against, by name; counts go in as ``(lost, gained, rest)`` of the answers against
    the baseline's, for ``above`` and ``below`` as ``(kept, lost, gained, missed)`` of the answers
    against full precision's. The band decides which of the two there are.
    """
    gains = tuple(-x for x in _CHANGES)
    bets = {
        "worse": Wager(_CHANGES, margin),
        "no worse": Wager(gains, -delta),
        "no better": Wager(_CHANGES, -delta),
    }
    if band.max_drop is not None:
        bets["above"] = Wager(_excess(band.max_drop), 0.0)
    # From 100 % on, one right answer refutes the band: nothing to bet on, and the fixed test sees it.
    if band.min_drop is not None and band.min_drop < 100.0:
        bets["below"] = Wager(tuple(-x for x in _excess(band.min_drop)), 0.0)
    return bets


def _excess(limit: float) -> tuple[float, ...]:
    share = limit / 100.0
    return (-share, 1.0 - share, -1.0, 0.0)  # kept, lost, gained, missed


def _counts(pairs: Pairs) -> np.ndarray:
    return np.array([pairs.lost, pairs.gained, pairs.kept + pairs.missed])


def _drop_counts(pairs: Pairs) -> np.ndarray:
    return np.array([pairs.kept, pairs.lost, pairs.gained, pairs.missed])


def _sum(a: Pairs, b: Pairs) -> Pairs:
    return Pairs(a.kept + b.kept, a.lost + b.lost, a.gained + b.gained, a.missed + b.missed)
