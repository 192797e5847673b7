"""Runs for the report's data: outcomes with chosen verdicts, and the data held against what it promises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.report import shape
from dllm_qbench.report.data import build


def built(*outcomes: Outcome, **options: Any) -> dict[str, Any]:
    """The data, held against the shape that the page checks, and against a trip through JSON."""
    data = build(outcomes, **options)
    shape.check(data)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    return data


def told(record: Record, status: str = "informational", **changes: Any) -> Outcome:
    """A measured cell with this verdict; ``verdict`` adds to its fields."""
    made = Outcome.of_measurement(record, "told")
    verdict = {**(made.verdict or {}), **changes.pop("verdict", {})}
    return replace(made, status=status, verdict=verdict, **changes)
