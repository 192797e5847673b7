"""A run as the report's data: figures by hand, the order, what odd runs give."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_qbench.baselines import (
    CellBaseline,
    baseline_path,
    read_baselines,
    shipped_baselines,
    write_cell,
)
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.report.data import build
from dllm_qbench.run_view import severity
from dllm_qbench.summary_files import read_outcomes
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.judge import judge
from tests.helpers.many_cells import many_cells
from tests.helpers.records import LOCAL, PROFILE, PROVENANCE, make_record
from tests.helpers.report_runs import built, told

MATH = "gptq/W4A16-g64/math"
REAL = Path(__file__).parents[1] / "data" / "report" / "real.jsonl"
ROOT = Path(__file__).parents[2]


def small(**fields: Any) -> Record:
    """Six items, of which b and c are lost and d is gained."""
    record = make_record(
        [True, True, True, False, True, False],
        [True, False, False, True, True, False],
        ids="abcdef",
        **fields,
    )
    return replace(record, kinds=("x", "y", "x", "y", "x", "y"))


# --- figures by hand


def test_a_cell_s_figures() -> None:
    """4 of 6 right before and 3 after: 66.67, 50 and a drop of a quarter."""
    (cell,) = built(told(small()))["cells"]
    assert (cell["id"], cell["model"]) == ("toy/gptq/W4A16-g64/math", "toy")
    assert (cell["method"], cell["scheme"], cell["task"]) == ("gptq", "W4A16-g64", "math")
    assert (cell["reference"], cell["quantized"], cell["drop"]) == (66.6667, 50.0, 25.0)
    assert cell["interval"][0] < 25 < cell["interval"][1]
    assert (cell["text"], cell["error"], cell["seconds"], cell["items"]) == ("told", None, 1.5, 6)
    assert cell["discordant"]["against_baseline"] is None
    assert (cell["discordant"]["lost"], cell["discordant"]["gained"]) == (2, 1)
    assert [one["item"] for one in cell["discordant"]["shown"]] == ["b", "c", "d"]
    assert cell["discordant"]["shown"][2] == {
        "item": "d",
        "kind": "y",
        "reference": "no",
        "quantized": "yes",
        "reference_correct": False,
        "quantized_correct": True,
    }
    assert cell["kinds"] == [
        {"kind": "x", "items": 3, "reference": 3, "quantized": 2},
        {"kind": "y", "items": 3, "reference": 1, "quantized": 1},
    ]


def test_fidelity_and_trajectory_of_a_cell() -> None:
    """Quartiles 0.005, 0.011, 0.02 nats; 8 items of which one parts ways in step 1 and two in step 2."""
    (cell,) = built(told(small()))["cells"]
    assert cell["mask_ratio"] == [
        {
            "bin": "high",
            "ratio": 0.8333,
            "ends": [0.6667, 1.0],
            "tokens": 40,
            "log10_kl": [-2.301, -1.9586, -1.699],
        }
    ]
    assert cell["fidelity"] == {
        "canvases": 8,
        "masked_tokens": 40,
        "logit_sqnr": 14.75,
        "nll_difference": 0.0262,
        "log10_kl": -2.0,
        "agreement": 0.925,
    }
    assert cell["trajectory"] == {
        "items": 8,
        "flips": [0.0, 0.125, 0.25],
        "diverged": [0.0, 0.125, 0.375],
        "sequence_match": 0.75,
    }


def test_profiles_stand_on_one_axis_with_the_baseline_s_and_the_suspect_s_place(
    tmp_path: Path,
) -> None:
    """``layers.0.mid`` is in one cell only, ``layers.1.new`` in the baseline only."""
    stored = {**PROFILE, "layers.1.new": 17.456}
    write_cell(
        baseline_path(tmp_path, "toy"), make_record(layer_sqnr=stored), Band("collapse", 1.0)
    )
    with_mid = {"layers.0.q_proj": 20.0, "layers.0.mid": 19.0, "layers.0.down_proj": 15.004}
    place = {"first": "layers.0.down_proj", "why": "at 3 dB", "by": "own error"}
    data = built(
        told(make_record(), verdict={"place": place}),
        told(make_record(cell="gptq/W4A16-g64/code", layer_sqnr=with_mid, local_sqnr={})),
        baselines=tmp_path,
    )
    names = [
        "layers.0.q_proj",
        "layers.0.mid",
        "layers.0.down_proj",
        "layers.1.q_proj",
        "layers.1.new",
    ]
    assert data["profiles"] == {"toy": names}
    by_task = {cell["task"]: cell["layers"] for cell in data["cells"]}
    assert by_task["math"] == {
        "sqnr": [20.0, None, 15.0, 18.0, None],
        "local": [21.0, None, 17.0, 22.0, None],
        "baseline": [20.0, None, 15.0, 18.0, 17.46],
        "local_baseline": [21.0, None, 17.0, 22.0, None],
        "suspect": 2,
    }
    assert by_task["code"] == {
        "sqnr": [20.0, 19.0, 15.0, None, None],
        "local": [None] * 5,
        "baseline": None,
        "local_baseline": None,
        "suspect": None,
    }


def test_a_real_run_with_the_shipped_baselines(tmp_path: Path) -> None:
    """They hold too where the run's folder of baselines has none of the model."""
    data = built(*read_outcomes(REAL), baselines=tmp_path)
    assert data["verdict"]["headline"] == "No cell fails"
    assert data["notes"] == []
    for cell in data["cells"]:
        name = f"{cell['method']}/{cell['scheme']}/{cell['task']}"
        stored = read_baselines(shipped_baselines(cell["model"])).cells[name]
        order = data["profiles"][cell["model"]]
        wanted = [round(stored.layer_sqnr[module], 2) for module in order]
        assert cell["layers"]["baseline"] == wanted
        assert cell["layers"]["sqnr"] == pytest.approx(wanted, abs=0.25)
        assert cell["discordant"]["against_baseline"] == {"lost": 0, "gained": 0}
        for one in cell["discordant"]["shown"]:
            asked = data["items"][cell["task"]][one["item"]]
            assert asked["prompt"]
            if one["reference_correct"] and cell["task"] != "code":  # code is right by what it does
                assert one["reference"] == asked["expected"]
    (environment,) = data["environments"]
    assert ["torch", "2.13.0+cpu"] in environment
    assert ["commit", "cb4aafc7c0bb-dirty"] in environment
    recipes = {cell["task"]: dict(cell["recipe"]) for cell in data["cells"]}
    assert recipes["math"]["calibration.sequences"] == "512"
    assert "device" not in dict(data["cells"][0]["provenance"])


