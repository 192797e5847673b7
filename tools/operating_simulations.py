"""How often a true loss is caught and an unchanged quantizer is blamed, by our tests and by others'.

Simulated with fixed seeds, vectorised. ``operating_characteristics.py`` makes a page of it.

Notation: an item is ``lost`` when the baseline's answer was right and today's is wrong, ``gained`` when
it is the other way round. Benign flips go both ways at the same rate; a drop adds to the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from peer_rules import PEERS, Bools, Draw, Ints
from scipy.stats import binom, norm

from dllm_qbench.baselines import CellBaseline, read_baselines
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.matrix import ALPHA_RUN
from dllm_qbench.verdict.sequential import ALPHA_EQUIVALENT, DELTA, Sequential, wagers
from dllm_qbench.verdict.statistics import Pairs

ROOT = Path(__file__).parents[1]

TASKS = 3
CELLS = 84
FAMILY = CELLS + CELLS // TASKS
"""Tests of a run: the answers of each cell, and of each quantized model over its tasks."""
FAMILY_SEQUENTIAL = FAMILY + CELLS
"""With one sequential test a cell beside the one at the last item."""
LEVEL = ALPHA_RUN / FAMILY
LEVEL_SEQUENTIAL = ALPHA_RUN / FAMILY_SEQUENTIAL
ACCURACY = 0.9
"""Of the baseline. The embedded models have 0.86 to 0.97 in full precision."""
CHUNK = 50


@dataclass(frozen=True)
class Truth:
    """Items, and what truly happens to them: rates as shares of all items."""

    items: int
    drop: float
    flips: float
    accuracy: float = ACCURACY

    @property
    def lost(self) -> float:
        """Rate of losses: the benign ones and the drop."""
        return self.flips + self.drop

    @property
    def shares(self) -> list[float]:
        """Of kept, lost, gained and missed items."""
        kept, gained = self.accuracy - self.lost, self.flips
        return [kept, self.lost, gained, 1.0 - kept - self.lost - gained]


def draw(truth: Truth, size: int | tuple[int, ...], rng: np.random.Generator) -> Draw:
    """Simulate evaluations of one cell: ``size`` -> arrays of that shape."""
    counts = rng.multinomial(truth.items, truth.shares, size=size)
    return Draw(truth.items, counts[..., 0] + counts[..., 1], counts[..., 1], counts[..., 2])


# --- ours --------------------------------------------------------------------------------------


@cache
def critical(level: float, most: int) -> Ints:
    """Fewest losses that McNemar's exact test rejects, by the number of discordant pairs."""
    return np.asarray(binom.isf(level, np.arange(most + 1), 0.5)).astype(np.int64) + 1


def mcnemar(lost: Ints, gained: Ints, level: float = LEVEL) -> Bools:
    """Where ``mcnemar_worse(lost, gained) <= level``."""
    discordant = lost + gained
    return lost >= critical(level, int(discordant.max(initial=0)))[discordant]


def power(truth: Truth, level: float, tasks: int = 1) -> float:
    """Exact catch probability of the test on ``tasks`` cells together, without simulation."""
    items, rate = truth.items * tasks, truth.lost + truth.flips
    discordant = np.arange(items + 1)
    caught = binom.sf(critical(level, items) - 1, discordant, truth.lost / rate)
    return float(np.sum(binom.pmf(discordant, items, rate) * caught))


def equivalent_at_end(lost: Ints, gained: Ints, items: int, delta: float = DELTA) -> Bools:
    """Where a fixed number of items rules out a net loss of ``delta``, at ``ALPHA_EQUIVALENT``.

    Score test of the difference of paired proportions: Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    a = 2.0 * items
    b = -(lost + gained) + (2.0 * items - lost + gained) * delta
    c = -gained * delta * (1.0 - delta)
    rate = (np.sqrt(b * b - 4.0 * a * c) - b) / (2.0 * a)
    error = np.sqrt(items * (2.0 * rate + delta * (1.0 - delta)))
    return np.asarray(norm.cdf((lost - gained - items * delta) / error) <= ALPHA_EQUIVALENT)


def items_for(wanted: float, truth: Truth, level: float, step: int = 20) -> int:
    """Items for which one cell's test has the wanted power, to the next ``step``."""
    items = step
    while power(replace(truth, items=items), level) < wanted:
        items += step
    return items


