"""Values out of records, checked: anybody's pull request may have written them. No torch.

Every error is a ``QBenchError`` that begins with the cell and names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import reject_non_finite
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.summary_files import check_outcome

LONGEST: Final = 600
"""Characters that are shown of a prompt or an answer."""


@dataclass(frozen=True)
class Cell:
    """An outcome whose fields are what they should be, and its record as a value."""

    outcome: Outcome
    record: Record | None

    @property
    def id(self) -> str:
        """``model/method/scheme/task``."""
        return f"{self.outcome.model}/{self.outcome.cell}"

    @property
    def place(self) -> str:
        """How errors name it."""
        return f"{self.outcome.cell} on {self.outcome.model}"

    @property
    def parts(self) -> tuple[str, str, str]:
        """Method, scheme and task; of a cell that has no record, what its name says of them."""
        if self.record is not None:
            return self.record.method, self.record.scheme, self.record.task
        parts = self.outcome.cell.rsplit("/", 2)
        method, scheme, task = (*parts, "", "")[:3]
        return method, scheme, task

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The verdict's fields; empty where there is none."""
        return self.outcome.verdict or {}


def read_cells(outcomes: Sequence[Outcome], source: str = "") -> tuple[list[Cell], list[str]]:
    """Check outcomes; of a cell that occurs more than once the last counts, and a note says so.

    ``source`` comes before the cell in errors and notes.
    """
    found: dict[tuple[str, str], Cell] = {}
    dropped: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        key = outcome.model, outcome.cell
        if key in found:
            dropped.setdefault(key, []).append(found.pop(key).outcome.status)
        found[key] = _cell(outcome, source)
    notes = [
        f"{source}{cell} on {model} was measured {len(old) + 1} times: the last one counts"
        f" ({', '.join([*old, found[model, cell].outcome.status])})."
        for (model, cell), old in dropped.items()
    ]
    return list(found.values()), notes


def _cell(outcome: Outcome, source: str) -> Cell:
    place = f"{source}{outcome.cell} on {outcome.model}"
    reject_non_finite(outcome.verdict, f"{place}: verdict")
    check_outcome(outcome, place)
    count(outcome.items, f"{place}: field 'items'")
    for name in ("drop", "interval"):
        given = outcome.verdict.get(name) if outcome.verdict else None
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                number(value, f"{place}: verdict: field {name!r}")
    if outcome.record is None:
        return Cell(outcome, None)
    record = Record.from_dict(outcome.record, f"{place}: record")
    if (record.model, record.cell) != (outcome.model, outcome.cell):
        raise QBenchError(f"{place}: its record is about {record.cell} on {record.model}")
    if record.items != outcome.items:
        raise QBenchError(
            f"{place}: field 'items' is {outcome.items}, its record has {record.items}"
        )
    for name, profile in (("layer_sqnr", record.layer_sqnr), ("local_sqnr", record.local_sqnr)):
        for module, sqnr in profile.items():
            number(sqnr, f"{place}: record: {name}[{module!r}]")
    return Cell(outcome, record)


def number(value: object, field: str) -> float:
    """A finite number; ``QBenchError`` names the field."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except OverflowError:
            pass  # JSON has integers that are larger than any float
    raise QBenchError(f"{field} is {value!r:.60}, expected a finite number")


def numbers(value: object, field: str) -> list[float]:
    """A list of finite numbers."""
    return [number(entry, f"{field}[{n}]") for n, entry in enumerate(listed(value, field))]


def count(value: object, field: str) -> int:
    """A whole number, zero or more, that a browser's numbers hold exactly."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise QBenchError(f"{field} is {value!r:.60}, expected a whole number, zero or more")
    return value


def listed(value: object, field: str) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, list | tuple):
        raise QBenchError(f"{field} is {value!r:.60}, expected a list")
    return value


def mapping(value: object, field: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise QBenchError(f"{field} is {value!r:.60}, expected an object")
    return value


def words(value: object, field: str, most: int = LONGEST) -> str:
    """A text, cut where it is too long."""
    if not isinstance(value, str):
        raise QBenchError(f"{field} is {value!r:.60}, expected text")
    return cut(value, most)


def cut(text: str, most: int = LONGEST) -> str:
    """The text, or its two ends and how many characters stand between them."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"
