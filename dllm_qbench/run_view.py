"""What every view of a run has in common (terminal, summary, page, commands): order, sizes, the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dllm_qbench.outcomes import Outcome
    from dllm_qbench.verdict.matrix import MatrixFinding

WORST_FIRST: Final = (
    "infra",
    "degraded",
    "improved",
    "inconclusive",
    "changed",
    "equivalent",
    "informational",
)
"""The statuses of outcomes: a verdict's, by ``verdict.findings.SEVERITY``, then what is only told."""


def severity(status: str) -> int:
    """How bad a status is, the more the worse; one that is not known is the worst."""
    known = status in WORST_FIRST
    return len(WORST_FIRST) - (WORST_FIRST.index(status) if known else -1)


def rank(outcome: Outcome) -> tuple[bool, int, float, str]:
    """Sort by it to have the worst cell first: failing ones, then by status, drop, name."""
    drop = (outcome.verdict or {}).get("drop")
    return not outcome.fails, -severity(outcome.status), -(drop or 0.0), outcome.cell


def items_told(sizes: Iterable[int]) -> str:
    """How many items cells have, ``500`` or ``100-500``; those that were not measured have none.

    >>> items_told([500, 0, 36, 40]), items_told([])
    ('36-500', '0')
    """
    found = sorted({size for size in sizes if size})
    return "-".join(dict.fromkeys(map(str, [*found[:1], *found[-1:]]))) or "0"


def whole_run(outcomes: Sequence[Outcome]) -> tuple[MatrixFinding, ...]:
    """What only all cells together show, in the run's order: of a cell that occurs twice the last counts.

    The result does not depend on the order of different cells, which workers finish in any.
    """
    from dllm_qbench.verdict.matrix import judge_matrix

    unique = {(tests.model, tests.cell): tests for o in outcomes if (tests := o.tests) is not None}
    return judge_matrix([unique[key] for key in sorted(unique)])
