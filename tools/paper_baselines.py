"""Write ``baselines/paper``: ``python tools/paper_baselines.py [paper_tables.json] [FOLDER]``.

The argument is a transcript of the tables of arXiv 2508.14896v3 (by default the one beside this
checkout). What the scores must support is in ``paper_findings.py``; nothing is written that they
contradict.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from scipy.stats import norm

from dllm_qbench.jsonfiles import dump, write_atomic
from dllm_qbench.paper import CATEGORIES, TASK_ITEMS, drop_of_average, misprints
from dllm_qbench.paper_files import FINDINGS, read_paper

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.paper_findings import findings

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference" / "paper_tables.json"
PAPER: Final = {
    "title": "Quantization Meets dLLMs: A Systematic Study of Post-training Quantization for Diffusion LLMs",
    "arxiv": "2508.14896",
    "version": "v3",
    "date": "2026-03-13",
}
MODELS: Final = {
    "LLaDA-8B-Base": "llada-8b-base",
    "LLaDA-8B-Instruct": "llada-8b-instruct",
    "Dream-7B-Base": "dream-7b-base",
}
TASKS: Final = {
    "WinoGrande": "winogrande",
    "PIQA": "piqa",
    "ARC-C": "arc_challenge",
    "ARC-E": "arc_easy",
    "HellaSwag": "hellaswag",
    "MMLU_5shot": "mmlu",
    "GSM8K_4shot_gen256": "gsm8k",
    "MATH_0shot_gen256": "minerva_math",
    "HumanEval_0shot_gen512": "humaneval",
    "MBPP_3shot_gen512": "mbpp",
}
SCHEMES: Final = {
    "W4A16g128": "W4A16-g128",
    "W3A16g128": "W3A16-g128",
    "W8A8": "W8A8",
    "W4A4": "W4A4",
}
SURE: Final = float(norm.ppf(0.95))
"""Standard errors by which a single score must lie beyond a collapse's limit to be held against it."""

Data = dict[str, Any]


# --- scores ------------------------------------------------------------------------------------


def model_files(reference: Mapping[str, Any]) -> dict[str, Data]:
    """The content of each model's file, without bands."""
    files: dict[str, Data] = {}
    for name, table in reference["tables"].items():
        if not name.startswith("table") or name.startswith("tableA"):
            continue
        number = int(name.removeprefix("table").partition("_")[0])
        for row in table["rows"]:
            model = MODELS[row["model"]]
            file = files.setdefault(
                model,
                {
                    "schema_version": 1,
                    "model": model,
                    "paper": PAPER,
                    "full_precision": {},
                    "cells": {},
                    "averages": [],
                },
            )
            _add(file, row, number, str(table.get("warning", "")))
    return {model: _sorted(file) for model, file in files.items()}


def _add(file: Data, row: Mapping[str, Any], table: int, warning: str) -> None:
    scores = {TASKS[name]: score for name, score in row["scores"].items()}
    quantized = None
    if row["method"] != "FP":
        quantized = f"{row['method'].lower()}/{SCHEMES[row['setting']]}"
        for task, score in scores.items():
            cell = {"score": score, "table": table}
            if file["cells"].setdefault(f"{quantized}/{task}", cell) != cell:
                raise SystemExit(f"{file['model']} {quantized}/{task}: two scores")
    else:
        for task, score in scores.items():
            known = file["full_precision"].setdefault(
                task, {"score": score, "items": TASK_ITEMS[task], "tables": []}
            )
            if known["score"] != score:
                raise SystemExit(f"{file['model']} {task}: two full-precision scores")
            known["tables"].append(table)
    for category, of_category in CATEGORIES.items():
        tasks = [task for task in of_category if task in scores]
        prefix = "" if "avg" in row else f"{category}_"
        if tasks and f"{prefix}avg" in row:
            file["averages"].append(
                _average(file, row, prefix, table, quantized, category, tasks, warning)
            )


