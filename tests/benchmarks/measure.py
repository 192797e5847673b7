"""Measure a case through pytest-benchmark, again where it fails, and say what came of it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import torch

from dllm_qbench.benchmarks.gate import Expected, Finding, decide, unless_busy
from dllm_qbench.benchmarks.limits import Roofs
from dllm_qbench.benchmarks.machine import Neighbours, megahertz, package_versions
from dllm_qbench.benchmarks.outcome import KEY, Outcome
from dllm_qbench.benchmarks.ratios import Ratio, ratio
from dllm_qbench.benchmarks.rounds import OURS, Rounds
from dllm_qbench.benchmarks.stored import StoredCase
from dllm_qbench.evaluation.provenance import commit
from tests.benchmarks.cases import Case
from tests.benchmarks.contenders import Contest, backend_of, contest

GATED_S: Final = 4.0
"""Seconds that the rounds of a gated case take, as far as its contenders allow; of others a third."""
FEWEST, MOST = 7, 30
"""Rounds. The interval of a median of fewer than six is its range."""
TOO_LONG_S: Final = 1.0
"""A rival that nothing is gated by, and whose call takes longer, is left out."""


def measure(
    case: Case, benchmark: Any, expected: Expected | None, limits: Callable[[str], Roofs]
) -> Outcome:
    """Time a case and judge it; what came of it is left in the benchmark's ``extra_info``.

    ``expected=None``: there is nothing to hold it against here; it is measured once. ``limits`` gives
    the machine's limits with the rate of a data type.

    Raises:
        AssertionError: ours is further from the exact result than the case allows.
    """
    made = contest(case)
    rounds = _rounds(case, made)
    backend = backend_of(case, made) if made.warm else "torch"
    count = _count(case, rounds)

    neighbours = Neighbours()

    def once(attempt: int) -> Mapping[str, Ratio]:
        rounds.forget()
        gc.collect()
        neighbours.cores()
        if attempt:
            rounds.run(count * (1 + attempt))
        else:
            benchmark.pedantic(rounds.ours, setup=rounds.start, rounds=count, iterations=1)
            rounds.finish()
        return ratios_of(rounds)

    ratios, finding, attempts = decide(once, case.bars, expected)
    finding = unless_busy(finding, neighbours.cores())
    error = made.error()
    assert error <= made.allowed, (
        f"{case.name}: {error:.3g} off the exact result, {made.allowed:.3g} allowed: a wrong kernel's"
        " speed says nothing"
    )
    medians = {name: statistics.median(times) for name, times in rounds.seconds.items()}
    ours_s = medians.pop(OURS)
    outcome = Outcome(
        case.name,
        case.operation,
        case.M,
        case.I,
        case.O,
        case.dtype,
        backend,
        made.moved,
        made.operations,
        made.kind,
        ours_s,
        medians,
        ratios,
        {**made.missing, **rounds.left_out},
        limits(made.kind).seconds(made.moved, made.operations, made.kind),
        error,
        case.bars,
        expected,
        finding,
        attempts,
        len(rounds.seconds[OURS]),
        megahertz(),
        case.gated,
    )
    benchmark.extra_info[KEY] = outcome.to_dict()
    benchmark.extra_info["seconds"] = {name: [*times] for name, times in rounds.seconds.items()}
    benchmark.extra_info["calls"] = dict(rounds.calls)
    return outcome


def ratios_of(rounds: Rounds) -> dict[str, Ratio]:
    """Return ours against every rival that was timed."""
    ours, quick = rounds.seconds[OURS], rounds.shortest
    return {
        name: ratio(ours, times, shortest_s=(quick[OURS], quick[name]))
        for name, times in rounds.seconds.items()
        if name != OURS
    }


def to_store(case: Case, outcome: Outcome) -> StoredCase:
    """Return this run as what is stored of a case."""
    return StoredCase(
        case.main,
        (outcome.ratios[case.main].median,),
        {bar.rival: bar.at_least for bar in case.bars},
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "backend": outcome.backend,
            "threads": torch.get_num_threads(),
            "megahertz": outcome.megahertz,
            "versions": package_versions(),
        },
    )


def failure(outcome: Outcome) -> str:
    """What a failing case says."""
    finding: Finding = outcome.finding
    return (
        f"{outcome.case} ({outcome.backend}): {finding.status}, {outcome.attempts} times in a row:"
        f" {finding.text}"
    )


def _rounds(case: Case, made: Contest) -> Rounds:
    gpu = case.device == "cuda"
    return Rounds(
        made.ours,
        made.rivals,
        seed=case.M,
        too_long_s=TOO_LONG_S,
        needed={case.main, *(bar.rival for bar in case.bars)},
        warm=made.warm,
        synchronise=torch.cuda.synchronize if gpu else None,
    )


def _count(case: Case, rounds: Rounds) -> int:
    if not rounds.round_s:
        return 1
    seconds = GATED_S if case.gated else GATED_S / 3
    return max(FEWEST, min(MOST, int(seconds / rounds.round_s)))
