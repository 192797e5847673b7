"""SQNR profiles of a model's cells on one axis: all its modules in forward order, with the baseline's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_qbench.baselines import (
    Baselines,
    CellBaseline,
    baseline_path,
    read_baselines,
    shipped_baselines,
)
from dllm_qbench.errors import BaselineError
from dllm_qbench.report.reading import Cell

Profile = Mapping[str, float]


def stored_of(
    cells: Sequence[Cell], folder: Path | None
) -> tuple[dict[tuple[str, str], CellBaseline], list[str]]:
    """The baselines of the cells that have one: from the model's file in a folder, else the shipped one.

    A file that cannot be read is no reason to show nothing: a note says what is wrong with it.
    """
    found: dict[tuple[str, str], CellBaseline] = {}
    notes = []
    for model in dict.fromkeys(cell.outcome.model for cell in cells if cell.record is not None):
        try:
            baselines = _of_model(model, folder)
        except BaselineError as error:
            notes.append(f"The baselines of {model} are not shown: {error}")
            continue
        if baselines is not None:
            found |= {(model, name): stored for name, stored in baselines.cells.items()}
    return found, notes


def _of_model(model: str, folder: Path | None) -> Baselines | None:
    path = None if folder is None else baseline_path(folder, model)
    if path is None or not path.is_file():
        try:
            path = shipped_baselines(model)
        except BaselineError:
            return None
    baselines = read_baselines(path)
    if baselines.model != model:
        raise BaselineError(f"{path}: model is {baselines.model!r}, expected {model!r}")
    return baselines


def modules_of(cells: Iterable[Cell], stored: Mapping[tuple[str, str], CellBaseline]) -> list[str]:
    """Names of all modules of one model's cells and their baselines, in forward order."""
    order: list[str] = []
    for cell in cells:
        record = cell.record
        if record is None:
            continue
        order = merged(order, [*record.layer_sqnr])
        order = merged(order, [*record.local_sqnr])
        baseline = stored.get((record.model, record.cell))
        if baseline is not None:
            order = merged(order, [*baseline.layer_sqnr])
            order = merged(order, [*baseline.local_sqnr])
    return order


def merged(order: Sequence[str], names: Sequence[str]) -> list[str]:
    """``order`` with the names that it lacks, each behind the one that it follows in ``names``.

    Both keep their own order as far as they do not contradict each other; of two that do, ``order``'s
    counts.
    """
    known = {*order}
    if known.issuperset(names):
        return list(order)
    behind: dict[str | None, list[str]] = {}
    last = None
    for name in names:
        if name in known:
            last = name
        else:
            behind.setdefault(last, []).append(name)
    found = behind.get(None, [])[:]
    for name in order:
        found.append(name)
        found += behind.get(name, ())
    return list(dict.fromkeys(found))


def layers(cell: Cell, modules: Sequence[str], stored: CellBaseline | None) -> dict[str, Any]:
    """A cell's two profiles over ``modules``, in dB to 0.01, its baseline's, and where the suspect is."""
    record = cell.record
    first = (cell.verdict.get("place") or {}).get("first")
    return {
        "sqnr": _on(modules, record.layer_sqnr if record else {}),
        "local": _on(modules, record.local_sqnr if record else {}),
        "baseline": _on(modules, stored.layer_sqnr) if stored and stored.layer_sqnr else None,
        "local_baseline": _on(modules, stored.local_sqnr) if stored and stored.local_sqnr else None,
        "suspect": modules.index(first) if first in modules else None,
    }


def _on(modules: Sequence[str], profile: Profile) -> list[float | None]:
    return [round(float(profile[name]), 2) if name in profile else None for name in modules]
