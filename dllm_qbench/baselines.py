"""Stored baselines: one JSON file a model, one entry a cell. Read, validate, write.

Reading is strict: every error is a ``BaselineError`` that names the file and the field. Writing
replaces one cell's text and leaves every other byte of the file alone, so that a diff shows what
changed; the file is replaced atomically. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from dllm_qbench.bitsets import decode, encode, item_checks, pack_bits, unpack_bits
from dllm_qbench.errors import BaselineError, QBenchError
from dllm_qbench.jsonfiles import dump, parse_json, reject_non_finite, set_member, write_atomic
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band, propose
from dllm_qbench.verdict.statistics import Pairs, drop_interval, relative_drop

SCHEMA_VERSION: Final = 1
SQNR_TOLERANCE_DB: Final = 1.0
"""Given to new cells. In the trials, calibration draws moved a module's SQNR by 0.3 dB or less."""


@dataclass(frozen=True)
class CellBaseline:
    """What is stored for one cell. The tuples and ``item_checks`` have one entry per item.

    ``layer_sqnr`` is in dB and in forward order; ``sqnr_tolerance_db`` counts in both directions.
    ``source`` says where it was read, for messages.
    """

    model: str
    cell: str
    band: Band
    items_seed: int
    item_checks: bytes
    reference_correct: tuple[bool, ...]
    quantized_correct: tuple[bool, ...]
    sqnr_tolerance_db: float
    layer_sqnr: Mapping[str, float]
    recipe: Mapping[str, Any]
    recipe_hash: str
    provenance: Mapping[str, Any]
    source: str = "baseline"

    @property
    def items(self) -> int:
        """Number of items it was measured on."""
        return len(self.reference_correct)

    @property
    def pairs(self) -> Pairs:
        """Full precision against quantized, item by item."""
        return Pairs.count(self.reference_correct, self.quantized_correct)

    def to_dict(self) -> dict[str, Any]:
        """The cell as the file holds it."""
        low, high = drop_interval(self.pairs)
        return {
            "band": self.band.to_dict(),
            "items": self.items,
            "items_seed": self.items_seed,
            "reference_accuracy": _accuracy(self.reference_correct),
            "quantized_accuracy": _accuracy(self.quantized_correct),
            "drop_percent": round(relative_drop(self.pairs), 3),
            "drop_interval": [round(low, 3), round(high, 3)],
            "reference_bits": pack_bits(self.reference_correct),
            "quantized_bits": pack_bits(self.quantized_correct),
            "item_checks": encode(self.item_checks),
            "sqnr_tolerance_db": self.sqnr_tolerance_db,
            "layer_sqnr": {name: round(db, 3) for name, db in self.layer_sqnr.items()},
            "recipe": dict(self.recipe),
            "recipe_hash": self.recipe_hash,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_record(cls, record: Record, stored: CellBaseline | None = None) -> CellBaseline:
        """What to store for a record: ``stored`` gives band and tolerance, else they are proposed."""
        pairs = Pairs.count(record.reference_correct, record.quantized_correct)
        if pairs.before == 0:
            raise BaselineError(
                f"cell {record.cell}: full precision answers none of {record.items} items correctly; "
                "a baseline without a drop cannot be stored"
            )
        plain = record.to_dict()
        return cls(
            model=record.model,
            cell=record.cell,
            band=stored.band if stored else propose(drop_interval(pairs)),
            items_seed=record.seed,
            item_checks=item_checks(record.item_ids),
            reference_correct=record.reference_correct,
            quantized_correct=record.quantized_correct,
            sqnr_tolerance_db=stored.sqnr_tolerance_db if stored else SQNR_TOLERANCE_DB,
            layer_sqnr=record.layer_sqnr,
            recipe=plain["recipe"],
            recipe_hash=record.recipe_hash,
            provenance={"source": "measured", **plain["provenance"]},
        )


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


def baseline_path(folder: str | Path, model: str) -> Path:
    """The file of a model; characters that file systems dislike (``/``) become ``--``."""
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', model)}.json"


def read_baselines(path: str | Path) -> Baselines:
    """Read and check one model's file; ``BaselineError`` names the file and the field."""
    path = Path(path)
    return _parse(_read_text(path), path)


def preview_cell(path: str | Path, record: Record) -> CellBaseline | None:
    """What ``write_cell`` would store, with its errors, without writing."""
    return _plan(Path(path), record)[0]


def write_cell(path: str | Path, record: Record) -> CellBaseline | None:
    """Store a record as its cell's baseline and return it; ``None`` when nothing had changed.

    Band and tolerance of a stored cell are kept, else proposed. A measurement that equals the stored
    one leaves the file as it is, provenance included. Refuses to replace a baseline by one on fewer
    items, and to touch a file that does not validate.
    """
    new, text = _plan(Path(path), record)
    if new is not None:
        write_atomic(path, text)
    return new


def _plan(path: Path, record: Record) -> tuple[CellBaseline | None, str]:
    """The cell to store, if it changed, and the file's new text."""
    text = _read_text(path) if path.exists() else None
    known = _parse(text, path) if text is not None else None
    stored = known.cells.get(record.cell) if known else None
    if known and known.model != record.model:
        raise BaselineError(f"{path}: model is {known.model!r}, the record's is {record.model!r}")
    if stored and stored.items > record.items:
        raise BaselineError(
            f"{path}: cells[{record.cell!r}] was measured on {stored.items} items and would shrink "
            f"to {record.items}; run with --qbench-items={stored.items}, or delete the cell first"
        )
    new = replace(CellBaseline.from_record(record, stored), source=_place(path, record.cell))
    data = new.to_dict()
    checkpoint = data["provenance"].get("checkpoint_sha256", "")
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": record.model,
        "checkpoint_sha256": checkpoint,
        "cells": {record.cell: data},
    }
    _validate(document, f"record {record.cell} as a baseline")
    if text is None:
        return new, dump(document) + "\n"
    if stored and _measured(stored.to_dict()) == _measured(data):
        return None, text
    text = set_member(text, ("cells", record.cell), data)
    return new, set_member(text, ("checkpoint_sha256",), checkpoint)