# --- the run as a whole


def test_verdict_counts_and_names_where_failing_cells_begin() -> None:
    def fails(cell: str, first: str | None) -> Outcome:
        record = make_record(cell=cell)
        verdict = {"place": {"first": first, "why": "", "by": "own error"}}
        return told(record, "degraded", fails=True, verdict=verdict)

    data = built(
        replace(fails("rtn/W8A8/code", "layers.2"), status="equivalent", fails=False),
        fails("rtn/W8A8/math", "layers.1"),
        fails("rtn/W4A4/math", "layers.0"),
        fails("rtn/W4A4/code", "layers.0"),
        fails("rtn/W4A4/general", None),
        Outcome("awq/W4A16/math", "toy", "infra", error="NonFiniteError: NaN"),
        whole_run=["the paper's finding does not hold"],
    )
    assert data["verdict"] == {
        "fails": True,
        "failing": 5,
        "cells": 6,
        "counts": {"infra": 1, "degraded": 4, "equivalent": 1},
        "headline": "5 of 6 cells fail",
        "whole_run": ["the paper's finding does not hold"],
        "first": [["layers.0", 2], ["layers.1", 1]],
    }
    assert [*data["verdict"]["counts"]] == ["infra", "degraded", "equivalent"]
    assert data["cells"][0]["id"] == "toy/awq/W4A16/math"


@pytest.mark.parametrize(
    ("outcomes", "whole_run", "headline", "fails"),
    [
        ([], [], "No cell was measured", False),
        ([told(make_record())], [], "No cell fails", False),
        ([told(make_record())], ["x"], "No cell fails alone, the run as a whole does", True),
    ],
)
def test_headlines(
    outcomes: list[Outcome], whole_run: list[str], headline: str, fails: bool
) -> None:
    verdict = built(*outcomes, whole_run=whole_run)["verdict"]
    assert (verdict["headline"], verdict["fails"]) == (headline, fails)


