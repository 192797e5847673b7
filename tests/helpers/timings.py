"""Simulated timings, as noisy as measured ones, and stored ratios to hold them against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dllm_qbench.benchmarks.gate import Expected, allowed_factor, decide
from dllm_qbench.benchmarks.machine import Machine
from dllm_qbench.benchmarks.ratios import Ratio, ratio
from dllm_qbench.benchmarks.stored import StoredCase

CASE: Final = "hadamard-M512-4096-float32"
MACHINE: Final = Machine("x86_64", "avx2", 4, 4, "Chip")
PROVENANCE: Final[Mapping[str, Any]] = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "abc",
    "backend": "cpu",
    "threads": 4,
    "megahertz": None,
    "versions": {"torch": "2.13.0"},
}


def stored(run: float) -> StoredCase:
    """One run of the case."""
    return StoredCase("copy", (run,), {"copy": 0.5}, PROVENANCE)


class Simulation:
    """Cases whose ratio is 1, but for noise and for what slows ours down.

    Ratios of rounds are lognormal around a level that every run draws anew. ``neighbour``: a busy
    process takes turns with us; each contender's time is drawn up to ``BURST`` times in a share of
    the rounds, and ours loses up to ``SHIFT`` more than its rival over the whole measurement.
    """

    RUN: Final = 0.05
    ROUND: Final = 0.08
    BURST: Final = 2.0
    SHARE: Final = 0.2
    SHIFT: Final = 1.15

    def __init__(self, seed: int, runs: int = 5, rounds: int = 15) -> None:
        self._generator = np.random.default_rng(seed)
        self._runs, self._rounds = runs, rounds

    def fails(self, slower: float) -> bool:
        """Store a quiet machine's runs, then decide on a noisy one, with ours so much slower."""
        runs = [math.exp(self.RUN * self._generator.standard_normal()) for _ in range(self._runs)]
        expected = Expected("rival", float(np.median(runs)), allowed_factor(runs, self.RUN))
        level = math.exp(self.RUN * self._generator.standard_normal()) / slower

        def measure(attempt: int) -> Mapping[str, Ratio]:
            rounds = self._rounds * (1 + attempt)
            ours = self._times(rounds) * self._generator.uniform(1.0, self.SHIFT) / level
            return {"rival": ratio([*map(float, ours)], [*map(float, self._times(rounds))])}

        return decide(measure, (), expected)[1].fails

    def _times(self, rounds: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        noise = np.exp(self.ROUND * self._generator.standard_normal(rounds))
        burst = self._generator.uniform(size=rounds) < self.SHARE
        slowed: np.ndarray[Any, np.dtype[np.float64]] = noise * np.where(burst, self.BURST, 1.0)
        return slowed
