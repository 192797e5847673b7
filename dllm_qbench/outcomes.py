"""What came of the cells of one run, as it travels from workers to the terminal and to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import parse_json
from dllm_qbench.records import Record

if TYPE_CHECKING:
    from dllm_qbench.verdict.bands import Band
    from dllm_qbench.verdict.judge import Verdict
    from dllm_qbench.verdict.matrix import CellTests

INFORMATIONAL: Final = "informational"
"""Status of a cell that there is nothing to judge by: it never fails."""


@dataclass(frozen=True)
class Outcome:
    """One cell of one run: the record and the verdict, or the error that prevented them.

    Attributes:
        status: the verdict's, or ``infra`` when there is none.
        band: as a table shows it; empty when the cell has no baseline.
        fails: whether the cell's test fails.
        to_write: the record is to be stored as the cell's baseline.
    """

    cell: str
    model: str
    status: str
    items: int = 0
    band: str = ""
    fails: bool = True
    to_write: bool = False
    record: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    error: str | None = None

    @classmethod
    def of_verdict(
        cls, record: Record, verdict: Verdict, fails: bool, to_write: bool = False
    ) -> Outcome:
        """A cell that was measured and judged."""
        return cls(
            cell=record.cell,
            model=record.model,
            status=verdict.status,
            items=record.items,
            band=str(verdict.band),
            fails=fails,
            to_write=to_write,
            record=record.to_dict(),
            verdict=verdict.to_dict(),
        )

    @classmethod
    def of_error(cls, cell: str, model: str, error: Exception, record: Record | None) -> Outcome:
        """A cell that could not be measured, or (with its record) not judged."""
        return cls(
            cell=cell,
            model=model,
            status="infra",
            items=record.items if record else 0,
            record=record.to_dict() if record else None,
            error=f"{type(error).__name__}: {error}",
        )

    @classmethod
    def of_measurement(
        cls, record: Record, text: str, status: str = INFORMATIONAL, band: Band | None = None
    ) -> Outcome:
        """A cell that has no baseline of its own: only told, or held against a band from elsewhere."""
        from dllm_qbench.verdict.judge import FAILING
        from dllm_qbench.verdict.statistics import Pairs, drop_interval, relative_drop

        pairs = Pairs.count(record.reference_correct, record.quantized_correct)
        drop = relative_drop(pairs) if pairs.before else None
        interval = list(drop_interval(pairs)) if pairs.before else None
        return cls(
            cell=record.cell,
            model=record.model,
            status=status,
            items=record.items,
            band="" if band is None else str(band),
            fails=status in FAILING,
            record=record.to_dict(),
            verdict={"drop": drop, "interval": interval, "text": text},
        )

    @property
    def message(self) -> str:
        """Why the cell fails, or what is said of it."""
        if self.error is not None:
            return f"{self.cell} on {self.model}: {self.status}\n{self.error}"
        said = self.verdict or {}
        text = said.get("message") or said.get("text") or ""
        return f"{self.cell} on {self.model}: {self.status}\n{text}"

    @property
    def tests(self) -> CellTests | None:
        """The cell's part of the run's tests; ``None`` where nothing was judged by a baseline."""
        from dllm_qbench.verdict.matrix import CellTests

        if self.verdict is None or "p_values" not in self.verdict:
            return None
        fields_of = ("p_values", "lost", "gained", "common", "margin")
        return CellTests(self.model, self.cell, *(self.verdict[name] for name in fields_of))

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Inverse of ``to_json``."""
        data = json.loads(text)
        return cls(**{entry.name: data[entry.name] for entry in fields(cls)})


class OutcomeFile:
    """JSON Lines, one cell a line, each appended in one write as soon as it is known.

    A run that is interrupted or killed keeps every cell that it had finished. The file of an earlier
    run is replaced when the first cell arrives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = False

    def append(self, outcome: Outcome) -> None:
        """Write one line and flush it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if self._started else os.O_TRUNC)
        self._started = True
        rest = (outcome.to_json() + "\n").encode()
        handle = os.open(self.path, flags, 0o666)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def parse_outcome(line: str, place: str) -> dict[str, Any]:
    """Read one line of an outcome file: its fields, and the record that they are about.

    ``QBenchError`` names the place and the field.
    """
    data = parse_json(line, place)
    if not isinstance(data, dict):
        raise QBenchError(f"{place}: expected a JSON object, found {type(data).__name__}")
    for entry in fields(Outcome):
        if entry.name not in data:
            raise QBenchError(f"{place}: field {entry.name!r} is missing")
    for name in ("cell", "model"):
        if not isinstance(data[name], str):
            raise QBenchError(f"{place}: field {name!r} is {data[name]!r:.60}, expected str")
    if data["record"] is not None:
        record = Record.from_dict(data["record"], f"{place}: record")
        if (record.model, record.cell) != (data["model"], data["cell"]):
            raise QBenchError(
                f"{place}: the line is about {data['cell']} on {data['model']}, its record about"
                f" {record.cell} on {record.model}"
            )
    return data


def read_records(path: str | Path) -> list[Record]:
    """The records of a file that ``--qbench-records`` wrote; cells that failed to run have none.

    A last line without its newline is a write that was interrupted, and is left out. Any other
    broken line is a ``QBenchError`` that names the file and the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        place = f"{path}:{number}"
        outcome = parse_json(line, place)
        if not isinstance(outcome, Mapping) or "record" not in outcome:
            raise QBenchError(f"{place}: field 'record' is missing")
        if outcome["record"] is not None:
            records.append(Record.from_dict(outcome["record"], f"{place}: record"))
    return records
