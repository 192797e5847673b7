"""What a record of each of the paper's data sets must hold, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dllm_qbench.errors import TaskError

_Check = tuple[str, Callable[[Any, Mapping[str, Any]], bool]]
"""What is expected, in words, and whether a value (of a record) is that."""


def _text(what: str, holds: Callable[[str], bool] = lambda value: True) -> _Check:
    return what, lambda value, _: isinstance(value, str) and holds(value)


def _strings(value: Any, least: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= least
        and all(isinstance(entry, str) for entry in value)
    )


def _index(value: Any, below: int) -> bool:
    """Whether a label, as a number or its digits, is one of ``below`` choices."""
    if isinstance(value, str):
        return value.isdigit() and int(value) < below
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def _arc_choices(value: Any, _: Mapping[str, Any]) -> bool:
    if not isinstance(value, Mapping):
        return False
    text, label = value.get("text"), value.get("label")
    return _strings(text, 2) and _strings(label, 2) and len(text or ()) == len(label or ())


def _arc_key(value: Any, record: Mapping[str, Any]) -> bool:
    choices = record.get("choices")
    return isinstance(choices, Mapping) and value in choices.get("label", ())


_TEXT = _text("a string")
_ARC: dict[str, _Check] = {
    "id": _TEXT,
    "question": _TEXT,
    "choices": ("an object with as many 'text' as 'label' strings, two or more", _arc_choices),
    "answerKey": ("one of the labels of 'choices'", _arc_key),
}
FIELDS: Mapping[str, Mapping[str, _Check]] = {
    "winogrande": {
        "sentence": _text("a string with the blank '_'", lambda value: "_" in value),
        "option1": _TEXT,
        "option2": _TEXT,
        "answer": ("'1' or '2'", lambda value, _: str(value) in ("1", "2")),
    },
    "piqa": {
        "goal": _TEXT,
        "sol1": _TEXT,
        "sol2": _TEXT,
        "label": ("0 or 1", lambda value, _: _index(value, 2)),
    },
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "hellaswag": {
        "ind": ("a number", lambda value, _: isinstance(value, int)),
        "activity_label": _TEXT,
        "ctx_a": _TEXT,
        "ctx_b": _TEXT,
        "endings": ("a list of two or more strings", lambda value, _: _strings(value, 2)),
        "label": (
            "the place of an ending, from 0",
            lambda value, record: _index(value, len(record.get("endings") or ())),
        ),
    },
    "mmlu": {
        "question": _TEXT,
        "choices": ("a list of 4 strings", lambda value, _: _strings(value, 4) and len(value) == 4),
        "answer": ("a number from 0 to 3", lambda value, _: _index(value, 4)),
    },
    "gsm8k": {
        "question": _TEXT,
        "answer": _text("a string with the result after '####'", lambda value: "#### " in value),
    },
    "minerva_math": {
        "problem": _TEXT,
        "solution": _text(
            r"a string with the result in \boxed", lambda v: "\\boxed" in v or "\\fbox" in v
        ),
    },
    "humaneval": {
        "task_id": _TEXT,
        "prompt": _TEXT,
        "canonical_solution": _TEXT,
        "test": _text("a string that defines check", lambda value: "def check(" in value),
        "entry_point": _text("a function's name", str.isidentifier),
    },
    "mbpp": {
        "task_id": ("a number", lambda value, _: isinstance(value, int)),
        "text": _TEXT,
        "code": _TEXT,
        "test_list": ("a list of three or more strings", lambda value, _: _strings(value, 3)),
    },
}
IDS: Mapping[str, str] = {
    "arc_easy": "id",
    "arc_challenge": "id",
    "hellaswag": "ind",
    "humaneval": "task_id",
    "mbpp": "task_id",
}
"""The field that names a record, where the data set has one."""
# What lm-eval's definitions take in one form only.
_AS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "winogrande": {"answer": str},
    "piqa": {"label": int},
    "hellaswag": {"label": str},
    "mmlu": {"answer": int},
}


def checked(task: str, record: Any, where: str) -> dict[str, Any]:
    """Return the fields of a record that a task uses.

    Raises:
        TaskError: says where, which field, what was expected and what was found.
    """
    if not isinstance(record, Mapping):
        raise TaskError(f"{where}: expected an object, found {type(record).__name__}")
    for name, (expected, holds) in FIELDS[task].items():
        if name not in record:
            raise TaskError(
                f"{where}: field {name!r} is missing; task {task} needs {expected} there;"
                f" the record has {', '.join(sorted(map(str, record)))}"
            )
        if not holds(record[name], record):
            raise TaskError(
                f"{where}: field {name!r}: expected {expected}, found {repr(record[name])[:80]}"
            )
    forms = _AS.get(task, {})
    return {name: forms.get(name, lambda v: v)(record[name]) for name in FIELDS[task]}
