"""``qbench figures``: what it writes, what it says of it, and what it refuses before it runs a model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from dllm_qbench.cli import app
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.report.outlier_maps import outlier_maps, read_maps, write_maps
from tests.helpers.records import make_record
from tests.helpers.rotated import IDS, data, massive_llada

DOWN = "model.layers.1.mlp.down_proj"


def run(*arguments: object) -> Result:
    """Run the command; an expected error is raised, as ``qbench`` itself would turn it into a message."""
    result = CliRunner().invoke(app, ["figures", *map(str, arguments)])
    if isinstance(result.exception, QBenchError):
        raise result.exception
    return result


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    file = OutcomeFile(path)
    for method, counts in (("gptq", (70, 10, 2, 18)), ("awq", (60, 20, 0, 20))):
        record = make_record(cell=f"{method}/W4A16-g64/math", counts=counts, model="toy")
        file.append(Outcome.of_measurement(record, "told"))
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    lm = massive_llada()
    found = outlier_maps(lm, inputs=[DOWN], ids=IDS, calibration=data(lm))
    write_maps(found, tmp_path / "maps.json")
    return tmp_path / "maps.json"


def test_tables_of_records_and_pictures_of_maps(records: Path, maps: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures"
    done = run(records, "--maps", maps, "--out", out, "--images", "png", "--intervals")
    assert done.exit_code == 0, done.output
    written = done.stdout.split("\n")[:-1]
    stem = f"outliers-{read_maps(maps)[0].model}-{DOWN}"
    names = ["tables.md", "tables.tex", "table-toy.csv", f"{stem}.png"]
    assert written == [str(out / name) for name in names]
    assert {path.name for path in out.iterdir()} == {*names}
    frame = pd.read_csv(out / "table-toy.csv", index_col="method")
    assert frame.loc["full precision", "math"] == 80.0
    assert list(frame.loc[["gptq", "awq"], "math drop"]) == pytest.approx([10.0, 25.0])
    assert "math drop low" in frame.columns
    assert "| W4A16-g64 | gptq | **72.0** | **10.0** [" in (out / "tables.md").read_text()


def test_json_tells_what_was_written_without_the_maps_values(
    records: Path, maps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(
        *(records, "--maps", maps, "--out", out, "--formats", "csv", "--images", "png", "--json")
    )
    told = json.loads(done.stdout)
    assert [Path(name).suffix for name in told["files"]] == [".csv", ".png"]
    assert told["tables"] == [{"model": "toy", "rows": 3, "columns": 2}]
    assert [one["rotated_by"] for one in told["outliers"]] == [None, "quarot"]
    assert told["outliers"][0]["maximum"] == read_maps(maps)[0].maximum
    assert "magnitudes" not in told["outliers"][0]


def test_a_model_is_mapped_and_its_maps_are_kept(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    asked = ("--outliers", "llada-embedded", "--input", name, "--out", tmp_path)
    done = run(*asked, "--images", "png")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [
        str(tmp_path / "outlier-maps.json"),
        str(tmp_path / f"outliers-llada-embedded-{name}.png"),
    ]
    found = read_maps(tmp_path / "outlier-maps.json")
    assert [(one.module, one.rotated_by) for one in found] == [(name, None), (name, "quarot")]
    assert found[0].max_over_rms > 5 * found[1].max_over_rms  # measured: 49 and 4.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to draw; give records for tables .*, --outliers"),
        (("--input", DOWN), "figures: nothing to draw"),
        (("RECORDS", "--input", DOWN), "--input names a linear of a model; give --outliers"),
        (
            ("RECORDS", "--formats", "md,html"),
            "--formats: 'html' is unknown; expected md, latex, csv",
        ),
        (("RECORDS", "--images", "gif"), "--images: 'gif' is unknown; expected svg, pdf, png"),
        (("RECORDS", "--formats", ","), "--formats is empty"),
        (("RECORDS", "--tasks", "code"), "no cell is about task 'code'; tasks: math"),
        (("RECORDS", "--dtype", "int4"), "--dtype is 'int4', expected float32, bfloat16, float16"),
        (("--outliers", "no-such-model"), "no-such-model"),
        (("--outliers", "llada-embedded", "--input", "x"), "llada-embedded has no linear 'x'"),
        (("none.jsonl", "--outliers", "llada-embedded"), r"none\.jsonl: cannot be read"),
        (("--maps", "none.json"), r"none\.json: cannot be read"),
        (("--maps", "RECORDS"), "not JSON|outlier_maps_version"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(
    arguments: tuple[str, ...],
    message: str,
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.rglob("*")}
    given = [str(records) if argument == "RECORDS" else argument for argument in arguments]
    with pytest.raises(QBenchError, match=message):
        run(*given)
    assert {*tmp_path.rglob("*")} == before


def test_records_without_a_measured_cell_make_no_table(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(QBenchError, match=r"empty\.jsonl: no cell was measured"):
        run(path)


def test_help_has_an_example() -> None:
    shown = run("--help").stdout
    assert "Example: qbench figures records.jsonl --outliers llada-embedded" in " ".join(
        shown.split()
    )
