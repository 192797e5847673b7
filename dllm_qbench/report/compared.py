"""A run beside another one as the report shows it: what ``summary_changes`` finds, by place in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllm_qbench.outcomes import Outcome
from dllm_qbench.report.reading import Cell, read_cells
from dllm_qbench.summary_changes import changes


def comparison(ranked: Sequence[Cell], base: Sequence[Outcome], name: str) -> dict[str, Any]:
    """Changes against ``base``, the worst first; errors in its outcomes name ``name``.

    ``cell`` is a place in ``ranked``; ``p_value`` is ``None`` where the two runs had other items.
    """
    before, notes = read_cells(base, f"{name}: ")
    found = changes([cell.outcome for cell in ranked], [cell.outcome for cell in before])
    place = {(cell.outcome.model, cell.outcome.cell): n for n, cell in enumerate(ranked)}
    return {
        "base": name,
        "both": found.both,
        "changed": [
            {
                "cell": place[change.model, change.cell],
                "before": change.before,
                "status": change.status,
                "lost": change.lost,
                "gained": change.gained,
                "p_value": change.p_value,
                "worse": change.worse,
                "drops": [None if drop is None else round(drop, 4) for drop in change.drops],
                "where": change.where,
            }
            for change in found.changed
        ],
        "new": [f"{model}/{cell}" for model, cell in found.new],
        "gone": [f"{model}/{cell}" for model, cell in found.gone],
        "notes": [*found.notes, *notes],
    }