def _place(path: Path, cell: str) -> str:
    return f"{path}: cells[{cell!r}]"


def _accuracy(correct: Sequence[bool]) -> float:
    return round(sum(correct) / len(correct), 6)


def _measured(data: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without when, where and with which versions it was measured."""
    return {**data, "provenance": data["provenance"].get("checkpoint_sha256")}


# --- reading -----------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        # newline="" keeps the line ends: a splice must not touch them.
        with path.open(encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise BaselineError(
            f"{path}: no such file; record the model's baselines with: pytest --qbench-update"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error


def _parse(text: str, path: Path) -> Baselines:
    try:
        data = parse_json(text, str(path))
        reject_non_finite(data, f"{path}: $")
    except QBenchError as error:
        raise BaselineError(str(error)) from error
    _validate(data, str(path))
    cells = {
        name: _parse_cell(data["model"], name, cell, path) for name, cell in data["cells"].items()
    }
    return Baselines(data["model"], data["checkpoint_sha256"], cells, path)


def _parse_cell(model: str, name: str, data: Mapping[str, Any], path: Path) -> CellBaseline:
    field, items = "band", data["items"]
    try:
        band = Band.from_dict(data["band"])
        field = "item_checks"
        checks = decode(data[field], items)
        field = "reference_bits"
        reference = unpack_bits(data[field], items)
        field = "quantized_bits"
        quantized = unpack_bits(data[field], items)
        field = "reference_accuracy"
        _agree(data[field], _accuracy(reference), 1e-6, "the bits")
        field = "quantized_accuracy"
        _agree(data[field], _accuracy(quantized), 1e-6, "the bits")
        field = "drop_percent"
        drop = relative_drop(Pairs.count(reference, quantized))
        _agree(data[field], drop, 1e-3, "the bits")
        field = "drop_interval"
        low, high = data[field]
        if not low <= data["drop_percent"] <= high:
            raise ValueError(f"[{low}, {high}] does not hold drop_percent {data['drop_percent']}")
    except ValueError as error:
        raise BaselineError(f"{path}: cells[{name!r}].{field}: {error}") from error
    return CellBaseline(
        model=model,
        cell=name,
        band=band,
        items_seed=data["items_seed"],
        item_checks=checks,
        reference_correct=reference,
        quantized_correct=quantized,
        sqnr_tolerance_db=data["sqnr_tolerance_db"],
        layer_sqnr=data["layer_sqnr"],
        recipe=data["recipe"],
        recipe_hash=data["recipe_hash"],
        provenance=data["provenance"],
        source=_place(path, name),
    )


def _agree(stored: float, computed: float, tolerance: float, by: str) -> None:
    if abs(stored - computed) > tolerance:
        raise ValueError(f"{stored} contradicts {by}, which give {computed:.6g}")


@cache
def _validator() -> Draft202012Validator:
    schema = (
        resources.files("dllm_qbench.schemas").joinpath("baseline.schema.json").read_text("utf-8")
    )
    return Draft202012Validator(json.loads(schema))


def _validate(data: object, place: str) -> None:
    errors = sorted(_validator().iter_errors(data), key=lambda error: list(map(str, error.path)))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BaselineError(f"{place}: {_describe(errors[0])}{more}")


def _describe(error: ValidationError) -> str:
    path = "".join(
        f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r}]"
        for part in error.absolute_path
    ).removeprefix(".")
    if error.validator == "required":
        instance, required = (
            cast(Mapping[str, Any], error.instance),
            cast(list[str], error.validator_value),
        )
        missing = next(name for name in required if name not in instance)
        return f"field {f'{path}.{missing}'.removeprefix('.')} is missing"
    message = error.message if len(error.message) <= 200 else f"{error.message[:200]}..."
    return f"field {path or 'at the top'}: {message}"
