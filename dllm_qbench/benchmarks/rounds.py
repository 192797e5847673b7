"""Time contenders in turn in one process, so that whatever the machine does meanwhile hits all alike.

One round times every contender once, in an order drawn anew. Ours is timed by the caller's harness
(pytest-benchmark times what it is given, and not what it calls before): the contenders that come
before ours in a round are timed in the setup of that round, those that come after it in the setup of
the next, or at the end.

A contender's time of a round is the mean of its calls in it: a process that takes turns with us on a
core stretches all contenders alike, if they run for longer than its turns. The shortest call of all is
kept besides, as that which was disturbed least.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import numpy as np

OURS: Final = "ours"
AT_LEAST_S: Final = 1e-2
"""A contender's calls in a round take at least so long: more than two slices of a usual scheduler."""
Call = Callable[[], object]


class Rounds:
    """Seconds a call of each contender, round by round.

    Attributes:
        seconds: by contender, one entry a round; in step after :meth:`finish`.
        shortest: by contender, the shortest call of all rounds; of a device, the shortest round's mean.
        calls: of each contender in a round.
        round_s: what a round takes, as far as the first calls told; 0 without them.
        left_out: rivals that are not timed, with the reason.
    """

    def __init__(
        self,
        ours: Call,
        rivals: Mapping[str, Call],
        *,
        seed: int = 0,
        too_long_s: float = math.inf,
        needed: Collection[str] = (),
        warm: bool = True,
        at_least_s: float = AT_LEAST_S,
        synchronise: Call | None = None,
    ) -> None:
        """Call everything once or twice, to compile it and to see how long it takes.

        Args:
            ours: the kernel.
            rivals: what it is compared with.
            seed: of the order.
            too_long_s: a rival whose one call takes longer is left out, unless it is ``needed``.
            warm: ``False``: call nothing beforehand; each is called once a round.
            at_least_s: what a contender's share of a round takes at least.
            synchronise: waits until a device has done all that was asked of it. Its calls are timed
                together: waiting after each would be timed with it.
        """
        self._synchronise = synchronise
        self._contenders = {OURS: ours}
        self._generator = np.random.default_rng(seed)
        self._later: list[str] = []
        self.left_out: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        self.round_s = 0.0
        for name, call in {OURS: ours, **rivals}.items():
            longest = math.inf if name == OURS or name in needed else too_long_s
            try:
                self.calls[name] = self._calls(name, call, longest, at_least_s) if warm else 1
            except _LeftOutError as error:
                self.left_out[name] = str(error)
            else:
                self._contenders[name] = call
        self.seconds: dict[str, list[float]] = {name: [] for name in self._contenders}
        self.shortest: dict[str, float] = dict.fromkeys(self._contenders, math.inf)

    def _calls(self, name: str, call: Call, too_long_s: float, at_least_s: float) -> int:
        try:
            first, _ = self._time(call, 1)
        except (RuntimeError, NotImplementedError) as error:
            if name == OURS:
                raise
            said = str(error).strip() or type(error).__name__
            raise _LeftOutError(f"refuses: {said.splitlines()[0][:120]}") from error
        if first > too_long_s:
            raise _LeftOutError(f"one call takes {first:.1f} s")
        again, _ = self._time(call, 1)
        calls = max(1, min(1000, math.ceil(at_least_s / max(again, 1e-7))))
        self.round_s += calls * again
        return calls

    def start(self) -> None:
        """Time what is left of the last round, then what comes before ours in the next."""
        self.finish()
        order = [*self._contenders]
        self._generator.shuffle(order)
        at = order.index(OURS)
        for name in order[:at]:
            self._take(name)
        self._later = order[at + 1 :]

    def ours(self) -> None:
        """Time ours: what the harness times."""
        self._take(OURS)

    def finish(self) -> None:
        """Time what is left of the last round."""
        for name in self._later:
            self._take(name)
        self._later = []

    def run(self, rounds: int) -> None:
        """Do so many rounds without a harness."""
        for _ in range(rounds):
            self.start()
            self.ours()
        self.finish()

    def forget(self) -> None:
        """Drop all times."""
        for times in self.seconds.values():
            times.clear()
        self.shortest = dict.fromkeys(self._contenders, math.inf)

    def _take(self, name: str) -> None:
        mean, shortest = self._time(self._contenders[name], self.calls[name])
        self.seconds[name].append(mean)
        self.shortest[name] = min(self.shortest[name], shortest)

    def _time(self, call: Call, calls: int) -> tuple[float, float]:
        """Return the mean seconds of a call, and those of the shortest."""
        if self._synchronise is None:
            each = [_seconds(call) for _ in range(calls)]
            return sum(each) / calls, min(each)
        self._synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self._synchronise()
        mean = (time.perf_counter() - start) / calls
        return mean, mean


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _LeftOutError(Exception):
    """Why a rival is not timed."""
