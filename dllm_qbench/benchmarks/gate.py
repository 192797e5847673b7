"""Whether a kernel has become slower: a measured ratio against stored runs of it, and against its bar.

**What may vary.** A stored case has the median ratios of several runs, each of a process of its own.
Their spread on a logarithmic scale is what a run differs by when nothing has changed: placement in
memory, clocks, neighbours. A case's own few runs tell its spread badly, so it is drawn towards the
spread of all cases of the file, as if :data:`PRIOR` more runs had shown that (the moderated variance of
Smyth 2004): s^2 = (PRIOR s_all^2 + (n - 1) s_own^2) / (PRIOR + n - 1).

**What is allowed.** The next run differs from the mean of n by a Student t times s sqrt(1 + 1/n). At
:data:`ALPHA` a case that is how far it may fall; never less than :data:`LEAST`, because a busy neighbour
was not there when the runs were stored, and never more than :data:`MOST`, so that half the speed
always fails.

**When it fails.** The whole interval of the measured ratio lies below its limit, which is the allowed
ratio or the bar. A measurement whose median lies below is taken again with more rounds, up to
:data:`ATTEMPTS` times in all: as soon as one median is where it may be the case passes, and the last
measurement fails only by its whole interval. A regression is there again; noise is not. It passes too
where the ratio of the shortest calls, which a neighbour disturbs least, is clear of the limit by
:data:`CLEAR`; by less, that ratio may itself owe to a rival that was never left alone.

**When it does not fail all the same.** Other processes kept more than :data:`QUIET` cores busy during
the last measurement: the case is ``busy``, which is said and fails nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dllm_qbench.benchmarks.ratios import Ratio

ALPHA: Final = 0.001
PRIOR: Final = 4.0
LEAST: Final = math.log(1.25)
MOST: Final = math.log(1.4)
CLEAR: Final = 1.2
ATTEMPTS: Final = 3
QUIET: Final = 0.25
"""Cores that other processes may keep busy while a case is measured and can fail."""

Status = Literal["slower", "below bar", "busy", "not gated", "pass", "faster"]


@dataclass(frozen=True)
class Bar:
    """Ours must be at least so many times as fast as a rival: 0.25 allows four times its time."""

    rival: str
    at_least: float


@dataclass(frozen=True)
class Expected:
    """What stored runs let a ratio to ``rival`` be.

    Attributes:
        ratio: median of the runs.
        allowed: factor, at least 1: the ratio may fall to ``ratio / allowed``.
    """

    rival: str
    ratio: float
    allowed: float


@dataclass(frozen=True)
class Finding:
    """What came of a case.

    Attributes:
        status: the worst that is true of it.
        text: why, for the one who reads a failure; empty where it passes.
        margin: over all limits, the least of the median over the limit, or of the shortest calls' ratio
            over what is clear of it, whichever is greater; ``None``: no limit.
    """

    status: Status
    text: str
    margin: float | None

    @property
    def fails(self) -> bool:
        """Whether the test fails, if this is the last measurement."""
        return self.status in ("slower", "below bar")

    @property
    def doubtful(self) -> bool:
        """Whether it has to be measured again: nothing says that some limit is kept."""
        return self.margin is not None and self.margin < 1


def spread(runs: Sequence[float]) -> float | None:
    """Return the standard deviation of the runs' logarithms; ``None`` of fewer than two."""
    return statistics.stdev(map(math.log, runs)) if len(runs) > 1 else None


def pooled_spread(cases: Sequence[Sequence[float]]) -> float | None:
    """Return the root mean square of the cases' spreads, weighted by their degrees of freedom."""
    known = [(len(runs) - 1, own) for runs in cases if (own := spread(runs)) is not None]
    if not known:
        return None
    return math.sqrt(sum(n * own**2 for n, own in known) / sum(n for n, _ in known))


