"""The paper's stored scores: complete, flagged where the paper contradicts itself, and read strictly."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dllm_qbench.errors import BaselineError
from dllm_qbench.models.released import PAPER_MODELS
from dllm_qbench.paper import CATEGORIES, TASK_ITEMS, Claim, Group
from dllm_qbench.paper_files import FINDINGS, read_paper
from dllm_qbench.tasks.paper import PAPER_TASKS
from dllm_qbench.verdict.bands import Band
from tools.paper_baselines import REFERENCE, write

FOLDER = Path(__file__).parents[2] / "baselines" / "paper"
MODELS = ("llada-8b-base", "llada-8b-instruct", "dream-7b-base")
BASE, INSTRUCT, DREAM = MODELS
Data = dict[str, Any]


def content(name: str) -> Data:
    data: Data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def drop_by_hand(group: Data) -> float:
    """The drop of an average from the files alone, without the package's reading of them."""
    data = content(group["model"])
    before = fmean(data["full_precision"][task]["score"] for task in group["tasks"])
    after = fmean(data["cells"][f"{group['quantized']}/{task}"]["score"] for task in group["tasks"])
    return 100 * (before - after) / before


# --- what is stored


def test_files_are_what_the_tables_give(tmp_path: Path) -> None:
    if not REFERENCE.is_file():
        pytest.skip(f"no transcript of the tables at {REFERENCE}: nothing to write them from again")
    write(REFERENCE, tmp_path)
    names = [f"{name}.json" for name in (*MODELS, "findings")]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(names)
    assert filecmp.cmpfiles(FOLDER, tmp_path, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize(("model", "cells"), [(BASE, 94), (INSTRUCT, 94), (DREAM, 16)])
def test_every_method_scheme_and_task_of_the_tables_is_there(model: str, cells: int) -> None:
    """Tables 1 and 3: GPTQ and AWQ on ten tasks; 2 and 4: three methods on nine; 5: Dream on four."""
    data = content(model)
    weight_only = {(m, f"{s}-g128") for m in ("gptq", "awq") for s in ("W4A16", "W3A16")}
    both = {(m, s) for m in ("smoothquant", "quarot", "duquant") for s in ("W8A8", "W4A4")}
    wanted = {
        f"{method}/{scheme}/{task}"
        for quantized, without in (
            (weight_only, set()),
            (both if model != DREAM else set(), {"hellaswag"}),
        )
        for method, scheme in quantized
        for task in set(data["full_precision"]) - without
    }
    assert set(data["cells"]) == wanted
    assert len(wanted) == cells


def test_tasks_and_models_have_the_names_that_the_full_tier_knows_them_by() -> None:
    assert sorted(task for tasks in CATEGORIES.values() for task in tasks) == sorted(PAPER_TASKS)
    assert set(PAPER_TASKS) == set(TASK_ITEMS)
    assert set(PAPER_MODELS) == set(MODELS)


def test_tables_are_named_by_kind_of_task_and_scheme() -> None:
    for model in MODELS:
        for name, cell in content(model)["cells"].items():
            _, scheme, task = name.split("/")
            table = 1 if task in CATEGORIES["general"] else 3
            assert cell["table"] == (5 if model == DREAM else table + (not scheme.endswith("g128")))


def test_items_are_those_of_the_evaluated_splits() -> None:
    for model in MODELS:
        full = content(model)["full_precision"]
        assert {task: entry["items"] for task, entry in full.items()} == {
            task: TASK_ITEMS[task] for task in full
        }


@pytest.mark.parametrize(
    ("model", "cell", "score", "full"),
    [
        (BASE, "gptq/W4A16-g128/arc_challenge", 47.9, 46.4),
        (BASE, "smoothquant/W4A4/mmlu", 27.1, 65.7),
        (INSTRUCT, "awq/W3A16-g128/mbpp", 31.8, 37.4),
        (INSTRUCT, "duquant/W4A4/gsm8k", 77.3, 78.5),
        (DREAM, "gptq/W3A16-g128/arc_easy", 73.4, 83.1),
    ],
)
def test_scores_as_printed(model: str, cell: str, score: float, full: float) -> None:
    found = read_paper(FOLDER).cell(model, cell)
    assert found is not None
    assert (found.score, found.full_precision) == (score, full)
    assert found.drop == pytest.approx(100 * (full - score) / full)


# --- misprints


def test_flagged_averages_are_exactly_those_that_their_rows_contradict() -> None:
    flagged = set()
    for model in MODELS:
        data = content(model)
        for row in data["averages"]:
            scores = [data["full_precision"][task]["score"] for task in row["tasks"]]
            if row["quantized"] is not None:
                scores = [data["cells"][f"{row['quantized']}/{t}"]["score"] for t in row["tasks"]]
            contradicted = abs(fmean(scores) - row["average"]) > 0.11
            assert ("average" in row["misprints"]) == contradicted, (model, row)
            if contradicted:
                flagged.add((model, row["table"], row["quantized"], row["category"]))
    table_1 = {
        (model, 1, quantized, "general")
        for model in (BASE, INSTRUCT)
        for quantized in (
            None,
            *(f"{m}/{s}-g128" for m in ("gptq", "awq") for s in ("W4A16", "W3A16")),
        )
    }
    assert flagged == table_1 | {
        (BASE, 2, "quarot/W4A4", "general"),
        (INSTRUCT, 4, "smoothquant/W8A8", "code"),
    }


def test_misprints_are_found_by_cell() -> None:
    paper = read_paper(FOLDER)
    (row,) = paper.misprints(INSTRUCT, "smoothquant/W8A8/mbpp")
    assert (row.average, row.recomputed_average, row.misprints) == (38.6, 37.15, ("average",))
    assert "typo" in row.note
    assert paper.misprints(INSTRUCT, "smoothquant/W8A8/gsm8k") == ()
    assert paper.misprints(DREAM, "gptq/W3A16-g128/piqa") == ()


# --- findings and bands


@pytest.mark.parametrize("finding", [entry["name"] for entry in content("findings")["findings"]])
def test_finding_holds_in_the_tables(finding: str) -> None:
    (data,) = (f for f in content("findings")["findings"] if f["name"] == finding)
    for claim in data["claims"]:
        drop = drop_by_hand(claim["drop_of"])
        if "at_most" in claim:
            assert drop <= claim["at_most"], claim
        elif "at_least" in claim:
            assert drop >= claim["at_least"], claim
        else:
            assert drop > drop_by_hand(claim["above_that_of"]), claim


def test_what_is_called_contradicted_is() -> None:
    for data in content("findings")["contradicted"]:
        held = [
            drop_by_hand(c["drop_of"]) > drop_by_hand(c["above_that_of"]) for c in data["claims"]
        ]
        assert not all(held), data["name"]


def test_findings_are_the_seven_that_the_tables_support() -> None:
    paper = read_paper(FOLDER)
    assert {finding.name: len(finding.claims) for finding in paper.findings} == {
        "gptq-w4-within-1-percent": 3,
        "w8a8-near-lossless": 12,
        "smoothquant-w4a4-collapses": 6,
        "w4a4-drops-sharply": 18,
        "rotation-beats-smoothquant-w4a4": 12,
        "math-and-code-suffer-more": 20,
        "dream-w3-worse-than-llada": 4,
    }


@pytest.mark.parametrize(
    ("model", "quantized", "category", "drop"),
    [  # the paper's own printed drops, of rows without a misprint
        (BASE, "smoothquant/W4A4", "general", 37.3),
        (INSTRUCT, "smoothquant/W4A4", "general", 29.0),
        (BASE, "quarot/W4A4", "math", 14.1),
        (INSTRUCT, "awq/W3A16-g128", "code", 12.4),
        (DREAM, "gptq/W3A16-g128", "general", 10.1),
    ],
)
def test_drops_are_those_of_the_average_score(
    model: str, quantized: str, category: str, drop: float
) -> None:
    paper = read_paper(FOLDER)
    tasks = [t for t in CATEGORIES[category] if paper.cell(model, f"{quantized}/{t}")]
    found = paper.drop(Group(model, quantized, tuple(tasks)))
    assert found == pytest.approx(drop, abs=0.15)


def test_bands_are_only_where_a_finding_sets_a_limit_that_the_score_is_beyond() -> None:
    limits = {
        (claim["drop_of"]["model"], claim["drop_of"]["quantized"], task): claim["at_least"]
        for finding in content("findings")["findings"]
        for claim in finding["claims"]
        if "at_least" in claim
        for task in claim["drop_of"]["tasks"]
    }
    with_band = 0
    for cell in read_paper(FOLDER).cells.values():
        quantized, _, task = cell.cell.rpartition("/")
        if cell.band is None:
            assert cell.why.startswith("informational: ")
            continue
        with_band += 1
        assert cell.band == Band("collapse", min_drop=limits[cell.model, quantized, task])
        assert cell.drop > limits[cell.model, quantized, task] + 3
        assert cell.why == "smoothquant-w4a4-collapses"
    assert with_band == 16


# --- reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*MODELS, "findings"):
        (tmp_path / f"{name}.json").write_text(
            (FOLDER / f"{name}.json").read_text(encoding="utf-8"), encoding="utf-8"
        )
    return tmp_path


CELL = "gptq/W4A16-g128/piqa"


def edited(change: Callable[[Data], object]) -> Callable[[Data], object]:
    return lambda data: change(data["cells"][CELL])


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (BASE, lambda d: d.pop("averages"), "field averages is missing"),
        (BASE, lambda d: d.update(schema_version=2), "field schema_version: 1 was expected"),
        (BASE, lambda d: d.update(extra=1), "field at the top: "),
        (BASE, edited(lambda c: c.pop("table")), f"field cells['{CELL}'].table is missing"),
        (BASE, edited(lambda c: c.update(score=101)), f"field cells['{CELL}'].score: 101"),
        (BASE, edited(lambda c: c.update(score="high")), f"field cells['{CELL}'].score: 'high'"),
        (BASE, edited(lambda c: c.update(band={"kind": "sharp"})), f"field cells['{CELL}'].band"),
        (
            BASE,
            edited(lambda c: c.update(band={"kind": "collapse"})),
            f"field cells['{CELL}'].band: min_drop is missing",
        ),
        (BASE, edited(lambda c: c.update(score=70.0)), "field averages["),
        (
            BASE,
            lambda d: d["averages"][0].update(misprints=[]),
            "field averages[0].misprints: (), but the scores give ('average',)",
        ),
        (
            BASE,
            lambda d: d["averages"][0].update(recomputed_average=65.5),
            "field averages[0].recomputed_average: 65.5, but the scores give 66.4",
        ),
        (
            BASE,
            lambda d: d["averages"][1]["tasks"].append("boolq"),
            "field averages[1]: no score for 'boolq'",
        ),
        (
            BASE,
            lambda d: d["full_precision"].pop("piqa"),
            "full_precision has no score above 0 for task 'piqa'",
        ),
        (BASE, lambda d: d["paper"].update(version="v2"), "field paper: differs from that of"),
        (
            "findings",
            lambda d: d["findings"][0]["claims"][0].update(at_most=-1),
            "field findings[0].claims[0]: does not hold in the tables (gptq/W4A16-g128 on "
            "llada-8b-base (general): a drop of at most -1 %; it is -0.18 %)",
        ),
        (
            "findings",
            lambda d: d["findings"][0]["claims"][0]["drop_of"].update(model="llada-1.5"),
            "field findings[0].claims[0]: arXiv 2508.14896v3: no score of gptq/W4A16-g128",
        ),
        (
            "findings",
            lambda d: d["findings"][0]["claims"][0].update(at_least=0),
            "field findings[0].claims[0]: ",
        ),
        (
            "findings",
            lambda d: d["contradicted"].append(d["findings"][3]),
            "'w4a4-drops-sharply' holds in the tables: it is a finding",
        ),
    ],
)
def test_errors_name_the_file_and_the_field(
    folder: Path, file: str, edit: Callable[[Data], object], message: str
) -> None:
    path = folder / f"{file}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BaselineError) as caught:
        read_paper(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_unreadable_files_are_named(folder: Path) -> None:
    (folder / f"{BASE}.json").write_text('{"model": ', encoding="utf-8")
    with pytest.raises(BaselineError, match=rf"{BASE}\.json: not JSON at line 1"):
        read_paper(folder)
    (folder / FINDINGS).unlink()
    with pytest.raises(BaselineError, match=r"findings\.json: cannot be read"):
        read_paper(folder)


def test_claim_has_exactly_one_limit() -> None:
    group = Group(BASE, "gptq/W4A16-g128", ("piqa",))
    with pytest.raises(BaselineError, match="expected one of at_most, at_least and above_that_of"):
        Claim(group)
    with pytest.raises(BaselineError, match="expected one of"):
        Claim(group, at_most=1.0, above_that_of=group)


def test_schema_ships_with_the_package() -> None:
    schema = resources.files("dllm_qbench.schemas").joinpath("paper.schema.json")
    assert set(json.loads(schema.read_text("utf-8"))["$defs"]) >= {"model_file", "findings_file"}