# --- simulations -------------------------------------------------------------------------------


def pooled(seen: Draw) -> Draw:
    """The tasks of each quantized model together; the cells are in the last dimension."""
    shape = (*seen.before.shape[:-1], -1, TASKS)
    before, lost, gained = (x.reshape(shape).sum(-1) for x in (seen.before, seen.lost, seen.gained))
    return Draw(seen.items * TASKS, before, lost, gained)


def catches(truth: Truth, draws: int, seed: int) -> dict[str, float]:
    """Share of simulated runs in which each rule blames the quantizer.

    Peers and "one cell": on one cell. "pooled": over the tasks of one quantized model, all with this
    drop; so are peers with ", pooled" behind their name. "any": on one of its cells or pooled, which
    is what a run reports.
    """
    seen = draw(truth, (draws, TASKS), np.random.default_rng([seed, truth.items]))
    first = Draw(seen.items, seen.before[:, 0], seen.lost[:, 0], seen.gained[:, 0])
    together = pooled(seen)
    cells = mcnemar(seen.lost, seen.gained)
    model = mcnemar(together.lost, together.gained)[:, 0]
    found = {name: rule(first) for name, rule in PEERS.items()}
    found |= {f"{name}, pooled": rule(together)[:, 0] for name, rule in PEERS.items()}
    found |= {"one cell": cells[:, 0], "pooled": model, "any": model | cells.any(axis=1)}
    return {name: float(np.mean(alarm)) for name, alarm in found.items()}


def false_alarms(truth: Truth, runs: int, seed: int) -> dict[str, float]:
    """Share of whole runs of 84 cells, none of them changed, with an alarm anywhere.

    Holm rejects something exactly where the smallest p-value is at most alpha / tests, so "any" is the
    family-wise error of ``judge_matrix``. Peers with ", pooled" behind their name judge the 28
    quantized models instead of the cells.
    """
    seen = draw(replace(truth, drop=0.0), (runs, CELLS), np.random.default_rng([seed, truth.items]))
    together = pooled(seen)
    ours = mcnemar(seen.lost, seen.gained).any(1) | mcnemar(together.lost, together.gained).any(1)
    found = {"any": ours}
    for name, rule in PEERS.items():
        found |= {name: rule(seen).any(axis=1), f"{name}, pooled": rule(together).any(axis=1)}
    return {name: float(np.mean(alarm)) for name, alarm in found.items()}


@dataclass(frozen=True)
class Sequel:
    """What became of simulated sequential evaluations; shares, and the mean number of items."""

    degraded: float
    equivalent: float
    caught: float
    items: float


def sequels(
    truth: Truth, draws: int, seed: int, level: float = LEVEL_SEQUENTIAL, cells: int = 1
) -> Sequel:
    """Sequential evaluations in chunks, judged by the answers against the baseline's only.

    As in ``Sequential`` with a near-lossless band, so that *worse* gets half of ``level``; what is not
    settled at the last item is tested there once more, at ``level``. With ``cells``, the shares are of
    runs with at least one such cell.
    """
    rng = np.random.default_rng([seed, truth.items])
    sizes = np.diff([*range(0, truth.items, CHUNK), truth.items])
    parts = [rng.multinomial(size, truth.shares, size=(draws * cells)) for size in sizes]
    counts = np.cumsum(np.stack(parts, axis=1), axis=1)  # [streams, looks, (kept, lost, ...)]
    answers = np.stack([counts[..., 1], counts[..., 2], counts[..., 0] + counts[..., 3]], axis=-1)
    bets = wagers(Band("near-lossless", max_drop=1.0))
    worse = bets["worse"].log_evidence(answers) >= np.log(2.0 / level)
    same = bets["no worse"].log_evidence(answers) >= np.log(1.0 / ALPHA_EQUIVALENT)
    looks = len(sizes)
    first_worse = np.where(worse.any(1), worse.argmax(1), looks)
    first_same = np.where(same.any(1), same.argmax(1), looks)
    degraded = (first_worse < looks) & (first_worse <= first_same)
    equivalent = (first_same < looks) & ~degraded
    at_end = ~degraded & ~equivalent
    last = mcnemar(counts[:, -1, 1], counts[:, -1, 2], level)
    used = np.cumsum(sizes)[np.minimum(np.minimum(first_worse, first_same), looks - 1)]

    def share(found: Bools) -> float:
        return float(np.mean(found.reshape(draws, cells).any(axis=1)))

    return Sequel(
        share(degraded), share(equivalent), share(degraded | (at_end & last)), float(np.mean(used))
    )


