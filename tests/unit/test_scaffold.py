"""``qbench init``: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dllm_qbench.cli import app
from dllm_qbench.errors import QBenchError
from dllm_qbench.scaffold import FILE, scaffold


def test_command_writes_ten_lines_and_says_what_comes_next(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    asked = [
        "init",
        "--subject",
        "pkg.mod:f",
        "--schemes",
        "W4A16-g64,W8A8",
        "--folder",
        str(folder),
    ]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    text = (folder / FILE).read_text()
    compile(text, FILE, "exec")
    assert len(text.splitlines()) <= 12
    assert "from pkg.mod import f\n" in text
    assert '["W4A16-g64", "W8A8"]' in text
    assert 'like="gptq/W4A16"' in text
    assert "--qbench-update-pass" in result.output


@pytest.mark.parametrize(
    ("subject", "schemes", "like", "error"),
    [
        ("nothing", ("W8A8",), None, "--subject is 'nothing', expected package.module:function"),
        ("a:b; import os", ("W8A8",), None, "--subject is"),
        ("a:b", (), None, "--schemes is empty"),
        ("a:b", ("W4A5",), None, "scheme 'W4A5': activations must be 4, 8 or 16 bits"),
        ("a:b", ("W8A8",), "gptq", "--like is 'gptq', expected method/scheme"),
        ("a:b", ("W8A8",), 'gptq/W4A16")', "--like is"),
    ],
)
def test_what_cannot_be_written_is_an_error(
    tmp_path: Path, subject: str, schemes: tuple[str, ...], like: str | None, error: str
) -> None:
    with pytest.raises(QBenchError, match=error):
        scaffold(tmp_path, subject, schemes, like)
    assert not (tmp_path / FILE).exists()


def test_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("mine")
    with pytest.raises(QBenchError, match="is there already"):
        scaffold(tmp_path, "a:b", ("W8A8",))
    assert (tmp_path / FILE).read_text() == "mine"
