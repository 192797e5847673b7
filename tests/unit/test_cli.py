"""``qbench``: exit statuses, messages, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_qbench import cli
from dllm_qbench.outcomes import Outcome, OutcomeFile, read_records
from tests.helpers.records import make_record


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["qbench", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def write(path: Path, cell: str, counts: tuple[int, int, int, int] = (80, 10, 2, 8)) -> Path:
    record = make_record(cell=cell, model="llada-8b-base", counts=counts)
    OutcomeFile(path).append(Outcome.of_measurement(record, "told"))
    return path


def test_doctor_says_what_is_missing_and_exits_by_the_tier(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = ("--models-dir", str(tmp_path))
    assert run(monkeypatch, "doctor", *models) == 0
    capsys.readouterr()
    assert run(monkeypatch, "doctor", "--tier", "full", "--json", *models) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert not checks["model llada-8b-base"]["ok"]
    assert "hf download GSAI-ML/LLaDA-8B-Base" in checks["model llada-8b-base"]["remedy"]
    assert run(monkeypatch, "doctor", "--tier", "middle") == 2
    assert "--tier is 'middle', expected quick or full" in capsys.readouterr().err


def test_merge_joins_shards_and_names_what_contradicts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = write(tmp_path / "1.jsonl", "gptq/W4A16-g128/gsm8k")
    two = write(tmp_path / "2.jsonl", "awq/W4A16-g128/gsm8k")
    out = tmp_path / "all.jsonl"
    assert run(monkeypatch, "merge", str(out), str(one), str(two)) == 0
    assert "2 results" in capsys.readouterr().out
    assert {record.method for record in read_records(out)} == {"gptq", "awq"}
    before = out.read_bytes()
    other = write(tmp_path / "3.jsonl", "awq/W4A16-g128/gsm8k", (70, 20, 2, 8))
    assert run(monkeypatch, "merge", str(out), str(out), str(other)) == 2
    assert "awq/W4A16-g128/gsm8k on llada-8b-base" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_compare_sets_a_run_beside_the_paper(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = str(write(tmp_path / "r.jsonl", "gptq/W4A16-g128/gsm8k"))
    assert run(monkeypatch, "compare", records, "paper") == 0
    assert "gptq/W4A16-g128/gsm8k" in capsys.readouterr().out
    assert run(monkeypatch, "compare", records, "paper", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["cell"] == "gptq/W4A16-g128/gsm8k"
    assert run(monkeypatch, "compare", records, str(tmp_path / "nothing.jsonl")) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert run(monkeypatch, "compare", records, "paper", "--format", "xml") == 2
    assert "format 'xml' is unknown" in capsys.readouterr().err


def test_the_installed_command_has_examples_in_its_help() -> None:
    for command in ("doctor", "merge", "compare"):
        shown = subprocess.run(
            [sys.executable, "-m", "dllm_qbench.cli", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"Example: qbench {command}" in shown.stdout
