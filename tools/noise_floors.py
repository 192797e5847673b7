"""Store noise floors in the baselines: ``python tools/noise_floors.py FOLDER [FOLDER ...] --up-to N``.

FOLDERs are what ``tools/reruns.py`` wrote. For each cell of ``baselines/`` two floors are taken:

- *platform*: the runs of ``--vary seeds`` that share recipe, device and torch with a run 0 of ``seeds`` or
  ``draws`` (threads, batch sizes, global random states);
- *draws*: every other run, against the run 0 of its own class of machine: calibration draws and
  rotation seeds; and each class's run 0 against the others' (another device, another torch).

A module's own SQNR moves alike on all tasks: there the floor is that of the quantized model's noisiest
task. A floor without a run keeps what the baseline has. Runs above N are left for
``tools/false_alarms.py``. Prints what it stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dllm_qbench.baselines import baseline_path, read_baselines
from dllm_qbench.jsonfiles import set_member, write_atomic
from dllm_qbench.noise import NoiseFloor, floor, wider
from dllm_qbench.records import Record
from dllm_qbench.verdict.evidence import machine_class
from tools.reruns import read

BASELINES = Path(__file__).parents[1] / "baselines"


def floors(records: Sequence[Record]) -> tuple[NoiseFloor | None, NoiseFloor | None]:
    """Platform and draws floors of one cell; ``None`` where no run tells."""
    bases: dict[tuple[str, str, str], Record] = {}
    for record in records:
        if record.provenance["run"] == 0:
            bases.setdefault(machine_class(record.provenance), record)
    same, other = [], []
    for record in records:
        base = bases.get(machine_class(record.provenance))
        if base is None or record is base:
            continue
        (same if record.recipe_hash == base.recipe_hash else other).append((base, record))
    first, *rest = bases.values() if bases else [None]
    other += [(first, base) for base in rest if first is not None]
    return (
        _joined(same, "threads, batch sizes, global random states"),
        _joined(other, "calibration draws, rotation seeds, devices, torch versions"),
    )


def _joined(pairs: Sequence[tuple[Record, Record]], what: str) -> NoiseFloor | None:
    if not pairs:
        return None
    return replace(wider([floor(base, [repeat], what) for base, repeat in pairs]), runs=len(pairs))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--up-to", type=int, default=8, metavar="N")
    given = parser.parse_args()
    cells: dict[tuple[str, str], list[Record]] = {}
    for folder in given.folders:
        for record in read(folder):
            if record.provenance["run"] > given.up_to:
                continue
            cells.setdefault((record.model, record.cell), []).append(record)
    found = {key: floors(records) for key, records in cells.items()}
    for model in sorted({model for model, _ in found}):
        path = baseline_path(BASELINES, model)
        stored = read_baselines(path).cells
        text = path.read_text("utf-8")
        for (of_model, cell), pair in sorted(found.items()):
            if of_model != model or cell not in stored:
                continue
            noise = {}
            for index, kind in enumerate(("platform", "draws")):
                own = pair[index] or getattr(stored[cell], kind)
                tasks = [
                    other[index]
                    for (m, name), other in found.items()
                    if m == model and name.rpartition("/")[0] == cell.rpartition("/")[0]
                ]
                local = max((t.local_sqnr for t in tasks if t), default=own.local_sqnr)
                noise[kind] = replace(own, local_sqnr=local).to_dict()
            data = json.loads(text)["cells"][cell]
            text = set_member(text, ("cells", cell), {**data, "noise": noise})
            shown = {kind: (f["runs"], f["local_sqnr"], f["net_loss"]) for kind, f in noise.items()}
            print(model, cell, shown)
        write_atomic(path, text)
        read_baselines(path)  # what was written has to be readable


if __name__ == "__main__":
    main()
