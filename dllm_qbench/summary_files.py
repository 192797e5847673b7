"""The outcomes of a record file, whole lines only, each checked for what a summary reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import reject_non_finite
from dllm_qbench.outcomes import Outcome, parse_outcome

_TYPES: Mapping[str, tuple[type, ...]] = {
    "cell": (str,),
    "model": (str,),
    "status": (str,),
    "items": (int,),
    "band": (str,),
    "fails": (bool,),
    "to_write": (bool,),
    "record": (Mapping, type(None)),
    "verdict": (Mapping, type(None)),
    "error": (str, type(None)),
}


def read_outcomes(path: str | Path) -> list[Outcome]:
    """Read what ``--qbench-records`` wrote, cells that could not be measured included.

    A last line without its newline is a write that was interrupted, and is left out. Any other broken
    line is a ``QBenchError`` that names the file, the line and the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    lines = enumerate(text.split("\n")[:-1], start=1)
    return [_outcome(line, f"{path}:{number}") for number, line in lines]


def _outcome(line: str, place: str) -> Outcome:
    data = parse_outcome(line, place)
    reject_non_finite(data, place)
    for name, wanted in _TYPES.items():
        if not isinstance(data[name], wanted) or (name == "items" and type(data[name]) is not int):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in wanted)
            raise QBenchError(f"{place}: field {name!r} is {data[name]!r:.60}, expected {names}")
    if data["verdict"] is not None:
        _check_verdict(data["verdict"], f"{place}: verdict")
    outcome = Outcome(**{name: data[name] for name in _TYPES})
    try:
        _ = outcome.tests
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QBenchError(
            f"{place}: verdict: its tests cannot be read: {type(error).__name__} {error}"
        ) from error
    return outcome


def _check_verdict(verdict: Mapping[str, Any], place: str) -> None:
    """Check the fields that a summary prints; the others are not looked at."""
    drop, interval = verdict.get("drop"), verdict.get("interval")
    if drop is not None:
        if not _number(drop):
            raise QBenchError(f"{place}: field 'drop' is {drop!r:.60}, expected a number or null")
        if not isinstance(interval, list) or len(interval) != 2 or not all(map(_number, interval)):
            raise QBenchError(
                f"{place}: field 'interval' is {interval!r:.60}, expected two numbers"
            )
    found = verdict.get("place")
    if found is not None and not isinstance(found, Mapping):
        raise QBenchError(f"{place}: field 'place' is {found!r:.60}, expected an object or null")
    texts = {f"place.{name}": (found or {}).get(name) for name in ("first", "why")}
    texts |= {name: verdict.get(name) for name in ("symptom", "text")}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise QBenchError(f"{place}: field {name!r} is {text!r:.60}, expected text or null")
    findings = verdict.get("findings", [])
    if not isinstance(findings, list) or not all(
        isinstance(finding, Mapping) and isinstance(finding.get("text"), str)
        for finding in findings
    ):
        raise QBenchError(f"{place}: field 'findings' is no list of objects with a text each")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
