"""The drop of an average over tasks, and the difference of two drops, with intervals. No torch.

A paper's tables average tasks, each weighing the same however many items it has, and print the drop of
that average:  D = 1 - Q / P,  P and Q the mean over T tasks of full precision's and the quantized
model's accuracy. Items of different tasks are independent; within a task both models answered the same
items, so that their covariance counts. With ratio r = Q / P:

    z(r) = (Q - r P) / sqrt(sum over tasks of Var(q - r p)) * T

and the interval holds the ratios with |z(r)| below the normal quantile: Fieller, "Some problems in
interval estimation", Journal of the Royal Statistical Society B 16 (1954) 175-185. One answer a task is
taken to have changed beyond those that did (1 / n^2 in its variance): without it, a task on which no
answer changed would claim that none ever does.

Two drops are compared by the delta method: each item enters with its influence on either drop, so that
items that both sides answered are paired, and others are not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from dllm_qbench.verdict.statistics import LEVEL

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskAnswers:
    """Right and wrong answers of one task, by item; equal ``keys`` mean equal items."""

    keys: Sequence[Hashable]
    before: Sequence[bool]
    after: Sequence[bool]

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.before) == len(self.after) > 0:
            raise ValueError(
                f"{len(self.keys)} items, {len(self.before)} answers before and {len(self.after)} "
                "after: expected as many of each, at least one"
            )

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.keys)

    @cached_property
    def scores(self) -> TaskScores:
        """The answers' shares and their variances."""
        p, q = np.array(self.before, dtype=float), np.array(self.after, dtype=float)
        covariance = float((p * q).mean() - p.mean() * q.mean())
        return TaskScores(self.items, float(p.mean()), float(q.mean()), covariance)

    def influence(self, ratio: float) -> Floats:
        """How far each item lies above the task's mean of q - ratio * p."""
        x = np.array(self.after, dtype=float) - ratio * np.array(self.before, dtype=float)
        return np.asarray(x - x.mean(), dtype=np.float64)


@dataclass(frozen=True)
class TaskScores:
    """Shares of right answers, 0..1, and the covariance of one item's two answers.

    Where only shares were printed the covariance is not known; 0 errs on the safe side, since an item
    that is hard for the one model is hard for the other.
    """

    items: int
    before: float
    after: float
    covariance: float = 0.0

    def variance(self, ratio: float) -> float:
        """Of the mean of q - ratio * p."""
        a, b, c = self.moments
        return a - 2 * ratio * b + ratio * ratio * c

    @property
    def moments(self) -> tuple[float, float, float]:
        """Var(q), Cov(p, q), Var(p) of the shares."""
        n, p, q = self.items, self.before, self.after
        return q * (1 - q) / n + 1 / n**2, self.covariance / n, p * (1 - p) / n


Task = TaskAnswers | TaskScores


@dataclass(frozen=True)
class Difference:
    """The drop of one side minus that of the other, in points of percent, with a two-sided interval.

    ``paired`` counts the items that both sides answered; ``p_above`` is against "not above zero" and
    ``p_below`` against "not below zero".
    """

    value: float
    interval: tuple[float, float]
    p_above: float
    p_below: float
    paired: int


def drop_of_tasks(tasks: Sequence[Task]) -> float:
    """Relative drop of the average accuracy in percent; ``ValueError`` when nothing was right."""
    p, q = _means(tasks)
    return 100.0 * (1.0 - q / p)


def interval_of_tasks(tasks: Sequence[Task], level: float = LEVEL) -> tuple[float, float]:
    """Interval of ``drop_of_tasks``; its lower end is minus infinity where full precision's average is
    not surely above zero.
    """
    p, q = _means(tasks)
    z = float(norm.ppf(0.5 + level / 2))
    moments = [_scores(task).moments for task in tasks]
    a, b, c = (z**2 * sum(m[k] for m in moments) / len(tasks) ** 2 for k in range(3))
    # r^2 (P^2 - c) - 2 r (P Q - b) + (Q^2 - a) = 0
    lead, half, rest = p * p - c, p * q - b, q * q - a
    if lead <= 0:
        return -math.inf, 100.0
    root = math.sqrt(max(half * half - lead * rest, 0.0))
    low, high = (half - root) / lead, (half + root) / lead
    return 100.0 * (1.0 - high), 100.0 * (1.0 - max(low, 0.0))


def drop_of_tasks_p_value(
    tasks: Sequence[Task], limit: float, side: Literal["above", "below"]
) -> float:
    """P-value that the drop lies on ``side`` of ``limit`` (percent): ``above`` is against "at most"."""
    p, q = _means(tasks)
    ratio = 1.0 - limit / 100.0
    variance = sum(_scores(task).variance(ratio) for task in tasks) / len(tasks) ** 2
    score = (q - ratio * p) / math.sqrt(variance)
    return float(norm.cdf(score) if side == "above" else norm.sf(score))


def compare_drops(one: Sequence[Task], other: Sequence[Task], level: float = LEVEL) -> Difference:
    """Drop of ``one`` minus drop of ``other``; ``ValueError`` when nothing was right in either."""
    value = drop_of_tasks(one) - drop_of_tasks(other)
    variance, paired = 0.0, 0
    sides = [(side, *_means(side)) for side in (one, other)]
    for side, p, q in sides:
        variance += sum(_scores(t).variance(q / p) for t in side) / (p * len(side)) ** 2
    (_, p1, q1), (_, p2, q2) = sides
    for a in one:
        for b in other:
            if isinstance(a, TaskAnswers) and isinstance(b, TaskAnswers):
                at_a, at_b = _common(a.keys, b.keys)
                if at_a:
                    shared = float(a.influence(q1 / p1)[at_a] @ b.influence(q2 / p2)[at_b])
                    weight = a.items * b.items * p1 * len(one) * p2 * len(other)
                    variance -= 2.0 * shared / weight
                    paired += len(at_a)
    # What pairing cancels, one changed answer a task and side (the least above) never does.
    least = sum((1 / (_scores(t).items * p * len(side))) ** 2 for side, p, _ in sides for t in side)
    error = 100.0 * math.sqrt(max(variance, least / 2))
    z = float(norm.ppf(0.5 + level / 2))
    return Difference(
        value,
        (value - z * error, value + z * error),
        float(norm.sf(value / error)),
        float(norm.cdf(value / error)),
        paired,
    )


def _scores(task: Task) -> TaskScores:
    return task.scores if isinstance(task, TaskAnswers) else task


def _means(tasks: Sequence[Task]) -> tuple[float, float]:
    if not tasks:
        raise ValueError("no tasks to average")
    p = fmean(_scores(task).before for task in tasks)
    if p == 0:
        raise ValueError("nothing was right before, so there is no relative drop")
    return p, fmean(_scores(task).after for task in tasks)


def _common(one: Sequence[Hashable], other: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Where the items that both have stand in each."""
    place = {key: at for at, key in enumerate(other)}
    pairs = [(at, place[key]) for at, key in enumerate(one) if key in place]
    return [a for a, _ in pairs], [b for _, b in pairs]