def allowed_factor(runs: Sequence[float], pooled: float | None) -> float:
    """Return by what factor the next run may fall short of the runs, when nothing has changed.

    Args:
        runs: a case's stored ratios, at least one.
        pooled: :func:`pooled_spread` of the file; ``None``, where no case has two runs, allows the
            most.
    """
    from scipy.stats import t as student  # takes most of a second to import

    own, free = spread(runs), len(runs) - 1
    if pooled is None:
        return math.exp(MOST)
    variance = (PRIOR * pooled**2 + free * (own or 0.0) ** 2) / (PRIOR + free)
    quantile = float(student.ppf(1 - ALPHA, PRIOR + free))
    width = quantile * math.sqrt(variance * (1 + 1 / len(runs)))
    return math.exp(min(MOST, max(LEAST, width)))


def judge(ratios: Mapping[str, Ratio], bars: Sequence[Bar], expected: Expected | None) -> Finding:
    """Hold measured ratios, by rival, against a case's bars and against what was stored of it.

    ``expected=None`` says that nothing is gated here: bars belong to a class of machine too. A bar
    whose rival was not measured fails: it would pass unseen otherwise.
    """
    if expected is None:
        return Finding("not gated", "", None)
    limits = [*bars, Bar(expected.rival, expected.ratio / expected.allowed)]
    missing = sorted({bar.rival for bar in limits} - set(ratios))
    if missing:
        return Finding("below bar", f"no time of {', '.join(missing)} to compare with", 0.0)
    margin = min(_kept(ratios[bar.rival], "median", bar.at_least) for bar in limits)
    missed = [bar for bar in bars if _kept(ratios[bar.rival], "high", bar.at_least) < 1]
    found = ratios[expected.rival]
    slower = _kept(found, "high", expected.ratio / expected.allowed) < 1
    said = [
        f"{shown(ratios[bar.rival])} times as fast as {bar.rival}, the bar is {bar.at_least:.3g}"
        for bar in missed
    ]
    if slower:
        said.append(
            f"{shown(found)} times as fast as {expected.rival}, stored is {expected.ratio:.3g} and its"
            f" spread allows {expected.ratio / expected.allowed:.3g}"
        )
    if said:
        return Finding("below bar" if missed else "slower", "; ".join(said), margin)
    if found.low > expected.ratio * expected.allowed:
        return Finding("faster", "", margin)
    return Finding("pass", "", margin)


def _kept(found: Ratio, by: Literal["median", "high"], limit: float) -> float:
    """Return by what factor a limit is kept: by the median or the interval, or by the shortest calls."""
    return max(found.high if by == "high" else found.median, found.best / CLEAR) / limit


def unless_busy(finding: Finding, others: float | None) -> Finding:
    """Return a finding, but for one that fails while other processes kept the machine busy.

    A neighbour that holds a core does not slow all contenders alike: one that starts its threads often
    waits for the held core often. So nothing fails beside one, and that is said.

    Args:
        finding: of the last measurement.
        others: cores that other processes took meanwhile; ``None``: not known.
    """
    if not finding.fails or others is None or others <= QUIET:
        return finding
    text = f"other processes kept {others:.1f} cores busy: measure again, alone ({finding.text})"
    return Finding("busy", text, finding.margin)


def shown(found: Ratio) -> str:
    """Write a ratio with its interval: ``3.12 [3.01, 3.20]``."""
    return f"{found.median:.3g} [{found.low:.3g}, {found.high:.3g}]"


def decide(
    measure: Callable[[int], Mapping[str, Ratio]],
    bars: Sequence[Bar],
    expected: Expected | None,
    attempts: int = ATTEMPTS,
) -> tuple[Mapping[str, Ratio], Finding, int]:
    """Measure, and where that is doubtful measure again, with more rounds each time.

    Args:
        measure: given how often it has measured before (0, 1, ...), returns ratios by rival.
        bars, expected: as of :func:`judge`.
        attempts: at most so many measurements.

    Returns:
        The ratios and the finding of the last measurement, and how many there were.
    """
    for attempt in range(attempts):
        ratios = measure(attempt)
        finding = judge(ratios, bars, expected)
        if not finding.doubtful:
            break
    return ratios, finding, attempt + 1
