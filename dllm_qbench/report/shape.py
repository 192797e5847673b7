"""Is this a report's data, as ``data.build`` makes it? Checked field by field before a page is made of it.

The page's script trusts what it unpacks; a field of another type would show as an empty figure in somebody's
browser, so it is an error here, with the field's name. (A JSON Schema says the same in tenths of a second a
cell: profiles are long.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from dllm_qbench.errors import QBenchError

VERSION: Final = 1
"""Of the data's shape."""

Check = Callable[[object, str], None]
_PNG: Final = "data:image/png;base64,"


def _fail(value: object, path: str, expected: str) -> None:
    raise QBenchError(f"report data: field {path} is {value!r:.60}, expected {expected}")


def _text(value: object, path: str) -> None:
    if not isinstance(value, str):
        _fail(value, path, "text")


def _flag(value: object, path: str) -> None:
    if not isinstance(value, bool):
        _fail(value, path, "true or false")


def _number(value: object, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _fail(value, path, "a finite number")


def _count(value: object, path: str) -> None:
    if type(value) is not int or value < 0:
        _fail(value, path, "a whole number from 0")


def _picture(value: object, path: str) -> None:
    if not isinstance(value, str) or not value.startswith(_PNG):
        _fail(value, path, f"a PNG as {_PNG}...")


def _any(value: object, path: str) -> None:
    del value, path


def _or_null(check: Check) -> Check:
    def or_null(value: object, path: str) -> None:
        if value is not None:
            check(value, path)

    return or_null


def _each(check: Check, length: int | None = None) -> Check:
    def each(value: object, path: str) -> None:
        if not isinstance(value, list | tuple):
            _fail(value, path, "a list")
        elif length is not None and len(value) != length:
            _fail(value, path, f"a list of {length}")
        else:
            for index, inner in enumerate(value):
                check(inner, f"{path}[{index}]")

    return each


def _by_name(check: Check) -> Check:
    def by_name(value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            _fail(value, path, "an object")
        else:
            for name, inner in value.items():
                check(inner, f"{path}[{name!r}]")

    return by_name


def _fields(**checks: Check) -> Check:
    """An object that has at least these fields."""

    def fields(value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            _fail(value, path or "at the top", "an object")
            return
        for name, check in checks.items():
            at = f"{path}.{name}" if path else name
            if name not in value:
                raise QBenchError(f"report data: field {at} is missing")
            check(value[name], at)

    return fields


_PAIRS: Final = _each(_each(_text, 2))
_NUMBERS: Final = _each(_number)
_PROFILE: Final = _each(_or_null(_number))
_CHANGE_OF_ANSWERS: Final = _fields(lost=_count, gained=_count)

_CELL: Final = _fields(
    id=_text,
    model=_text,
    method=_text,
    scheme=_text,
    task=_text,
    status=_text,
    fails=_flag,
    items=_count,
    band=_text,
    reference=_or_null(_number),
    quantized=_or_null(_number),
    drop=_or_null(_number),
    interval=_or_null(_each(_number, 2)),
    error=_or_null(_text),
    message=_text,
    text=_or_null(_text),
    place=_or_null(
        _fields(first=_or_null(_text), why=_text, by=_text, contributors=_each(_any)),
    ),
    symptom=_or_null(_text),
    findings=_each(_fields(status=_text, check=_text, text=_text)),
    audits=_each(_text),
    audit_findings=_each(_text),
    discordant=_fields(
        lost=_count,
        gained=_count,
        against_baseline=_or_null(_CHANGE_OF_ANSWERS),
        shown=_each(
            _fields(
                item=_text,
                kind=_text,
                reference=_text,
                quantized=_text,
                reference_correct=_flag,
                quantized_correct=_flag,
            )
        ),
    ),
    kinds=_each(_fields(kind=_text, items=_count, reference=_count, quantized=_count)),
    mask_ratio=_each(_fields(ratio=_number, log10_kl=_each(_or_null(_number), 3))),
    fidelity=_by_name(_or_null(_number)),
    trajectory=_or_null(
        _fields(items=_count, flips=_NUMBERS, diverged=_NUMBERS, sequence_match=_or_null(_number))
    ),
    layers=_fields(
        sqnr=_PROFILE,
        local=_PROFILE,
        baseline=_or_null(_PROFILE),
        local_baseline=_or_null(_PROFILE),
        suspect=_or_null(_count),
    ),
    recipe=_PAIRS,
    provenance=_PAIRS,
    seconds=_or_null(_number),
    versions=_or_null(_count),
)
_COMPARISON: Final = _fields(
    base=_text,
    both=_count,
    changed=_each(
        _fields(
            cell=_count,
            before=_text,
            status=_text,
            lost=_count,
            gained=_count,
            p_value=_or_null(_number),
            worse=_flag,
            drops=_each(_or_null(_number), 2),
            where=_or_null(_text),
        )
    ),
    new=_each(_text),
    gone=_each(_text),
    notes=_each(_text),
)
_DATA: Final = _fields(
    version=_count,
    generated=_text,
    package=_text,
    notes=_each(_text),
    verdict=_fields(
        fails=_flag,
        failing=_count,
        cells=_count,
        counts=_by_name(_count),
        headline=_text,
        whole_run=_each(_text),
        first=_each(_each(_any, 2)),
    ),
    models=_each(
        _fields(
            name=_text,
            items=_text,
            tasks=_each(_text),
            rows=_each(_fields(method=_text, scheme=_text, cells=_each(_or_null(_count)))),
        )
    ),
    profiles=_by_name(_each(_text)),
    items=_by_name(_by_name(_fields(prompt=_text, expected=_text))),
    cells=_each(_CELL),
    environments=_each(_PAIRS),
    comparison=_or_null(_COMPARISON),
    outliers=_each(
        _fields(
            model=_text,
            module=_text,
            kind=_text,
            rotated_by=_or_null(_text),
            maximum=_number,
            max_over_rms=_number,
            tokens=_count,
            channels=_count,
            png=_picture,
            alt=_text,
        )
    ),
    roofline=_or_null(
        _fields(
            machine=_text,
            roofs=_fields(**{"GB/s": _number, "peaks": _by_name(_number)}),
            points=_each(
                _fields(
                    name=_text,
                    kind=_text,
                    shape=_text,
                    intensity=_number,
                    performance=_number,
                    share=_number,
                    rival=_flag,
                )
            ),
        )
    ),
)


def check(data: object) -> None:
    """Raise ``QBenchError`` naming the first field that is missing, of another type or out of place."""
    found = data.get("version") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and found != VERSION:
        raise QBenchError(
            f"report data: field version is {found!r:.60}, this page is made of version {VERSION}; build the"
            " data with the same version of dllm_qbench"
        )
    _DATA(data, "")
    assert isinstance(data, Mapping)
    _references(data)


def _references(data: Mapping[str, Any]) -> None:
    """Positions point at what exists; lists that go side by side are of one length."""
    cells, sets = len(data["cells"]), len(data["environments"])
    for index, model in enumerate(data["models"]):
        for number, row in enumerate(model["rows"]):
            path = f"models[{index}].rows[{number}].cells"
            _each(_or_null(_below(cells, "cells")), len(model["tasks"]))(row["cells"], path)
    for index, cell in enumerate(data["cells"]):
        path = f"cells[{index}]"
        _or_null(_below(sets, "environments"))(cell["versions"], f"{path}.versions")
        modules = len(data["profiles"].get(cell["model"], ()))
        for name in ("sqnr", "local", "baseline", "local_baseline"):
            values = cell["layers"][name]
            if values and len(values) != modules:
                _fail(len(values), f"{path}.layers.{name}'s length", f"the profile's, {modules}")
        _or_null(_below(modules, "profiles"))(cell["layers"]["suspect"], f"{path}.layers.suspect")
    for index, change in enumerate((data["comparison"] or {"changed": ()})["changed"]):
        _below(cells, "cells")(change["cell"], f"comparison.changed[{index}].cell")


def _below(limit: int, of: str) -> Check:
    def below(value: object, path: str) -> None:
        if type(value) is not int or not 0 <= value < limit:
            _fail(value, path, f"a position in {of}, below {limit}")

    return below
