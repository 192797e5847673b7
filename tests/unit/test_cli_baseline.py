"""``qbench baseline``: what is stored is shown, what differs is named, records become baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.baseline_diff import diff_cell
from dllm_qbench.baselines import read_baselines, shipped_baselines, write_cell
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from tests.helpers.command import qbench
from tests.helpers.records import LOCAL, PROFILE, PROVENANCE, make_record

CELL, OTHER = "gptq/W4A16-g64/math", "rtn/W8A8/math"
Command = Callable[..., int]


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command, in a folder with baselines of two cells of the model ``toy``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    store("baselines", make_record(cell=CELL), make_record(cell=OTHER))
    return lambda *arguments: qbench(monkeypatch, "baseline", *arguments)


def store(folder: str, *records: Record, band: Band | None = None) -> Path:
    path = Path(folder) / "toy.json"
    for record in records:
        write_cell(path, record, band)
    return path


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_show_lists_the_cells_of_a_model(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baseline("show", "toy") == 0
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("baselines/toy.json: toy, checkpoint 0123456789ab")
    assert titles.split()[:2] == ["cell", "items"]
    assert [row.split()[:4] for row in rows] == [
        [CELL, "100", "90.0", "82.0"],
        [OTHER, "100", "90.0", "82.0"],
    ]
    assert baseline("show", "baselines/toy.json", "--json") == 0
    assert told(capsys)["cells"].keys() == {CELL, OTHER}


def test_show_tells_all_of_a_cell(baseline: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline("show", "toy", CELL) == 0
    text = capsys.readouterr().out
    for expected in (
        f"baselines/toy.json: cells['{CELL}']",
        "items        100, seed 0",
        "full precision 90.0 %, quantized 82.0 %",
        "logit_sqnr 14.75",
        "6 of 8 items keep their sequence",
        "versions.torch            2.13.0",
        "layers.0.down_proj   15.00   17.00",
    ):
        assert expected in text
    assert baseline("show", "toy", CELL, "--json") == 0
    stored = read_baselines("baselines/toy.json").cells[CELL]
    assert told(capsys)["cells"] == {CELL: stored.to_dict()}


def test_every_shipped_cell_can_be_shown(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = read_baselines(shipped_baselines("llada-embedded"))
    assert baseline("show", "llada-embedded") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(shipped.cells)
    assert max(map(len, lines)) <= 100


def test_what_is_not_there_is_told_with_what_is_near(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baseline("show", "toy", "gptq/W4A16/math") == 2
    assert f"no cell 'gptq/W4A16/math' (2 others); did you mean {CELL}" in capsys.readouterr().err
    assert baseline("show", "nowhere") == 2
    assert "no baselines of 'nowhere'" in capsys.readouterr().err
    assert baseline("show", "nowhere/toy.json") == 2
    assert "nowhere/toy.json: no such file" in capsys.readouterr().err
    Path("empty").mkdir()
    assert baseline("diff", "empty", "baselines") == 2
    assert "empty: this folder holds no baselines" in capsys.readouterr().err


def test_the_same_differ_in_nothing_whenever_they_were_measured(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    later = {**PROVENANCE, "date": "2027-01-02T03:04:05+00:00", "commit": "def"}
    store("later", *(make_record(cell=cell, provenance=later) for cell in (CELL, OTHER)))
    assert baseline("diff", "baselines", "later/toy.json") == 0
    assert capsys.readouterr().out == "0 of 2 cells that both have differ\n"
    assert baseline("diff", "toy", "later", "--json") == 0
    assert told(capsys) == {"differ": False, "both": 2, "changed": [], "gone": [], "new": []}


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "answers": ({"counts": (78, 12, 4, 6)}, "answers      2 right ones wrong, 2 wrong right"),
    "accuracy": ({"counts": (70, 20, 2, 8)}, "quantized %  82.0 -> 72.0"),
    "full precision": (
        {"counts": (81, 10, 2, 7)},
        "full prec.   0 right ones wrong, 1 wrong right",
    ),
    "a layer": (
        {"layer_sqnr": PROFILE | {"layers.0.down_proj": 12.5}},
        "SQNR         1 module moved, the most layers.0.down_proj by -2.50 dB",
    ),
    "a linear": (
        {"local_sqnr": {**LOCAL, "layers.1.q_proj": 22.25, "layers.0.q_proj": 21.1}},
        "own SQNR     2 modules moved, the most layers.1.q_proj by +0.25 dB",
    ),
    "modules": (
        {"layer_sqnr": {"layers.0.q_proj": 20.0, "layers.9.q_proj": 1.0}},
        "SQNR         2 modules are gone; 1 modules are new",
    ),
    "recipe": (
        {"recipe": {"method": "gptq", "scheme": "W4A16-g64", "parameters": {"damp": 0.1}}},
        "recipe       parameters.damp: none -> 0.1",
    ),
    "items": ({"counts": (40, 5, 1, 4)}, "items        100 -> 50"),
    "other items": (
        {"ids": [f"new-{n}" for n in range(100)]},
        "answers      of other items: they cannot be paired",
    ),
    "seed": ({"seed": 1}, "seed         0 -> 1"),
    "checkpoint": (
        {"provenance": {**PROVENANCE, "checkpoint_sha256": "f" * 64}},
        "checkpoint   0123456789ab -> ffffffffffff",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_different_is_named(
    baseline: Command, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, expected = CHANGES[what]
    stored = read_baselines("baselines/toy.json").cells[CELL].band
    store("new", make_record(cell=CELL, **change), band=stored)
    store("new", make_record(cell=OTHER))
    assert baseline("diff", "baselines", "new") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{CELL} on toy"
    assert f"  {expected}" in lines
    assert lines[-1] == "1 of 2 cells that both have differ"


def test_bands_noise_and_missing_cells_are_differences(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    store("new", make_record(cell=CELL), band=Band("collapse", min_drop=5))
    store("new", make_record(cell="awq/W4A16-g64/math"))
    assert baseline("diff", "baselines", "new", "--json") == 1
    found = told(capsys)
    assert found["changed"][0]["values"]["band"][1] == "collapse >=5"
    assert found["gone"] == [["toy", OTHER]]
    assert found["new"] == [["toy", "awq/W4A16-g64/math"]]
    stored = read_baselines("baselines/toy.json").cells[CELL]
    noisier = replace(stored, draws=replace(stored.draws, flips=0.5))
    found = diff_cell(stored, noisier)
    assert dict(found.noise) == {"draws.flips": ("1.0", "0.5")}
    assert found.any


# --- update ----------------------------------------------------------------------------------------


def record_file(*records: Record) -> Path:
    path = Path("r.jsonl")
    kept = OutcomeFile(path)
    for record in records:
        kept.append(Outcome.of_measurement(record, "told"))
    return path


def test_update_writes_what_the_plugin_would_and_keeps_the_band(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_baselines("baselines/toy.json").cells
    changed = make_record(cell=CELL, layer_sqnr=PROFILE | {"layers.0.down_proj": 12.5})
    new = make_record(cell="awq/W4A16-g64/math")
    file = record_file(changed, make_record(cell=OTHER), new)
    text = Path("baselines/toy.json").read_text()
    assert baseline("update", file, "--dry-run") == 1
    assert Path("baselines/toy.json").read_text() == text
    assert "2 of 3 cells change" in capsys.readouterr().out
    assert baseline("update", file) == 0
    out = capsys.readouterr().out
    assert "SQNR         1 module moved, the most layers.0.down_proj by -2.50 dB" in out
    assert "baselines written to baselines/toy.json: review the change" in out
    after = read_baselines("baselines/toy.json").cells
    assert after[CELL].layer_sqnr["layers.0.down_proj"] == 12.5
    assert after[CELL].band == before[CELL].band
    assert after[OTHER] == before[OTHER]
    assert set(after) == {CELL, OTHER, new.cell}
    write_cell("by-plugin/toy.json", make_record(cell=CELL))
    write_cell("by-plugin/toy.json", make_record(cell=OTHER))
    for record in (changed, new):
        write_cell("by-plugin/toy.json", record)
    assert Path("by-plugin/toy.json").read_bytes() == Path("baselines/toy.json").read_bytes()
    assert baseline("update", file, "--dry-run", "--json") == 0
    assert told(capsys) == {"cells": [], "measured": 3, "written": []}


def test_update_says_what_a_band_does_not_allow(
    baseline: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    file = record_file(make_record(cell=CELL, counts=(10, 80, 0, 10)))
    assert baseline("update", file, "--into", "baselines") == 1
    assert "but          its band" in capsys.readouterr().out
    assert read_baselines("baselines/toy.json").cells[CELL].pairs.after == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (40, 5, 1, 4)}, "was measured on 100 items and would shrink to 50"),
        ({"provenance": {**PROVENANCE, "execution": "packed"}}, "was measured on packed weights"),
        ({"provenance": {**PROVENANCE, "model": {"stands_in": True}}}, "is of a stand-in"),
    ],
)
def test_update_refuses_what_no_baseline_may_be_made_of_and_writes_nothing(
    baseline: Command, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    before = Path("baselines/toy.json").read_text()
    good = make_record(cell=OTHER, counts=(70, 20, 2, 8))
    assert baseline("update", record_file(good, make_record(cell=CELL, **change))) == 2
    assert message in capsys.readouterr().err
    assert Path("baselines/toy.json").read_text() == before


def test_update_is_refused_where_nobody_reviews_it(
    baseline: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    file = record_file(make_record(cell="awq/W4A16-g64/math"))
    assert baseline("update", file) == 2
    assert "refused under CI=true" in capsys.readouterr().err
    assert baseline("update", file, "--dry-run") == 1
    Path("none.jsonl").write_text("")
    assert baseline("update", "none.jsonl") == 2
    assert "none.jsonl: holds no records" in capsys.readouterr().err
