"""Every kernel keeps its bars, and its ratio to its main rival, on the class of machine it was stored of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.cases import Case

if TYPE_CHECKING:
    from tests.benchmarks.plugin import Benchmarks


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # a rival's
def test_kernel_is_as_fast_as_it_was(case: Case, benchmark: Any, benchmarks: Benchmarks) -> None:
    from tests.benchmarks.measure import failure, measure, to_store

    assert benchmark.enabled, "pytest-benchmark is switched off: nothing would be timed"
    # Among all shapes memory is in another state than in the short run, whose ratios are stored.
    gated = case.minutes or not benchmarks.every_shape
    expected = benchmarks.expected(case.name, case.bars) if gated else None
    outcome = measure(case, benchmark, expected, benchmarks.limits)
    if benchmarks.updates and case.gated:
        outcome = benchmarks.store(outcome, to_store(case, outcome))
    benchmarks.outcomes.append(outcome)
    if outcome.stored:
        pytest.fail(
            f"{case.name}: stored in {benchmarks.path}: review the change, then run without"
            " --qbench-update-benchmarks",
            pytrace=False,
        )
    if outcome.finding.fails:
        pytest.fail(failure(outcome), pytrace=False)