def test_what_the_cells_tests_show_together_fails_the_run() -> None:
    tests = {"p_values": {"answers": 1e-9}, "lost": 40, "gained": 0, "common": 100, "margin": 0.0}
    data = built(told(make_record(), verdict=tests))
    assert len(data["verdict"]["whole_run"]) == 1
    assert MATH in data["verdict"]["whole_run"][0]
    assert data["verdict"]["fails"]
    assert data["verdict"]["failing"] == 0
    assert data["cells"][0]["discordant"]["against_baseline"] == {"lost": 40, "gained": 0}


def test_rows_and_tasks_of_the_heat_map_have_a_fixed_order() -> None:
    rows = [
        "mine/odd",
        "duquant/W4A4",
        "duquant/W8A8",
        "rtn/W4A4",
        "rtn/W3A16",
        "rtn/W4A16",
        "rtn/W4A16-g128",
        "rtn/W4A16-g64",
        "awq/W4A16",
        "gptq/W4A16",
        "another/W4A16",
    ]
    outcomes = [
        told(make_record(cell=f"{row}/{task}")) for row in rows for task in ("own", "code", "math")
    ]
    (model,) = built(*outcomes[:-1])["models"]
    assert model["tasks"] == ["math", "code", "own"]
    assert [f"{row['method']}/{row['scheme']}" for row in model["rows"]] == [
        "rtn/W4A16-g64",
        "rtn/W4A16-g128",
        "rtn/W4A16",
        "rtn/W3A16",
        "rtn/W4A4",
        "gptq/W4A16",
        "awq/W4A16",
        "duquant/W8A8",
        "duquant/W4A4",
        "another/W4A16",
        "mine/odd",
    ]
    assert [row["cells"][0] is None for row in model["rows"]] == [*[False] * 9, True, False]


def test_models_have_their_own_tasks_the_one_with_the_worst_cell_first() -> None:
    data = built(
        told(make_record(model="sound", cell="rtn/W8A8/math"), "equivalent"),
        told(make_record(model="broken", cell="rtn/W8A8/code"), "degraded", fails=True),
        told(make_record(counts=(5, 1, 1, 1), model="broken", cell="rtn/W8A8/own"), "equivalent"),
    )
    assert [(m["name"], m["tasks"], m["items"]) for m in data["models"]] == [
        ("broken", ["code", "own"], "8-100"),
        ("sound", ["math"], "100"),
    ]


def test_comparison_says_what_changed_by_place() -> None:
    """20 answers lost in math and one gained in code, of two cells; one cell is new and one gone."""
    right = [True] * 90 + [False] * 10
    lost = [False] * 20 + [True] * 70 + [False] * 10
    code, new, gone = (f"rtn/W8A8/{task}" for task in ("code", "new", "gone"))
    base = [told(make_record([True] * 100, right, cell=cell)) for cell in (MATH, code, gone)]
    data = built(
        told(make_record([True] * 100, [True] * 91 + [False] * 9, cell=code)),
        told(make_record([True] * 100, lost), "degraded", fails=True),
        told(make_record(counts=(1, 1, 0, 0), cell=new)),
        base=[base[0], *base],
        base_name="main",
    )
    compared = data["comparison"]
    assert (compared["base"], compared["both"]) == ("main", 2)
    worse, better = compared["changed"]
    names = [data["cells"][change["cell"]]["id"] for change in (worse, better)]
    assert names == [f"toy/{MATH}", f"toy/{code}"]
    assert (worse["before"], worse["status"]) == ("informational", "degraded")
    assert (worse["lost"], worse["gained"], worse["drops"]) == (20, 0, [10.0, 30.0])
    assert (better["lost"], better["gained"], better["drops"]) == (0, 1, [10.0, 9.0])
    assert (worse["worse"], better["worse"]) == (True, False)
    assert worse["p_value"] == pytest.approx(2 * 0.5**20)
    assert (compared["new"], compared["gone"]) == ([f"toy/{new}"], [f"toy/{gone}"])
    assert compared["notes"] == [
        f"main: {MATH} on toy was measured 2 times: the last one counts (informational, informational)."
    ]


def test_without_a_base_there_is_no_comparison() -> None:
    assert built(told(make_record()))["comparison"] is None
    assert built(told(make_record()), base=[])["comparison"]["both"] == 0


# --- laws


