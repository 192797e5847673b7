"""What one run of one cell measured: the value that travels between processes, machines and days.

A record holds facts only (answers, accuracies, how they came about). Whether they are good is
decided by ``dllm_qbench.verdict.judge``, possibly elsewhere and later. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.jsonfiles import parse_json, reject_non_finite, write_atomic

RECORD_VERSION: Final = 3

_PER_ITEM: Final = (
    "reference_correct",
    "quantized_correct",
    "reference_answers",
    "quantized_answers",
    "kinds",
)
_PROFILES: Final = ("layer_sqnr", "local_sqnr")


@dataclass(frozen=True)
class Record:
    """One cell (model, method, scheme, task), measured item by item beside full precision.

    ``item_ids`` and the five tuples beside it have one entry per item, in the same order. ``kinds``
    may be empty when the task has no kinds. ``layer_sqnr`` maps module names, in forward order, to
    the signal-to-quantization-noise ratio of their output in dB with everything before them
    quantized too, ``local_sqnr`` the linears' to theirs alone. ``fidelity`` and ``trajectory`` are
    what ``dllm_qbench.evaluation`` measures under these names; all four may be empty. ``audits``
    names the structural checks that ran before, ``audit_findings`` is what they found.
    ``recipe`` and ``provenance`` are plain JSON values. Raises ``QBenchError`` when lengths or
    types do not fit, ``NonFiniteError`` when a number is NaN or infinite.
    """

    model: str
    method: str
    scheme: str
    task: str
    seed: int
    item_ids: tuple[str, ...]
    reference_correct: tuple[bool, ...]
    quantized_correct: tuple[bool, ...]
    reference_answers: tuple[str, ...]
    quantized_answers: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_hash: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    layer_sqnr: Mapping[str, float] = field(default_factory=dict)
    local_sqnr: Mapping[str, float] = field(default_factory=dict)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    trajectory: Mapping[str, Any] = field(default_factory=dict)
    audits: tuple[str, ...] = ()
    audit_findings: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("model", "method", "scheme", "task"):
            _require(self, name, str)
            if not getattr(self, name):
                raise QBenchError(f"record: field {name!r} is empty")
        for name in ("method", "scheme", "task"):
            if "/" in getattr(self, name):
                raise QBenchError(
                    f"record: field {name!r} is {getattr(self, name)!r}; '/' separates the parts "
                    "of a cell's name and cannot be inside one"
                )
        _require(self, "recipe_hash", str)
        if type(self.seed) is not int:
            raise QBenchError(f"record: field 'seed' is {self.seed!r}, expected an integer")
        self._check_items()
        for name in ("audits", "audit_findings"):
            texts = getattr(self, name)
            if not isinstance(texts, tuple) or not all(type(text) is str for text in texts):
                raise QBenchError(f"record {self.cell}: field {name!r} must be a tuple of str")
        for name in (*_PROFILES, "recipe", "provenance", "fidelity", "trajectory"):
            _require(self, name, Mapping)
            reject_non_finite(getattr(self, name), f"record {self.cell}: {name}")
        reject_non_finite(self.seconds, f"record {self.cell}: seconds")
        for name in _PROFILES:
            for module, sqnr in getattr(self, name).items():
                if isinstance(sqnr, bool) or not isinstance(sqnr, int | float):
                    raise QBenchError(
                        f"record {self.cell}: {name}[{module!r}] is {sqnr!r}, expected dB as a number"
                    )

    def _check_items(self) -> None:
        for name in ("item_ids", *_PER_ITEM):
            values = getattr(self, name)
            wanted = bool if name.endswith("_correct") else str
            if not isinstance(values, tuple) or not all(type(value) is wanted for value in values):
                raise QBenchError(
                    f"record {self.cell}: field {name!r} must be a tuple of {wanted.__name__}"
                )
            if len(values) != len(self.item_ids) and not (name == "kinds" and not values):
                raise QBenchError(
                    f"record {self.cell}: field {name!r} has {len(values)} entries for "
                    f"{len(self.item_ids)} items"
                )
        if not self.item_ids:
            raise QBenchError(f"record {self.cell}: no items")
        if len(set(self.item_ids)) != len(self.item_ids):
            twice = next(i for n, i in enumerate(self.item_ids) if i in self.item_ids[:n])
            raise QBenchError(f"record {self.cell}: item {twice!r} occurs twice")

    @property
    def cell(self) -> str:
        """``method/scheme/task``: the cell's name inside its model's baselines."""
        return f"{self.method}/{self.scheme}/{self.task}"

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @property
    def reference_accuracy(self) -> float:
        """Share of items that full precision answers correctly, 0..1."""
        return sum(self.reference_correct) / self.items

    @property
    def quantized_accuracy(self) -> float:
        """Share of items that the quantized model answers correctly, 0..1."""
        return sum(self.quantized_correct) / self.items

    @property
    def drop(self) -> float:
        """Relative drop in percent of full precision's accuracy; negative when quantized is better.

        Raises ``NonFiniteError`` when full precision answers nothing correctly.
        """
        reference = sum(self.reference_correct)
        if reference == 0:
            raise NonFiniteError(
                f"record {self.cell}: full precision answers none of {self.items} items correctly, "
                "so there is no drop to measure; check the model and the task"
            )
        return 100.0 * (reference - sum(self.quantized_correct)) / reference

    def first(self, items: int) -> Record:
        """The same record cut to its first ``items`` items (all of them when it has fewer)."""
        cut = {name: getattr(self, name)[:items] for name in ("item_ids", *_PER_ITEM)}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in cut}
        return Record(**rest, **cut)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the fields in order after ``record_version``, the accuracies last."""
        data: dict[str, Any] = {"record_version": RECORD_VERSION}
        for entry in fields(self):
            value = getattr(self, entry.name)
            data[entry.name] = list(value) if isinstance(value, tuple) else _plain(value)
        data["reference_accuracy"] = self.reference_accuracy
        data["quantized_accuracy"] = self.quantized_accuracy
        return data

    def to_json(self) -> str:
        """One line of JSON; ``QBenchError`` when recipe or provenance are not JSON values."""
        try:
            return json.dumps(self.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise QBenchError(f"record {self.cell}: not expressible as JSON: {error}") from error

    @classmethod
    def from_dict(cls, data: object, source: str = "record") -> Record:
        """Inverse of ``to_dict``; a missing, unknown or contradictory field is an error."""
        if not isinstance(data, Mapping):
            raise QBenchError(f"{source}: expected a JSON object, found {type(data).__name__}")
        if data.get("record_version") != RECORD_VERSION:
            raise QBenchError(
                f"{source}: record_version is {data.get('record_version')!r}, this version of "
                f"dllm_qbench reads {RECORD_VERSION}"
            )
        derived = {"record_version", "reference_accuracy", "quantized_accuracy"}
        known = {entry.name for entry in fields(cls)}
        for name in known | derived:
            if name not in data:
                raise QBenchError(f"{source}: field {name!r} is missing")
        if unknown := sorted(set(data) - known - derived):
            raise QBenchError(f"{source}: unknown field {unknown[0]!r}")
        values: dict[str, Any] = {}
        for name in known:
            values[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
        try:
            record = cls(**values)
        except QBenchError as error:
            raise type(error)(f"{source}: {error}") from error
        for name in ("reference_accuracy", "quantized_accuracy"):
            if data[name] != getattr(record, name):
                raise QBenchError(
                    f"{source}: field {name!r} is {data[name]!r} but the items say "
                    f"{getattr(record, name)!r}"
                )
        return record

    @classmethod
    def from_json(cls, text: str, source: str = "record") -> Record:
        """Read what ``to_json`` wrote; ``source`` names the origin in errors."""
        return cls.from_dict(parse_json(text, source), source)

    def write(self, path: str | Path) -> None:
        """Write to ``path`` atomically: a reader sees the old file or the whole new one."""
        write_atomic(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """Read a file that ``write`` wrote; errors name the file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise QBenchError(f"{path}: cannot be read: {error}") from error
        return cls.from_json(text, str(path))


def _plain(value: Any) -> Any:
    """Mappings and tuples of any kind as the dicts and lists that JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _require(record: Record, name: str, wanted: type) -> None:
    value = getattr(record, name)
    if not isinstance(value, wanted):
        raise QBenchError(
            f"record: field {name!r} is {type(value).__name__}, expected {wanted.__name__}"
        )
