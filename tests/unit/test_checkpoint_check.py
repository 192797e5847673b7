"""``qbench check``: sound checkpoints pass, broken ones fail with the layer named, bad input is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dllm_qbench as qb
from dllm_qbench import cli_check
from dllm_qbench.check import Checked, Settings, check
from dllm_qbench.checkpoints.reading import read_checkpoint
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import read_records
from dllm_qbench.quant.checkpoint import save_quantized
from tests.helpers.published_writers import gptq
from tests.helpers.tiny import tiny_llada

MODEL, LAYER = "llada-embedded", "model.layers.2.mlp.up_proj"
OFFICIAL = "model.transformer.blocks.2.up_proj"
ITEMS, TASK = 20, "math"


def told(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(cli_check.check)
    app.command()(cli_check.export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def checked(folder: Path, **settings: object) -> Checked:
    given: dict[str, object] = {"baselines": folder / "none", "items": ITEMS, "tasks": (TASK,)}
    return check(Settings(folder, MODEL, **(given | settings)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rounded to nearest and exported, through the command."""
    pytest.importorskip("compressed_tensors", reason="pip install 'dllm-qbench[checkpoints]'")
    folder = tmp_path_factory.mktemp("sound") / "made"
    found = told("export", MODEL, folder, "--method", "rtn", "--scheme", "W4A16-g64")
    assert found.exit_code == 0, found.output
    return folder


def broken(sound: Path, folder: Path, part: str) -> Path:
    """The sound checkpoint with a tensor of one layer scaled, or the layer left at 16 bits."""
    folder.mkdir()
    (folder / "config.json").write_bytes((sound / "config.json").read_bytes())
    tensors = load_file(sound / "model.safetensors")
    if part == "weight":
        for name in [name for name in tensors if name.startswith(f"{OFFICIAL}.")]:
            del tensors[name]
        lm = qb.load(MODEL)
        tensors[f"{OFFICIAL}.weight"] = lm.model.get_parameter(f"{LAYER}.weight").detach().clone()
    else:
        tensors[f"{OFFICIAL}.{part}"] *= 2
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_sound_checkpoint_passes_with_a_table_and_records(sound: Path, tmp_path: Path) -> None:
    records, like = tmp_path / "records.jsonl", "rtn/W4A16"
    found = told(
        *("check", sound, "--reference", MODEL, "--like", like, "--tasks", TASK),
        *("--items", str(ITEMS), "--baselines", tmp_path, "--records", records),
    )
    assert found.exit_code == 0, found.output
    assert "audits: coverage, grid, bidirectional, finite, size: no finding(s)" in found.output
    assert f"ct-file/W4A16-g64/{TASK}" in found.output
    (record,) = read_records(records)
    assert record.items == ITEMS
    assert record.method == "ct-file"
    assert list(tmp_path.iterdir()) == [records]


def test_a_layer_that_is_off_fails_and_is_named(sound: Path, tmp_path: Path) -> None:
    found = checked(broken(sound, tmp_path / "made", "weight_scale"), like="rtn/W4A16")
    assert found.fails
    assert found.findings == ()
    assert f"first  {LAYER}" in found.text()
    assert "looks like" in found.text()


def test_a_layer_left_out_fails_without_any_baseline(sound: Path, tmp_path: Path) -> None:
    found = checked(broken(sound, tmp_path / "made", "weight"))
    assert found.fails
    assert f"coverage: {LAYER}: is Linear, not quantized" in found.text()
    assert found.outcomes[0].status == "degraded"
    assert json.loads(found.to_json())["fails"] is True


def test_baselines_are_written_and_judged_by(sound: Path, tmp_path: Path) -> None:
    first = checked(sound, baselines=tmp_path)
    assert not first.fails
    assert first.outcomes[0].status == "informational"
    assert "informational: no baseline of its own" in first.text()
    assert list(tmp_path.iterdir()) == []
    written = checked(sound, baselines=tmp_path, update=True)
    assert written.written == (tmp_path / f"{MODEL}.json",)
    after = checked(sound, baselines=tmp_path)
    assert not after.fails
    assert after.outcomes[0].status in ("equivalent", "inconclusive")


def test_our_own_format_is_read(tmp_path: Path) -> None:
    lm = tiny_llada()
    ours = qb.quantize(lm, "rtn", "W4A16-g16")
    save_quantized(ours, tmp_path / "made")
    found = read_checkpoint(tmp_path / "made", lm)
    assert found.recipe == ours.recipe
    assert qb.audit(found, reference=lm) == []
    assert (read_checkpoint(tmp_path / "made", lm, "mine").recipe or {})["method"] == "mine"


def test_bad_input_is_told_before_anything_runs(tmp_path: Path) -> None:
    folder = gptq(tiny_llada()).write(tmp_path / "made")
    with pytest.raises(QBenchError, match=r"config\.json: field .* the reference has"):
        checked(folder)
    with pytest.raises(QBenchError, match="--tasks is 'knitting'"):
        checked(folder, tasks=("knitting",))
    with pytest.raises(QBenchError, match="--items is 0"):
        checked(folder, items=0)
    with pytest.raises(QBenchError, match="without slashes"):
        read_checkpoint(folder, tiny_llada(), "a/b")
    found = told("export", MODEL, tmp_path / "out", "--method", "rtn")
    assert isinstance(found.exception, QBenchError)


def test_a_name_that_no_shipped_cell_has_is_told(sound: Path) -> None:
    with pytest.raises(QBenchError, match="no cell is like 'gptq/W5A16'"):
        checked(sound, like="gptq/W5A16")


def test_the_commands_bring_no_torch() -> None:
    code = "import sys; import dllm_qbench.cli_check; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