@settings(max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    most=st.integers(0, 35),
)
def test_each_discordant_item_is_shown_once_and_lost_ones_first(
    pairs: list[tuple[bool, bool]], most: int
) -> None:
    record = make_record([full for full, _ in pairs], [now for _, now in pairs])
    (cell,) = built(told(record), discordant=most)["cells"]
    shown = [(one["item"], one["reference_correct"]) for one in cell["discordant"]["shown"]]
    lost = [(f"math-{n}", True) for n, pair in enumerate(pairs) if pair == (True, False)]
    gained = [(f"math-{n}", False) for n, pair in enumerate(pairs) if pair == (False, True)]
    assert shown == [*lost, *gained][:most]
    assert (cell["discordant"]["lost"], cell["discordant"]["gained"]) == (len(lost), len(gained))
    assert sum(kind["items"] for kind in cell["kinds"]) == len(pairs)


STATUSES = ("equivalent", "changed", "inconclusive", "improved", "degraded", "informational", "odd")


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(STATUSES), st.booleans(), st.none() | st.floats(-50, 100)),
        max_size=8,
    )
)
def test_cells_are_worst_first_and_each_is_in_the_heat_map_once(
    drawn: list[tuple[str, bool, float | None]],
) -> None:
    outcomes = [
        told(
            make_record(counts=(3, 1, 1, 1), cell=f"rtn/W8A8/task{n}", model=f"m{n % 2}"),
            status,
            fails=fails,
            verdict={"drop": drop, "interval": None if drop is None else [drop, drop]},
        )
        for n, (status, fails, drop) in enumerate(drawn)
    ]
    data = built(*outcomes)
    ranks = [
        (not cell["fails"], -severity(cell["status"]), -(cell["drop"] or 0.0))
        for cell in data["cells"]
    ]
    assert ranks == sorted(ranks)
    for model in data["models"]:
        for row in model["rows"]:
            for task, place in zip(model["tasks"], row["cells"], strict=True):
                if place is not None:
                    assert data["cells"][place]["id"] == (
                        f"{model['name']}/{row['method']}/{row['scheme']}/{task}"
                    )
    places = [p for model in data["models"] for row in model["rows"] for p in row["cells"]]
    assert sorted(p for p in places if p is not None) == list(range(len(drawn)))


def test_a_run_of_the_full_tier_s_shape_names_the_broken_modules() -> None:
    """Of 24 cells, index 11 was not measured, 5 and 22 have a broken linear."""
    outcomes = many_cells(24, layers=2)
    data = built(*outcomes, base=outcomes)
    assert data["verdict"]["counts"] == {"infra": 1, "degraded": 2, "equivalent": 21}
    assert [cell["status"] for cell in data["cells"]][:4] == [
        "infra",
        "degraded",
        "degraded",
        "equivalent",
    ]
    for cell in data["cells"][1:3]:
        layers, suspect = cell["layers"], cell["layers"]["suspect"]
        assert data["profiles"][cell["model"]][suspect] == cell["place"]["first"]
        stored = Record.from_dict(_by_id(outcomes)[cell["id"]].record).local_sqnr
        assert layers["local"][suspect] == round(stored[cell["place"]["first"]], 2)
    assert data["comparison"]["changed"] == []
    assert len(data["environments"]) == 1


