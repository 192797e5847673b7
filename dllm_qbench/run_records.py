"""The record file of a run that may be killed, and started again.

Beside the file lies, as long as the run is not through, a note of what measures it: ``FILE.unfinished``.
The same run then goes on with what is missing. A run of other code, libraries or items, or on another
device, starts anew, and so does one after a run that was through: nobody is shown yesterday's figures for
today's code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.records import Record
from dllm_qbench.summary_files import read_outcomes

UNFINISHED: Final = ".unfinished"
"""What the name of the note ends with."""


class Kept:
    """A record file, with what an unfinished run of the same kind left in it.

    Args:
        path: the file. It is replaced, or gone on with, when the first cell comes, not before.
        what: JSON values that say what measures; records of anything else are not used.

    Raises:
        QBenchError: the file of an unfinished run is damaged; names the line.
    """

    def __init__(self, path: Path, what: Mapping[str, Any]) -> None:
        self._path, self._note = path, path.with_name(path.name + UNFINISHED)
        self._what = json.dumps(what, sort_keys=True) + "\n"
        self._before: dict[tuple[str, str], Outcome] = {}
        self._file: OutcomeFile | None = None
        if self._note.is_file() and self._note.read_text(encoding="utf-8") == self._what:
            found = read_outcomes(path) if path.is_file() else []
            self._before = {(o.model, o.cell): o for o in found if o.record is not None}

    def record(self, model: str, cell: str, items: int, fingerprint: str) -> Record | None:
        """What was measured of a cell, if it was on so many items and on the same weights."""
        found = self._before.get((model, cell))
        if found is None:
            return None
        record = Record.from_dict(found.record, f"{self._path}: {cell}")
        same = record.provenance.get("checkpoint_sha256") == fingerprint
        return record if same and record.items == items else None

    def keep(self, outcome: Outcome) -> None:
        """Keep a cell that was measured now: flushed to the disk when this returns."""
        if self._file is None:
            # What is there is of this kind before the note says so: a kill in between starts anew.
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, _lines(self._before.values()))
            write_atomic(self._note, self._what)
            self._file = _Continued(self._path)
        self._file.append(outcome)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Write the run's outcomes as they were judged, then what else was kept; the run is through."""
        ours = {(outcome.model, outcome.cell) for outcome in outcomes}
        rest = [outcome for name, outcome in self._before.items() if name not in ours]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, _lines([*outcomes, *rest]))
        self._note.unlink(missing_ok=True)


class _Continued(OutcomeFile):
    """Goes on at the end of what is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._started = True


def _lines(outcomes: Iterable[Outcome]) -> str:
    return "".join(f"{outcome.to_json()}\n" for outcome in outcomes)


def source_version(function: Callable[..., Any]) -> str:
    """Return a digest of the sources of a function's package, or of its module where there is none."""
    module = inspect.getmodule(function)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return "unknown"
    top = sys.modules.get(module.__name__.partition(".")[0])
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = sorted(path for folder in folders for path in folder.rglob("*.py")) or [Path(file)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
