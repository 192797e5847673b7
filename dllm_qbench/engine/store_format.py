"""What a file of the store says, and whether two of its values are the same.

A file is one JSON object: the version of the format, the kind, the key, the value, and a checksum over the
three, by which a bit that the disk lost is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import parse_json, reject_non_finite

STORE_VERSION: Final = 1

VOLATILE: Final = frozenset({"date", "seconds", "commit", "scores"})
"""Members, at any depth, in which two values of one key may differ: when, how long, from which commit (the
code itself is part of every key), and log-likelihoods, whose last bits depend on the batch."""

_WHAT_TO_DO: Final = "the disk or a hand has changed it: delete it, and a new run measures it again"


def first_difference(
    one: Any, other: Any, ignored: frozenset[str] = VOLATILE, place: str = ""
) -> str | None:
    """Name the first place where two JSON values differ, with both values; ``None`` where none does.

    Members whose name is ignored may differ or be missing. As in JSON, the order of members says nothing.

    >>> first_difference({"a": [1, 2], "date": "Monday"}, {"a": [1, 3], "date": "Tuesday"})
    'a[1]: 2, 3'
    """
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in one if name not in ignored]
        others = [name for name in other if name not in ignored]
        if set(names) != set(others):
            return f"{place or 'members'}: {_short(names)}, {_short(others)}"
        inner = ((f"{place}.{name}".lstrip("."), one[name], other[name]) for name in names)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        inner = ((f"{place}[{n}]", a, b) for n, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        same = type(one) is type(other) and one == other
        return None if same else f"{place or 'value'}: {_short(one)}, {_short(other)}"
    return next(filter(None, (first_difference(a, b, ignored, at) for at, a, b in inner)), None)


def read(path: Path, kind: str) -> tuple[dict[str, Any], Any] | None:
    """Return the key and the value in a file, ``None`` if there is no file.

    Raises:
        QBenchError: the file is damaged; names it and says what to do.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    try:
        found = parse_json(content.decode("utf-8"), str(path))
    except (UnicodeDecodeError, QBenchError) as error:
        raise QBenchError(f"{path}: is damaged: {error}; {_WHAT_TO_DO}") from error
    if isinstance(found, dict) and found.get("store_version", STORE_VERSION) != STORE_VERSION:
        raise QBenchError(
            f"{path}: store_version is {found['store_version']!r}, this version of dllm_qbench"
            f" reads {STORE_VERSION}: use the version that wrote the store, or another folder"
        )
    names = {"store_version", "kind", "key", "sha256", "value"}
    if not isinstance(found, dict) or set(found) != names:
        raise QBenchError(
            f"{path}: is damaged: expected the members {sorted(names)}; {_WHAT_TO_DO}"
        )
    key, value = found["key"], found["value"]
    if found["kind"] != kind or found["sha256"] != _checksum(kind, key, value):
        raise QBenchError(f"{path}: is damaged: the checksum does not fit; {_WHAT_TO_DO}")
    if path.stem != sha256(canonical(key, str(path))):
        raise QBenchError(f"{path}: holds the result of another key; {_WHAT_TO_DO}")
    return key, value


def write(kind: str, key: Mapping[str, Any], value: Any, place: str) -> str:
    """Return the text of a file; ``place`` names the value in errors.

    Raises:
        QBenchError: key or value are no JSON values.
    """
    reject_non_finite(value, place)
    try:
        # There and back: tuples become lists, and what JSON cannot express shows now, not when it is read.
        stored = parse_json(json.dumps(value, allow_nan=False), place)
    except (TypeError, ValueError) as error:
        raise QBenchError(f"{place}: not expressible as JSON: {error}") from error
    named = parse_json(canonical(key, place), place)
    whole = {
        "store_version": STORE_VERSION,
        "kind": kind,
        "key": named,
        "sha256": _checksum(kind, named, stored),
        "value": stored,
    }
    return json.dumps(whole, allow_nan=False) + "\n"


def _checksum(kind: str, key: Any, value: Any) -> str:
    """Over all that a file says; members of the value in their order."""
    return sha256(json.dumps([kind, key, value], separators=(",", ":")))


def canonical(key: Mapping[str, Any], place: str) -> str:
    """Return one text for all spellings of a key."""
    if not isinstance(key, Mapping) or not key:
        raise QBenchError(f"{place}: expected a mapping with members, found {key!r}")
    try:
        return json.dumps(_plain(key), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise QBenchError(f"{place}: not expressible as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """Return mappings of any kind as dicts, by name, and tuples as lists.

    Raises:
        TypeError: a member's name is no text.
    """
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"the name {odd[0]!r} is no text")
        return {name: _plain(value[name]) for name in sorted(value)}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def sha256(text: str) -> str:
    """Return the digest of a text in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
