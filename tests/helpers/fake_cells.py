"""Stands in for ``dllm_qbench.engine.cells`` where the plugin is tested: no torch, no model.

``cells.json`` in the working folder says what each cell measures: (kept, lost, gained, missed), the
name of an exception, ``null`` for an interrupt from the keyboard, or an object with ``counts`` and,
if wanted, other fields of the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dllm_qbench.errors import NonFiniteError
from dllm_qbench.records import Record
from tests.helpers.records import PROVENANCE, make_record, spread

DEFAULT = (810, 90, 0, 100)
CHUNK = 50


def measured(cell: str, model: str, counts: tuple[int, int, int, int] = DEFAULT) -> Record:
    """What a cell measures."""
    return spread(make_record(counts=counts, cell=cell, model=model))


class CellRunner:
    provenance = PROVENANCE

    def __init__(self, model: str, items: int, device: str, execution: str = "fake") -> None:
        self.lm = SimpleNamespace(name=model, recipe=None)
        self.calibration = SimpleNamespace(recipe={})
        self.items = items
        self.device = device
        self.execution = execution

    def quantized(self, method: str, scheme: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(name=self.lm.name, recipe={"method": method, "scheme": scheme})

    def subject(self, quantizer: Any, scheme: str, method: str | None = None) -> SimpleNamespace:
        name = quantizer if isinstance(quantizer, str) else f":{quantizer.__name__}"
        return self.quantized(method or name.partition(":")[2], scheme)

    def symptom(self, quantized: Any, task: str, module: str) -> str:
        return f"noise: of {module} in {task}"

    def measure(
        self,
        quantized: Any,
        task: str,
        progress: Callable[[int, int, str], None] | None = None,
        stop: Callable[[Sequence[bool], Sequence[bool]], bool] | None = None,
    ) -> Record:
        cell = "/".join([quantized.recipe["method"], quantized.recipe["scheme"], task])
        plan = Path("cells.json")
        counts = json.loads(plan.read_text()).get(cell, DEFAULT) if plan.exists() else DEFAULT
        if progress:
            progress(1, 2, cell)
        if counts is None:
            raise KeyboardInterrupt
        fields: dict[str, Any] = {}
        if self.execution != "fake":
            fields["provenance"] = {**PROVENANCE, "execution": self.execution}
        if isinstance(counts, dict):
            fields |= {k: tuple(v) if isinstance(v, list) else v for k, v in counts.items()}
            counts = fields.pop("counts")
        if isinstance(counts, str):
            raise NonFiniteError(counts)
        record = replace(measured(cell, quantized.name, counts), **fields)
        for end in range(CHUNK, record.items + 1, CHUNK) if stop else ():
            part = slice(end - CHUNK, end)
            if stop and stop(record.reference_correct[part], record.quantized_correct[part]):
                return record.first(end)
        return record
