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
    outcome = Outcome(**{name: data[name] for name in _TYPES})
    check_outcome(outcome, place)
    return outcome


def check_outcome(outcome: Outcome, place: str) -> None:
    """Check what a summary or a page reads of an outcome's verdict.

    Raises ``QBenchError`` that begins with the place and names the field.
    """
    if outcome.verdict is not None:
        _check_verdict(outcome.verdict, f"{place}: verdict")
    try:
        tests = outcome.tests
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QBenchError(
            f"{place}: verdict: its tests cannot be read: {type(error).__name__} {error}"
        ) from error
    if tests is None:
        return
    for name in ("lost", "gained", "common"):
        if type(value := getattr(tests, name)) is not int or not 0 <= value <= outcome.items:
            raise QBenchError(
                f"{place}: verdict: field {name!r} is {value!r:.60}, expected a number of the"
                f" {outcome.items} items"
            )
    if tests.lost + tests.gained > tests.common:
        raise QBenchError(
            f"{place}: verdict: fields 'lost' and 'gained' are {tests.lost} and {tests.gained}, more than"
            f" the {tests.common} items of field 'common'"
        )
    if not _number(tests.margin) or tests.margin < 0:
        raise QBenchError(
            f"{place}: verdict: field 'margin' is {tests.margin!r:.60}, expected a number of items, zero"
            " or more"
        )


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
