"""Stored baselines: one JSON file a model, one entry a cell. Read, validate, write.

Reading is strict: every error is a ``BaselineError`` that names the file and the field. Writing
replaces one cell's text and leaves every other byte of the file alone, so that a diff shows what
changed; the file is replaced atomically. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baseline_paths import baseline_path, shipped_baselines
from dllm_qbench.errors import BaselineError
from dllm_qbench.jsonfiles import dump, parse_stored, read_stored, set_member, write_atomic
from dllm_qbench.records import Record
from dllm_qbench.schemas import validate
from dllm_qbench.verdict.bands import Band

__all__ = [
    "SCHEMA_VERSION",
    "Baselines",
    "CellBaseline",
    "baseline_path",
    "preview_cell",
    "read_baselines",
    "shipped_baselines",
    "update_command",
    "write_cell",
]

SCHEMA_VERSION: Final = 2
_RECORD: Final = "record the model's baselines with: pytest --qbench-update"


@dataclass(frozen=True)
class Baselines:
    """All cells of one model's file, by ``method/scheme/task``."""

    model: str
    checkpoint_sha256: str
    cells: Mapping[str, CellBaseline]
    path: Path

    def cell(self, name: str) -> CellBaseline:
        """The baseline of a cell; ``BaselineError`` with the command that records it if missing."""
        if name not in self.cells:
            raise BaselineError(
                f"{self.path}: no cell {name!r} ({len(self.cells)} others); record it with: "
                f"{update_command(self.model, name)}"
            )
        return self.cells[name]


def update_command(model: str, cell: str) -> str:
    """The command that measures a cell of the matrix and writes its baseline.

    The model is chosen by the test's name: where it is a folder, ``--qbench-model`` has its path.
    """
    return f"pytest --qbench-update -k {model}-{cell.replace('/', '-')}"


def read_baselines(path: str | Path) -> Baselines:
    """Read and check one model's file; ``BaselineError`` names the file and the field."""
    path = Path(path)
    return _parse(read_stored(path, _RECORD), path)


def preview_cell(path: str | Path, record: Record, band: Band | None = None) -> CellBaseline | None:
    """What ``write_cell`` would store, with its errors, without writing."""
    return _plan(Path(path), record, band)[0]


def write_cell(path: str | Path, record: Record, band: Band | None = None) -> CellBaseline | None:
    """Store a record as its cell's baseline and return it; ``None`` when nothing had changed.

    Band and noise floors of a stored cell are kept; a new one gets ``band``, by default a proposed one. A
    measurement that equals the stored one leaves the file as it is, provenance included. Refuses to replace
    a baseline by one on fewer items, and to touch a file that does not validate.
    """
    new, text = _plan(Path(path), record, band)
    if new is not None:
        write_atomic(path, text)
    return new


def _plan(path: Path, record: Record, band: Band | None) -> tuple[CellBaseline | None, str]:
    """The cell to store, if it changed, and the file's new text."""
    text = read_stored(path, _RECORD) if path.exists() else None
    known = _parse(text, path) if text is not None else None
    stored = known.cells.get(record.cell) if known else None
    if known and known.model != record.model:
        raise BaselineError(f"{path}: model is {known.model!r}, the record's is {record.model!r}")
    if stored and stored.items > record.items:
        raise BaselineError(
            f"{path}: cells[{record.cell!r}] was measured on {stored.items} items and would shrink "
            f"to {record.items}; run with --qbench-items={stored.items}, or delete the cell first"
        )
    made = CellBaseline.from_record(record, stored)
    if stored is None and band is not None:
        made = replace(made, band=band)
    new = replace(made, source=_place(path, record.cell))
    data = new.to_dict()
    checkpoint = data["provenance"].get("checkpoint_sha256", "")
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": record.model,
        "checkpoint_sha256": checkpoint,
        "cells": {record.cell: data},
    }
    validate(document, "baseline", f"record {record.cell} as a baseline")
    if text is None:
        return new, dump(document) + "\n"
    if stored and _measured(stored.to_dict()) == _measured(data):
        return None, text
    text = set_member(text, ("cells", record.cell), data)
    return new, set_member(text, ("checkpoint_sha256",), checkpoint)


def _place(path: Path, cell: str) -> str:
    return f"{path}: cells[{cell!r}]"


def _measured(data: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without when, where and with which versions it was measured."""
    return {**data, "provenance": data["provenance"].get("checkpoint_sha256")}


# --- reading -----------------------------------------------------------------------------------


def _parse(text: str, path: Path) -> Baselines:
    data = parse_stored(text, path, "baseline")
    cells = {
        name: CellBaseline.from_dict(data["model"], name, cell, _place(path, name))
        for name, cell in data["cells"].items()
    }
    return Baselines(data["model"], data["checkpoint_sha256"], cells, path)
