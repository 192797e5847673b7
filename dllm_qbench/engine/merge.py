"""Runs in parts: which cells a part gets, and how the parts' results become one again. No torch here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.engine.store import Store
from dllm_qbench.engine.store_format import first_difference
from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.outcomes import parse_outcome


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/N``: part i of N, counted from 1.

    Raises:
        QBenchError: anything else; says what was expected.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    if found is None:
        raise QBenchError(f"shard {text!r}: expected i/N, such as 1/4")
    part, parts = int(found[1]), int(found[2])
    if not 1 <= part <= parts:
        raise QBenchError(f"shard {text!r}: expected i/N with i from 1 to N")
    return part, parts


def subject_of(cell: str) -> str:
    """Return a cell's name without its task: what cells of one quantized model have in common.

    >>> subject_of("test_full.py::test_cell[llada-8b-base-gptq-W4A16-g128-arc_easy]")
    'test_full.py::test_cell[llada-8b-base-gptq-W4A16-g128'
    >>> subject_of("dream-7b-base/rtn/W8A8/gsm8k")
    'dream-7b-base/rtn/W8A8'
    """
    return re.sub(r"[-/][a-z0-9_]+\]?$", "", cell)


def shard_of(cells: Sequence[str], part: int, parts: int) -> list[str]:
    """Return the cells that belong to part ``part`` of ``parts``, from 1, in their order.

    Cells are named as pytest names their tests, or ``model/method/scheme/task``; those of one quantized
    model stay together. Every cell is in exactly one part. Sizes differ by at most the largest number of
    cells that one quantized model has. Which part a cell is in depends on the names alone, not on their
    order or on the machine.
    """
    if not 1 <= part <= parts:
        raise QBenchError(f"shard {part}/{parts}: expected i/N with i from 1 to N")
    loads = [0] * parts
    home = {}
    groups = Counter(map(subject_of, cells))
    for group, size in sorted(groups.items(), key=lambda item: (-item[1], item[0])):
        home[group] = loads.index(min(loads))
        loads[home[group]] += size
    return [cell for cell in cells if home[subject_of(cell)] == part - 1]


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        entries: how many cells (of files) or values (of stores) the result holds.
        repeated: how many came more than once and agreed.
        interrupted: the files whose last line a kill had cut, and which lack that cell.
    """

    entries: int
    repeated: int
    interrupted: tuple[Path, ...] = ()

    def __str__(self) -> str:
        told = f"{self.entries} results, {self.repeated} of them more than once"
        cut = ", ".join(map(str, self.interrupted))
        return f"{told}; without the last line, which a kill had cut: {cut}" if cut else told


def merge(paths: Sequence[Path], out: Path) -> Merged:
    """Join what the parts of a run wrote: record files into a record file, or stores into a store.

    What came twice and agrees, but for when and how long, is kept once. A cell that could not be
    measured in one file gives way to its record in another. On any error ``out`` is as it was.

    Args:
        paths: files that ``--qbench-records`` wrote, or folders of stores; not both.
        out: the result. A record file that exists must be among ``paths``; a store may exist, and gets
            what it lacks. Folders of a store (quantized models) are not merged: they can be made again.

    Raises:
        QBenchError: two results of one cell differ (names the cell, the place and both files), or a
            path is missing, damaged, or of the wrong kind.
    """
    paths, out = [Path(path) for path in paths], Path(out)
    if not paths:
        raise QBenchError("merge: nothing to merge: give record files, or folders of stores")
    for path in paths:
        if not path.exists():
            raise QBenchError(f"merge: {path} does not exist")
    folders = [path for path in paths if path.is_dir()]
    if folders and len(folders) < len(paths):
        file = next(path for path in paths if path not in folders)
        raise QBenchError(
            f"merge: {folders[0]} is a store and {file} a record file: merge stores with stores, and"
            " record files with record files"
        )
    return _merge_stores(paths, out) if folders else _merge_files(paths, out)


def _merge_files(paths: Sequence[Path], out: Path) -> Merged:
    if out.is_dir():
        raise QBenchError(f"merge: {out} is a folder, expected a file for the merged records")
    if out.exists() and not any(os.path.samefile(out, path) for path in paths):
        raise QBenchError(
            f"merge: {out} exists and is none of the files to merge: name it among them too, or remove it"
        )
    kept: dict[tuple[str, str], tuple[Path, str, Mapping[str, Any]]] = {}
    repeated = 0
    interrupted = []
    for path in dict.fromkeys(paths):
        lines, cut = _lines(path)
        if cut:
            interrupted.append(path)
        for number, line in lines:
            outcome = parse_outcome(line, f"{path}:{number}")
            name = (outcome["model"], outcome["cell"])
            if name not in kept or kept[name][2]["record"] is None:
                repeated += name in kept
                kept[name] = path, line, outcome
                continue
            repeated += 1
            first, _, other = kept[name]
            if outcome["record"] is None:
                continue
            if difference := first_difference(other, outcome):
                raise QBenchError(
                    f"merge: {name[1]} on {name[0]}: {first} and {path} differ in {difference}"
                )
    write_atomic(out, "".join(line + "\n" for _, line, _ in kept.values()))
    return Merged(len(kept), repeated, tuple(interrupted))


def _lines(path: Path) -> tuple[list[tuple[int, str]], bool]:
    """Return the whole lines with their numbers, and whether the last one was cut off."""
    try:
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    return list(enumerate(lines, start=1)), bool(rest)


def _merge_stores(paths: Sequence[Path], out: Path) -> Merged:
    if out.exists() and not out.is_dir():
        raise QBenchError(f"merge: {out} is a file, expected a folder for the merged store")
    sources = {path.resolve(): Store(path) for path in ([out] if out.exists() else []) + [*paths]}
    # Twice over the files: nothing is written before everything was read and compared.
    repeated = 0
    names = set()
    for kind in sorted({kind for store in sources.values() for kind in store.kinds()}):
        first: dict[str, Store] = {}
        for store in sources.values():
            for key, value in store.entries(kind):
                name = store.name_of(kind, key)
                names.add((kind, name))
                if name not in first:
                    first[name] = store
                    continue
                repeated += 1
                if difference := first_difference(first[name].get(kind, key), value):
                    raise QBenchError(
                        f"merge: {kind} {name} ({_told(key)}): {first[name].folder} and"
                        f" {store.folder} differ in {difference}"
                    )
    target = Store(out)
    for store in sources.values():
        if store.folder.resolve() == target.folder.resolve():
            continue
        for kind in store.kinds():
            for key, value in store.entries(kind):
                target.put(kind, key, value)
    return Merged(len(names), repeated)


def _told(key: Mapping[str, Any]) -> str:
    """Name a key's cell as far as the key does."""
    parts = [str(key[name]) for name in ("model", "method", "scheme", "task") if key.get(name)]
    return " ".join(parts) or "no cell"