def _by_id(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {f"{outcome.model}/{outcome.cell}": outcome for outcome in outcomes}


# --- odd runs


def test_a_cell_that_could_not_be_measured_has_its_error_and_nothing_else() -> None:
    data = built(Outcome("a/b/W4A4/math", "toy", "infra", error="QBenchError: a '/' in 'a/b'"))
    (cell,) = data["cells"]
    assert (cell["method"], cell["scheme"], cell["task"]) == ("a/b", "W4A4", "math")
    assert cell["message"].endswith("infra\nQBenchError: a '/' in 'a/b'")
    missing = ("reference", "quantized", "drop", "interval", "trajectory", "seconds", "versions")
    assert {cell[name] for name in missing} == {None}
    assert data["environments"] == []
    (cell,) = built(Outcome("odd", "toy", "infra", error="E"))["cells"]
    assert (cell["method"], cell["scheme"], cell["task"]) == ("odd", "", "")


def test_a_cell_that_was_measured_and_not_judged_has_its_answers() -> None:
    (cell,) = built(Outcome.of_error(MATH, "toy", ValueError("no band"), small()))["cells"]
    assert (cell["reference"], cell["drop"], cell["error"]) == (
        66.6667,
        None,
        "ValueError: no band",
    )
    assert len(cell["discordant"]["shown"]) == 3


def test_nothing_but_answers_is_a_cell_too() -> None:
    bare = make_record(layer_sqnr={}, local_sqnr={}, fidelity={}, trajectory={}, provenance={})
    data = built(told(replace(bare, kinds=(), recipe={})))
    (cell,) = data["cells"]
    assert (cell["mask_ratio"], cell["fidelity"], cell["trajectory"]) == ([], {}, None)
    assert (cell["kinds"], cell["recipe"], data["profiles"]) == ([], [], {"toy": []})
    assert cell["layers"]["sqnr"] == []
    assert data["environments"] == [[]]
    assert cell["versions"] == 0


def test_of_a_cell_measured_twice_the_last_counts_and_a_note_says_so() -> None:
    bad = told(make_record(), "degraded", fails=True)
    data = built(bad, told(make_record(), "equivalent"))
    assert [cell["status"] for cell in data["cells"]] == ["equivalent"]
    assert data["notes"] == [
        f"{MATH} on toy was measured 2 times: the last one counts (degraded, equivalent)."
    ]


def test_baselines_that_cannot_be_read_are_a_note(tmp_path: Path) -> None:
    baseline_path(tmp_path, "toy").write_text("{", encoding="utf-8")
    data = built(told(make_record()), baselines=tmp_path)
    assert data["cells"][0]["layers"]["baseline"] is None
    (note,) = data["notes"]
    assert note.startswith(f"The baselines of toy are not shown: {tmp_path}/toy.json: not JSON")


def test_texts_are_cut_and_can_be_written_as_utf_8() -> None:
    answers = ["y" * 5000, "half \ud83d of a pair", *["no"] * 4]
    record = replace(small(), quantized_answers=tuple(answers), reference_answers=tuple(answers))
    outcome = told(replace(record, quantized_correct=(False, True, True, False, True, False)))
    data = build([outcome])
    shown = data["cells"][0]["discordant"]["shown"]
    assert shown[0]["quantized"] == f"{'y' * 300} [... 4400 characters left out ...] {'y' * 300}"
    json.dumps(data, ensure_ascii=False).encode()
    outcome = told(replace(record, quantized_correct=(True, False, True, False, True, False)))
    data = built(outcome)
    assert data["cells"][0]["discordant"]["shown"][0]["quantized"] == "half ? of a pair"


def test_environments_are_told_apart_by_versions_device_commit_and_execution() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"date": "later"},
        {"execution": "packed"},
        {"commit": "d"},
        {"versions": {}},
    ]
    records = [
        make_record(cell=f"rtn/W8A8/task{n}", provenance={**PROVENANCE, **change})
        for n, change in enumerate(changes)
    ]
    data = built(*map(told, records))
    places = {cell["task"]: cell["versions"] for cell in data["cells"]}
    assert [places[f"task{n}"] for n in range(5)] == [0, 0, 1, 2, 3]
    assert ["execution", "packed"] in data["environments"][1]


def test_a_verdict_says_why_where_it_has_no_text_of_its_own() -> None:
    record = make_record()
    stored = replace(record, local_sqnr={**LOCAL, "layers.0.down_proj": 23.0})
    verdict = judge(record, CellBaseline.from_record(stored))
    (cell,) = built(Outcome.of_verdict(record, verdict, verdict.fails()))["cells"]
    assert cell["place"]["first"] == "layers.0.down_proj"
    assert cell["place"]["contributors"][0] == {
        "module": "layers.0.down_proj",
        "share": 1.0,
        "stored": 23.0,
        "seen": 17.0,
    }
    assert "where: layers.0.down_proj: " in cell["message"]
    assert {finding["check"] for finding in cell["findings"]} >= {"layers"}


def test_no_tensor_library_is_loaded_for_a_real_run() -> None:
    program = (
        "import sys\n"
        "from dllm_qbench.report.data import build\n"
        "from dllm_qbench.summary_files import read_outcomes\n"
        f"data = build(read_outcomes({str(REAL)!r}))\n"
        "assert data['items'].keys() == {'general', 'math', 'code'}\n"
        "print(sorted({'torch', 'transformers', 'lm_eval', 'datasets', 'pandas'} & {*sys.modules}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.stdout == "[]\n", run.stderr
