"""JSON files as this project reads and writes them: strict and atomic; errors name the place."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_qbench.errors import BaselineError, NonFiniteError, QBenchError
from dllm_qbench.schemas import validate

_SPACE = re.compile(r"[ \t\r\n]*")


def parse_json(text: str, source: str) -> Any:
    """``json.loads`` whose errors name ``source``, line and column; a repeated key is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for n, key in enumerate(keys) if key in keys[:n])
            raise QBenchError(f"{source}: key {twice!r} occurs twice in one object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        cut = " (the file ends early)" if error.pos >= len(text.rstrip()) else ""
        raise QBenchError(
            f"{source}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}{cut}"
        ) from error
    except RecursionError as error:
        raise QBenchError(f"{source}: not readable: nested too deeply") from error


def reject_non_finite(value: object, path: str) -> None:
    """Raise ``NonFiniteError`` naming the path of the first NaN or infinity inside ``value``."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(f"{path} is {value}, expected a finite number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            reject_non_finite(inner, f"{path}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            reject_non_finite(inner, f"{path}[{index}]")


def write_atomic(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step; on any failure ``path`` is as before."""
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; take the old file's mode, or what open() would have given.
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def dump(value: object, indent: str = "") -> str:
    """JSON on several lines; ``indent`` goes before every line but the first."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return text.replace("\n", "\n" + indent)


def set_member(text: str, path: tuple[str, ...], value: object) -> str:
    """Set the member at ``path`` (object keys from the top) in a JSON text; keep all other bytes.

    A new member goes before the first one whose key is greater. All objects on the way must exist.
    """
    at = _skip(text, 0)
    for key in path[:-1]:
        at = next(start for name, _, start, _ in _members(text, at) if name == key)
    indent = "  " * len(path)
    rendered = dump(value, indent)
    entry = f"{json.dumps(path[-1], ensure_ascii=False)}: {rendered}"
    members = list(_members(text, at))
    for name, _, start, end in members:
        if name == path[-1]:
            return text[:start] + rendered + text[end:]
    for name, key_start, _, _ in members:
        if name > path[-1]:
            return f"{text[:key_start]}{entry},\n{indent}{text[key_start:]}"
    if members:
        end = members[-1][3]
        return f"{text[:end]},\n{indent}{entry}{text[end:]}"
    return f"{text[: at + 1]}\n{indent}{entry}\n{indent[2:]}{text[_skip(text, at + 1) :]}"


def _members(text: str, at: int) -> Iterator[tuple[str, int, int, int]]:
    """Members of the object that starts at ``text[at]``: key, its start, the value's start and end."""
    decoder = json.JSONDecoder()
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, key_end = _value(decoder, text, at)
        start = _skip(text, _skip(text, key_end) + 1)
        _, end = _value(decoder, text, start)
        yield key, at, start, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _value(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    value: tuple[Any, int] = decoder.raw_decode(text, at)
    return value


def _skip(text: str, at: int) -> int:
    """The first index from ``at`` that is not white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def read_stored(path: Path, record_with: str) -> str:
    """Return the text of a file of baselines, its line ends as they are: a splice must not touch them.

    Args:
        path: the file.
        record_with: what to do where there is none, for the error.

    Raises:
        BaselineError: missing, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise BaselineError(f"{path}: no such file; {record_with}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error


def parse_stored(text: str, path: Path, schema: str) -> Any:
    """Return what such a file says, checked against a schema.

    Raises:
        BaselineError: no JSON, a number that is not finite, or a field that the schema refuses.
    """
    try:
        data = parse_json(text, str(path))
        reject_non_finite(data, f"{path}: $")
    except QBenchError as error:
        raise BaselineError(str(error)) from error
    validate(data, schema, str(path))
    return data
