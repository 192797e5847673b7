"""The README's commands are the ones that CI and tox run, and they select what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from dllm_qbench.baselines import read_baselines

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MATRIX = "tests/test_regression.py"  # collecting all of tests/ would only take longer
COMMANDS = re.findall(r"^(pip install -c constraints\.txt .*)$", README, re.MULTILINE)


def test_readme_gives_two_commands() -> None:
    assert COMMANDS == [
        'pip install -c constraints.txt -e ".[test]" && pytest -m quick',
        'pip install -c constraints.txt -e ".[dev]" && pytest',
    ]


def test_ci_runs_the_second_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    set_up, tests = COMMANDS[1].split(" && ")
    assert lines.index(set_up) < lines.index(tests)
    assert [line for line in lines if line][-1] == tests


def test_tox_quick_runs_the_first_command() -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    quick = tox.partition("[testenv:quick]")[2].partition("\n[")[0]
    assert COMMANDS[0].split(" && ")[1] + " {posargs}" in quick


def test_extras_that_the_commands_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for command in COMMANDS for extra in re.findall(r"\.\[(\w+)\]", command)}
    assert named <= set(project["optional-dependencies"])


def test_first_command_selects_the_matrix() -> None:
    """Weight-only schemes by rtn and gptq, W8A8 and W4A4 by rtn and smoothquant, three families."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "quick", "--collect-only", "-q", MATRIX],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for methods, schemes in {
        ("rtn", "gptq"): ("W4A16", "W3A16"),
        ("rtn", "smoothquant"): ("W8A8", "W4A4"),
    }.items():
        for method in methods:
            for scheme in schemes:
                for family in ("general", "math", "code"):
                    cell = rf"\b{method}\b.*\b{scheme}\b.*\b{family}\b"
                    assert re.search(cell, run.stdout), (
                        f"no quick test for {method}/{scheme}/{family}"
                    )


def test_folders_that_the_tour_names_exist() -> None:
    tour = README.partition("## Where things are")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", tour, re.MULTILINE)
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_table_shows_the_cells_and_bands_of_the_baselines() -> None:
    table = README.partition("<!-- table:begin -->")[2].partition("<!-- table:end -->")[0]
    rows = {line.split()[0]: line for line in table.splitlines() if line.count("/") == 2}
    stored = read_baselines(ROOT / "baselines" / "llada-embedded.json").cells
    assert set(rows) == set(stored)
    for cell, row in rows.items():
        assert f"  {stored[cell].band}  " in re.sub(r" {2,}", "  ", row), row