def _average(
    file: Mapping[str, Any],
    row: Mapping[str, Any],
    prefix: str,
    table: int,
    quantized: str | None,
    category: str,
    tasks: Sequence[str],
    warning: str,
) -> Data:
    before = [file["full_precision"][task]["score"] for task in tasks]
    after = before
    if quantized is not None:
        after = [file["cells"][f"{quantized}/{task}"]["score"] for task in tasks]
    reported = row[f"{prefix}drop_pct_reported"]
    drop = None if reported is None else 0.0 - reported
    average = fmean(after)
    true_drop = None if drop is None else drop_of_average(before, after)
    wrong = misprints(row[f"{prefix}avg"], drop, average, true_drop)
    found = {
        "table": table,
        "quantized": quantized,
        "category": category,
        "tasks": list(tasks),
        "average": row[f"{prefix}avg"],
        "drop": drop,
        "recomputed_average": round(average, 2),
        "recomputed_drop": None if true_drop is None else round(true_drop, 2),
        "misprints": list(wrong),
    }
    return {**found, "note": warning} if wrong and warning else found


def _sorted(file: Data) -> Data:
    tasks = [task for of_category in CATEGORIES.values() for task in of_category]
    full = sorted(file["full_precision"].items(), key=lambda entry: tasks.index(entry[0]))
    return {**file, "full_precision": dict(full), "cells": dict(sorted(file["cells"].items()))}


# --- bands ----------------------------------------------------------------------------------------


def with_bands(files: Mapping[str, Data], found: Mapping[str, Any]) -> dict[str, Data]:
    """The files with a band, or the reason for none, in every cell.

    A limit on an average says nothing about one of its tasks. Only where a task's own score is surely
    beyond a collapse's limit, on the paper's own items, is the limit demanded of the task too.
    """
    limits = {
        (claim["drop_of"]["model"], f"{claim['drop_of']['quantized']}/{task}"): (finding, claim)
        for finding in found["findings"]
        for claim in finding["claims"]
        if "above_that_of" not in claim
        for task in claim["drop_of"]["tasks"]
    }
    made = {}
    for model, file in files.items():
        cells = {}
        for name, cell in file["cells"].items():
            full = file["full_precision"][name.rpartition("/")[2]]
            band, why = _band(cell["score"], full, limits.get((model, name)))
            cells[name] = {**cell, "band": band, "why": why}
        made[model] = {**file, "cells": cells}
    return made


def _band(
    score: float, full: Mapping[str, Any], limit: tuple[Mapping[str, Any], Mapping[str, Any]] | None
) -> tuple[Data | None, str]:
    if limit is None:
        return None, "informational: no finding of the tables sets a limit here"
    finding, claim = limit
    drop = 100 * (1 - score / full["score"])
    if "at_most" in claim:
        return None, (
            f"informational: {finding['name']} is about the average over tasks, which single tasks "
            "of the tables leave"
        )
    error = _error_of_drop(score, full["score"], full["items"])
    if drop - SURE * error < claim["at_least"]:
        return None, (
            f"informational: {finding['name']} is about the average over tasks; this one's drop of "
            f"{drop:.1f} % is not surely beyond {claim['at_least']:g} %"
        )
    return {"kind": "collapse", "min_drop": claim["at_least"]}, finding["name"]


def _error_of_drop(score: float, full: float, items: int) -> float:
    """Standard error in percent, as if the two scores were of different items: the larger one."""
    after, before = score / 100, full / 100
    variance = (after * (1 - after) + (after / before) ** 2 * before * (1 - before)) / items
    return 100 * math.sqrt(variance) / before


def write(reference: Path, folder: Path) -> None:
    """Write all files and read them back, which checks them."""
    files = model_files(json.loads(reference.read_text(encoding="utf-8")))
    found = {"schema_version": 1, "paper": PAPER, **findings(files)}
    for model, file in with_bands(files, found).items():
        write_atomic(folder / f"{model}.json", dump(file) + "\n")
    write_atomic(folder / FINDINGS, dump(found) + "\n")
    read_paper(folder)


def main() -> None:
    """Command line."""
    if len(sys.argv) > 3:
        raise SystemExit(__doc__)
    given = [Path(argument) for argument in sys.argv[1:]]
    reference = given[0] if given else REFERENCE
    folder = given[1] if len(given) > 1 else ROOT / "baselines" / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    write(reference, folder)


if __name__ == "__main__":
    main()
