"""How a cell was made and measured, as names and texts: recipe, provenance, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from dllm_qbench.records import Record
from dllm_qbench.report.reading import cut
from dllm_qbench.summary_changes import origin

Pairs = list[list[str]]
_ENVIRONMENT: Final = ("commit", "execution")
"""Of a provenance, beside versions, device and data type."""
_ELSEWHERE: Final = ("versions", "device", "dtype", *_ENVIRONMENT)
_MOST: Final = 60  # lines; a record of this suite has a third of that
_DEEPEST: Final = 3
_LONGEST: Final = 300


def recipe(record: Record) -> Pairs:
    """The recipe; a value inside another one is named by both."""
    return _pairs(record.recipe)


def provenance(record: Record) -> Pairs:
    """Where and when it was measured, less what :func:`environment` says."""
    rest = {name: value for name, value in record.provenance.items() if name not in _ELSEWHERE}
    return _pairs({**rest, "items seed": record.seed, "recipe hash": record.recipe_hash})


def environment(record: Record) -> Pairs:
    """Versions, device, data type, commit, execution, as far as the record says."""
    told = origin({"provenance": record.provenance})
    more = {name: record.provenance[name] for name in _ENVIRONMENT if name in record.provenance}
    return _pairs({**told, **more})


def _pairs(given: Mapping[str, Any]) -> Pairs:
    found = _flat(given, "", _DEEPEST)
    if len(found) > _MOST:
        return [*found[:_MOST], ["more", f"{len(found) - _MOST} values, in the records"]]
    return found


def _flat(given: Mapping[str, Any], before: str, depth: int) -> Pairs:
    found: Pairs = []
    for name, value in given.items():
        if isinstance(value, Mapping) and value and depth > 1:
            found += _flat(value, f"{before}{name}.", depth - 1)
        else:
            found.append([cut(f"{before}{name}", _LONGEST), cut(_said(value), _LONGEST)])
    return found


def _said(value: Any) -> str:
    match value:
        case str():
            return value
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() | tuple() if not any(isinstance(one, Mapping | list | tuple) for one in value):
            return ", ".join(map(_said, value)) or "none"
        case Mapping() if not value:
            return "none"
    return json.dumps(value, default=str)
