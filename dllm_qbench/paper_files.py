"""Reading the files of ``baselines/paper``: strict; every error names the file and the field. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from dllm_qbench.errors import BaselineError, QBenchError
from dllm_qbench.jsonfiles import parse_json, reject_non_finite
from dllm_qbench.paper import (
    Claim,
    Group,
    Paper,
    PaperCell,
    PaperFinding,
    PrintedAverage,
    drop_of_average,
    misprints,
)
from dllm_qbench.schemas import validate
from dllm_qbench.verdict.bands import Band

FINDINGS: Final = "findings.json"
"""The file of findings; every other one in the folder holds a model's scores."""


def paper_folder() -> Path:
    """Where the files lie beside this package, in a checkout or installed.

    ``BaselineError`` where they do not.
    """
    package = Path(__file__).parent
    for folder in (package.parent / "baselines" / "paper", package / "baselines_of_the_paper"):
        if (folder / FINDINGS).is_file():
            return folder
    raise BaselineError(
        f"{package.parent / 'baselines' / 'paper'}: the paper's scores are not here; give the folder"
        " baselines/paper of the project's source"
    )


def read_paper(folder: str | Path | None = None) -> Paper:
    """Read and check all files of a folder (by default ``paper_folder()``).

    ``BaselineError`` names the file and the field, also where an average, a drop or a flag is not what
    the scores give, and where a finding does not hold in them.
    """
    folder = paper_folder() if folder is None else Path(folder)
    data = _load(folder / FINDINGS, "findings_file")
    cells: dict[tuple[str, str], PaperCell] = {}
    averages: list[PrintedAverage] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == FINDINGS:
            continue
        model_data = _load(path, "model_file")
        if model_data["paper"] != data["paper"]:
            raise BaselineError(f"{path}: field paper: differs from that of {folder / FINDINGS}")
        of_model = _cells(model_data, path)
        cells |= of_model
        averages += _averages(model_data, of_model, path)
    paper = Paper(
        data["paper"]["title"],
        data["paper"]["arxiv"],
        data["paper"]["version"],
        cells,
        tuple(averages),
        tuple(_finding(entry) for entry in data["findings"]),
        tuple(_finding(entry) for entry in data["contradicted"]),
    )
    _check(paper, folder / FINDINGS)
    return paper


def _check(paper: Paper, path: Path) -> None:
    """Raise where a finding does not hold in the tables, or a contradicted one does."""
    for field in ("findings", "contradicted"):
        for at, finding in enumerate(getattr(paper, field)):
            held = []
            for number, claim in enumerate(finding.claims):
                place = f"{path}: field {field}[{at}].claims[{number}]"
                try:
                    held.append(paper.holds(claim))
                except BaselineError as error:
                    raise BaselineError(f"{place}: {error}") from error
                if field == "findings" and not held[-1]:
                    drop = paper.drop(claim.drop_of)
                    raise BaselineError(
                        f"{place}: does not hold in the tables ({claim}; it is {drop:.2f} %)"
                    )
            if field == "contradicted" and all(held):
                raise BaselineError(
                    f"{path}: field {field}[{at}]: {finding.name!r} holds in the tables: it is a finding"
                )


def _load(path: Path, part: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error
    try:
        data = parse_json(text, str(path))
        reject_non_finite(data, f"{path}: $")
    except QBenchError as error:
        raise BaselineError(str(error)) from error
    validate(data, "paper", str(path), part)
    found: dict[str, Any] = data
    return found


def _cells(data: Mapping[str, Any], path: Path) -> dict[tuple[str, str], PaperCell]:
    model, found = data["model"], {}
    for name, entry in data["cells"].items():
        field, task = f"{path}: field cells[{name!r}]", name.rpartition("/")[2]
        full = data["full_precision"].get(task)
        if full is None or not full["score"]:
            raise BaselineError(f"{field}: full_precision has no score above 0 for task {task!r}")
        try:
            band = None if entry["band"] is None else Band.from_dict(entry["band"])
        except BaselineError as error:
            raise BaselineError(f"{field}.band: {error}") from error
        found[model, name] = PaperCell(
            model,
            name,
            entry["score"],
            full["score"],
            full["items"],
            entry["table"],
            band,
            entry["why"],
        )
    return found


def _averages(
    data: Mapping[str, Any], cells: Mapping[tuple[str, str], PaperCell], path: Path
) -> list[PrintedAverage]:
    full = {task: entry["score"] for task, entry in data["full_precision"].items()}
    found = []
    for at, entry in enumerate(data["averages"]):
        field = f"{path}: field averages[{at}]"
        row = PrintedAverage(
            data["model"],
            **{**entry, "tasks": tuple(entry["tasks"]), "misprints": tuple(entry["misprints"])},
        )
        try:
            before = [full[task] for task in row.tasks]
            after = before
            if row.quantized is not None:
                after = [cells[row.model, f"{row.quantized}/{task}"].score for task in row.tasks]
        except KeyError as error:
            raise BaselineError(f"{field}: no score for {error}") from error
        average = fmean(after)
        drop = None if row.drop is None else drop_of_average(before, after)
        wrong = misprints(row.average, row.drop, average, drop)
        for name, stored, expected in (
            ("recomputed_average", row.recomputed_average, round(average, 2)),
            ("recomputed_drop", row.recomputed_drop, None if drop is None else round(drop, 2)),
            ("misprints", row.misprints, wrong),
        ):
            if stored != expected:
                raise BaselineError(f"{field}.{name}: {stored!r}, but the scores give {expected!r}")
        found.append(row)
    return found


def _finding(data: Mapping[str, Any]) -> PaperFinding:
    def group(entry: Mapping[str, Any]) -> Group:
        return Group(entry["model"], entry["quantized"], tuple(entry["tasks"]))

    claims = tuple(
        Claim(
            group(entry["drop_of"]),
            entry.get("at_most"),
            entry.get("at_least"),
            group(entry["above_that_of"]) if "above_that_of" in entry else None,
        )
        for entry in data["claims"]
    )
    return PaperFinding(data["name"], data["statement"], tuple(data["tables"]), claims)