# --- the stored baselines ----------------------------------------------------------------------


def stored_cells() -> list[CellBaseline]:
    """All cells of all baselines."""
    files = sorted((ROOT / "baselines").glob("*.json"))
    return [cell for file in files for cell in read_baselines(file).cells.values()]


def changed(
    answers: Sequence[bool], drop: float, flips: float, rng: np.random.Generator
) -> list[bool]:
    """Stored answers after a simulated change: flips both ways, and a drop in points / 100.

    Rates are shares of all items, so a cell with few wrong answers cannot gain more than those.
    """
    right = np.array(answers)
    share = right.mean()
    lose = min(1.0, (flips + drop) / max(share, 1e-9))
    gain = min(1.0, flips / max(1.0 - share, 1e-9))
    chance = rng.random(right.size)
    return list(map(bool, np.where(right, chance >= lose, chance < gain)))


@dataclass(frozen=True)
class Replay:
    """Shares of replayed cells by outcome, and the mean number of items used.

    ``caught`` and ``same`` are with the fixed tests at the last item where nothing was settled before;
    ``caught_fixed`` and ``same_fixed`` are those tests alone, which use all items.
    """

    degraded: float
    improved: float
    equivalent: float
    caught: float
    same: float
    caught_fixed: float
    same_fixed: float
    items: float


def replay(
    cells: Sequence[CellBaseline], items: int, drop: float, flips: float, repeats: int, seed: int
) -> Replay:
    """Run ``Sequential`` on stored answers, changed or not, with the cells' own bands."""
    status: list[str] = []
    used: list[int] = []
    flips_seen: list[tuple[int, int]] = []
    for number, cell in enumerate([*cells] * repeats):
        rng = np.random.default_rng([seed, number])
        before = cell.quantized_correct[:items]
        now = changed(before, drop, flips, rng) if drop or flips else list(before)
        run = Sequential(cell.band, LEVEL_SEQUENTIAL)
        for at in range(0, items, CHUNK):
            span = slice(at, min(at + CHUNK, items))
            if run.add(cell.reference_correct[span], now[span], before[span]):
                break
        status.append(run.settled.status if run.settled else "open")
        used.append(run.items)
        pairs = Pairs.count(before, now)
        flips_seen.append((pairs.lost, pairs.gained))
    lost, gained = np.array(flips_seen).T
    worse, same = mcnemar(lost, gained), equivalent_at_end(lost, gained, items)
    worse_at_end = mcnemar(lost, gained, LEVEL_SEQUENTIAL)
    outcome = np.array(status)
    still_open = outcome == "open"
    return Replay(
        degraded=float(np.mean(outcome == "degraded")),
        improved=float(np.mean(outcome == "improved")),
        equivalent=float(np.mean(outcome == "equivalent")),
        caught=float(np.mean((outcome == "degraded") | (still_open & worse_at_end))),
        same=float(np.mean((outcome == "equivalent") | (still_open & same & ~worse_at_end))),
        caught_fixed=float(np.mean(worse)),
        same_fixed=float(np.mean(same & ~worse)),
        items=float(np.mean(used)),
    )
