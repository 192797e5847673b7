"""Stands in for ``dllm_qbench.engine.cells`` where the plugin is tested: no torch, no model.

``cells.json`` in the working folder says what each cell measures: (kept, lost, gained, missed), the
name of an exception, ``null`` for an interrupt from the keyboard, or an object with ``counts`` and
``audit_findings``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dllm_qbench.errors import NonFiniteError
from dllm_qbench.records import Record
from tests.helpers.records import make_record

DEFAULT = (810, 90, 0, 100)


class CellRunner:
    def __init__(self, model: str, items: int) -> None:
        self.lm = SimpleNamespace(name=model, recipe=None)
        self.calibration = SimpleNamespace(recipe={})
        self.items = items

    def quantized(self, method: str, scheme: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(name=self.lm.name, recipe={"method": method, "scheme": scheme})

    def measure(
        self, quantized: Any, task: str, progress: Callable[[int, int, str], None] | None = None
    ) -> Record:
        cell = "/".join([quantized.recipe["method"], quantized.recipe["scheme"], task])
        plan = Path("cells.json")
        counts = json.loads(plan.read_text()).get(cell, DEFAULT) if plan.exists() else DEFAULT
        if progress:
            progress(1, 2, cell)
        if counts is None:
            raise KeyboardInterrupt
        findings: tuple[str, ...] = ()
        if isinstance(counts, dict):
            findings, counts = tuple(counts["audit_findings"]), counts["counts"]
        if isinstance(counts, str):
            raise NonFiniteError(counts)
        record = make_record(counts=counts, cell=cell, model=quantized.name)
        return replace(record, audit_findings=findings)
