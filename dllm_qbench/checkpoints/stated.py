"""What a checkpoint's configuration states about its quantization, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import read_json

FIELD = "quantization_config"
# Where libraries put it: in config.json, under either name, also inside a part of it; or in a file.
_FIELDS = (FIELD, "compression_config")
_PARTS = ("text_config", "llm_config")
_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")


@dataclass(frozen=True)
class Stated:
    """A JSON object, and where it was read, for messages."""

    raw: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> Stated | None:
        """Find what a folder states of its quantization; ``None`` where it states nothing."""
        owners = [("", config)]
        owners += [
            (f"{part}.", config[part]) for part in _PARTS if isinstance(config.get(part), dict)
        ]
        for prefix, owner in owners:
            for name in _FIELDS:
                raw = owner.get(name)
                if isinstance(raw, dict) and raw:
                    where = f"{folder / 'config.json'}: field '{prefix}{name}"
                    inner = raw.get(FIELD)
                    if isinstance(inner, dict) and inner:  # as older compressed-tensors nests it
                        return cls({**raw, **inner}, f"{where}.{FIELD}")
                    return cls(raw, where)
        for name in _FILES:
            if (folder / name).is_file():
                return cls(read_json(folder / name), f"{folder / name}: field '")
        return None

    def at(self, *path: str) -> str:
        """Name file and field, for messages."""
        field = ".".join(path)
        return f"{self.where}{field}'" if self.where.endswith("'") else f"{self.where}.{field}'"

    def get(self, field: str, kind: type, default: Any = None, required: bool = True) -> Any:
        """Return a field of a JSON type; ``default`` where it is missing or null.

        Raises:
            CheckpointError: of another type, or missing where it has no default and is required.
        """
        value = self.raw.get(field)
        if value is None and (default is not None or not required):
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(
                f"{self.at(field)} is {value!r:.60}; expected a JSON {kind.__name__}"
            )
        return value

    def inside(self, field: str) -> Stated | None:
        """Return an object inside this one; ``None`` where it is missing or null."""
        value = self.get(field, dict, required=False)
        return None if value is None else Stated(value, self.at(field).rstrip("'"))

    def refuse(self, field: str, why: str, but: tuple[Any, ...] = (None, False)) -> None:
        """Raise :class:`CheckpointError` if a field says something else than nothing (or ``but``)."""
        value = self.raw.get(field)
        if value in but or value in ({}, [], ""):
            return
        raise CheckpointError(f"{self.at(field)} is {value!r:.80}: {why}")

    def parameters(self) -> dict[str, Any]:
        """Return all that is stated in plain values, as a recipe keeps it."""
        kinds = (str, int, float, bool)
        return {name: value for name, value in self.raw.items() if isinstance(value, kinds)}
