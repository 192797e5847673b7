"""The heat maps' axes: for each model its tasks, and a row for each method and scheme, in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dllm_qbench.errors import SchemeError
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.report.reading import Cell
from dllm_qbench.run_view import items_told

METHODS: Final = ("rtn", "gptq", "awq", "smoothquant", "quarot", "duquant")
_TASKS: Final = ("general", "math", "code")


def models(ranked: Sequence[Cell], run: Sequence[Cell]) -> list[dict[str, Any]]:
    """One entry a model, the one with the worst cell first.

    Args:
        ranked: the cells in the order in which the report has them; rows refer to their places.
        run: the same cells in the order in which they were measured.
    """
    place = {cell.id: index for index, cell in enumerate(ranked)}
    names = dict.fromkeys(cell.outcome.model for cell in ranked)
    return [
        _model(name, [cell for cell in run if cell.outcome.model == name], place) for name in names
    ]


def _model(name: str, cells: Sequence[Cell], place: Mapping[str, int]) -> dict[str, Any]:
    at = {cell.parts: place[cell.id] for cell in cells}
    met = list(dict.fromkeys(task for _, _, task in at))
    tasks = [
        *(task for task in _TASKS if task in met),
        *(task for task in met if task not in _TASKS),
    ]
    rows = sorted({(method, scheme) for method, scheme, _ in at}, key=_row_order)
    return {
        "name": name,
        "items": items_told(cell.outcome.items for cell in cells),
        "tasks": tasks,
        "rows": [
            {
                "method": method,
                "scheme": scheme,
                "cells": [at.get((method, scheme, task)) for task in tasks],
            }
            for method, scheme in rows
        ],
    }


def _row_order(row: tuple[str, str]) -> tuple[Any, ...]:
    """Known methods first; of one method's schemes the gentlest first, weight-only ones before others."""
    method, scheme = row
    known = METHODS.index(method) if method in METHODS else len(METHODS)
    return known, method, scheme_order(scheme), scheme


def scheme_order(text: str) -> tuple[bool, float, float, float]:
    """Activations' bits, weights' bits, size of a group: each the more the better kept, but for groups."""
    try:
        scheme = Scheme.parse(text)
    except SchemeError:  # somebody's own name for what their checkpoint is
        return True, math.inf, 0.0, 0.0
    group = math.inf if scheme.group is None else float(scheme.group)
    quantized = scheme.quantizes_activations
    return quantized, -float(scheme.act_bits), -float(scheme.weight_bits), group
