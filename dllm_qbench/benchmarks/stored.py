"""The file of stored ratios: ``baselines/benchmarks/<machine class>.json``. Read, validate, write.

Reading is strict: every error is a ``BaselineError`` that names the file and the field. Writing
replaces the text of one case and leaves every other byte alone; the file is replaced atomically.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dllm_qbench.benchmarks.gate import Bar, Expected, allowed_factor, pooled_spread, spread
from dllm_qbench.benchmarks.machine import Machine
from dllm_qbench.errors import BaselineError
from dllm_qbench.jsonfiles import dump, parse_stored, read_stored, set_member, write_atomic
from dllm_qbench.schemas import validate

SCHEMA: Final = "benchmarks"
SCHEMA_VERSION: Final = 1
MOST_RUNS: Final = 8
"""The latest runs of a case that are kept."""
UPDATE: Final = "pytest tests/benchmarks --qbench-update-benchmarks"
_RECORD: Final = f"record it with: {UPDATE}"


@dataclass(frozen=True)
class StoredCase:
    """What earlier runs measured of a case.

    Attributes:
        rival: that the ratios are to.
        runs: median ratio of each run, oldest first; each run is a process of its own.
        floors: the bars, by rival.
        provenance: of the latest run.
    """

    rival: str
    runs: tuple[float, ...]
    floors: Mapping[str, float]
    provenance: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored; ratio and spread follow from the runs."""
        own = spread(self.runs)
        return {
            "rival": self.rival,
            "ratio": _digits(statistics.median(self.runs)),
            "spread": None if own is None else _digits(own),
            "runs": list(self.runs),
            "floors": dict(sorted(self.floors.items())),
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class StoredRatios:
    """All stored cases of one class of machine."""

    machine_class: str
    processor: str
    cases: Mapping[str, StoredCase]
    path: Path

    def expected(self, name: str, bars: Sequence[Bar]) -> Expected | None:
        """Return what a case may be; ``None`` where nothing is stored of it.

        Raises:
            BaselineError: the stored floors are not the case's bars.
        """
        case = self.cases.get(name)
        if case is None:
            return None
        floors = {bar.rival: bar.at_least for bar in bars}
        if dict(case.floors) != floors:
            raise BaselineError(
                f"{self.path}: cases[{name!r}].floors are {dict(case.floors)}, but the case has"
                f" {floors}: review which is right, then {UPDATE}"
            )
        pooled = pooled_spread([case.runs for case in self.cases.values()])
        allowed = allowed_factor(case.runs, pooled)
        return Expected(case.rival, statistics.median(case.runs), allowed)


def path_of(folder: Path, machine: Machine) -> Path:
    """Return where the ratios of a machine's class are, or are to be; ``folder`` is the baselines'."""
    return folder / "benchmarks" / f"{machine.name}.json"


def read_ratios(path: Path) -> StoredRatios:
    """Read and check a file; ``BaselineError`` names the file and the field."""
    return _parse(read_stored(path, _RECORD), path)


def write_case(
    path: Path, machine: Machine, name: str, case: StoredCase, *, anew: bool = False
) -> StoredCase:
    """Add a run to what is stored of a case, or store it ``anew``; return what is stored then.

    ``case.runs`` holds the new run alone. Earlier runs are kept, the latest :data:`MOST_RUNS`, unless
    they are to another rival. Refuses a file that does not validate, and one of another processor.
    """
    text = read_stored(path, _RECORD) if path.exists() else None
    known = None if text is None else _parse(text, path)
    if known is not None and known.processor != machine.processor:
        raise BaselineError(
            f"{path}: processor is {known.processor!r}, this is {machine.processor!r}: ratios of the two"
            " do not belong in one file"
        )
    before = known.cases.get(name) if known is not None and not anew else None
    earlier = before.runs if before is not None and before.rival == case.rival else ()
    runs = (*earlier, *map(_digits, case.runs))[-MOST_RUNS:]
    new = StoredCase(case.rival, runs, case.floors, case.provenance)
    document = {
        "schema_version": SCHEMA_VERSION,
        "machine_class": machine.name,
        "processor": machine.processor,
        "cases": {name: new.to_dict()},
    }
    validate(document, SCHEMA, f"{name} as a stored ratio")
    if text is None:
        write_atomic(path, dump(document) + "\n")
    else:
        write_atomic(path, set_member(text, ("cases", name), new.to_dict()))
    return new


def _parse(text: str, path: Path) -> StoredRatios:
    data = parse_stored(text, path, SCHEMA)
    if data["machine_class"] != path.stem:
        raise BaselineError(
            f"{path}: machine_class is {data['machine_class']!r}, expected the file's name {path.stem!r}"
        )
    cases = {}
    for name, found in data["cases"].items():
        case = StoredCase(
            found["rival"], tuple(found["runs"]), found["floors"], found["provenance"]
        )
        for field in ("ratio", "spread"):
            follows = case.to_dict()[field]
            if found[field] != follows:
                raise BaselineError(
                    f"{path}: field cases[{name!r}].{field} is {found[field]}, but its runs give"
                    f" {follows}: it is not edited by hand; {UPDATE}"
                )
        cases[name] = case
    return StoredRatios(data["machine_class"], data["processor"], cases, path)


def _digits(value: float) -> float:
    """Keep five digits: the rest is noise, and would make every diff longer."""
    return float(f"{value:.5g}")
