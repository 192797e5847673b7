"""JSON Schemas of the files that this project stores, and how a file is held against one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from dllm_qbench.errors import BaselineError


def validate(data: object, schema: str, place: str, part: str | None = None) -> None:
    """Raise ``BaselineError`` naming ``place`` and the first field that a schema does not admit.

    ``schema`` is a file's name here without ``.schema.json``; ``part`` one of its ``$defs``.
    """
    found = _validator(schema, part).iter_errors(data)
    errors = sorted(found, key=lambda error: list(map(str, error.path)))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BaselineError(f"{place}: {_describe(errors[0])}{more}")


@cache
def _validator(schema: str, part: str | None) -> Draft202012Validator:
    file = resources.files("dllm_qbench.schemas").joinpath(f"{schema}.schema.json")
    content = json.loads(file.read_text("utf-8"))
    if part is not None:
        content = {"$defs": content["$defs"], "$ref": f"#/$defs/{part}"}
    return Draft202012Validator(content)


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
