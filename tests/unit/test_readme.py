"""The README's commands are the ones that CI and tox run, and they select what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from dllm_qbench.baselines import read_baselines
from examples.planted_fault import LAYER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = ("llada-embedded", "dream-embedded")
MATRIX = "tests/test_regression.py"  # collecting all of tests/ would only take longer
INSTALL, *COMMANDS = re.findall(r"^(pip install -c constraints\.txt .*)$", README, re.MULTILINE)


def test_readme_gives_two_commands() -> None:
    assert INSTALL == 'pip install -c constraints.txt -e ".[test]"'
    assert COMMANDS == [
        'pip install -c constraints.txt -e ".[test]" && pytest -m quick -n 2',
        'pip install -c constraints.txt -e ".[dev]" && pytest -n 2',
    ]


def test_ci_runs_the_second_command_and_the_benchmarks() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    set_up, tests = COMMANDS[1].split(" && ")
    assert lines.index(set_up) < lines.index(tests)
    assert "\n```sh\npytest tests/benchmarks\n```" in README
    assert [line for line in lines if line][-3:] == [
        tests,
        "step benchmarks",
        "pytest tests/benchmarks",
    ]


def test_tox_quick_runs_the_first_command() -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    quick = tox.partition("[testenv:quick]")[2].partition("\n[")[0]
    assert COMMANDS[0].split(" && ")[1] + " {posargs}" in quick


def test_extras_that_the_commands_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra for command in (INSTALL, *COMMANDS) for extra in re.findall(r"\.\[(\w+)\]", command)
    }
    assert named <= set(project["optional-dependencies"])


def test_the_planted_fault_is_in_the_cells_that_the_readme_names() -> None:
    """Three of them, which ``tests/browser/test_planted_fault.py`` sees fail."""
    (chosen,) = re.findall(r"^pytest -m quick -k (\S+) -p examples\.planted_fault ", README, re.M)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "quick",
            "-k",
            chosen,
            "--collect-only",
            "-q",
            MATRIX,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert re.findall(r"\[llada-embedded-gptq-W4A16-g64-(\w+)\]", run.stdout) == [
        "general",
        "math",
        "code",
    ]
    assert LAYER in README.partition("## In five minutes")[2].partition("\n## ")[0]


def test_first_command_selects_the_matrix() -> None:
    """Both models; weight-only schemes by rtn, gptq and awq, W8A8 and W4A4 by rtn, smoothquant and
    the rotations; three families.
    """
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "quick", "--collect-only", "-q", MATRIX],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    wanted = {
        f"[{model}-{method}-{scheme}-{family}]"
        for methods, schemes in (
            (("rtn", "gptq", "awq"), ("W4A16-g64", "W3A16-g64")),
            (("rtn", "smoothquant", "quarot", "duquant"), ("W8A8", "W4A4")),
        )
        for model in MODELS
        for method in methods
        for scheme in schemes
        for family in ("general", "math", "code")
    }
    assert len(wanted) == 84
    assert set(re.findall(r"\[.*\]", run.stdout)) == wanted


def test_folders_that_the_tour_names_exist() -> None:
    tour = README.partition("## Where things are")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", tour, re.MULTILINE)
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_table_shows_cells_and_bands_of_the_baselines_and_counts_the_rest() -> None:
    table = README.partition("<!-- table:begin -->")[2].partition("<!-- table:end -->")[0]
    sections = re.split(r"^=+ quantization fidelity: ([^,]+), .*$", table, flags=re.MULTILINE)[1:]
    assert set(sections[::2]) == set(MODELS)
    for model, text in zip(sections[::2], sections[1::2], strict=True):
        rows = {line.split()[0]: line for line in text.splitlines() if re.match("[a-z]+/", line)}
        stored = read_baselines(ROOT / "baselines" / f"{model}.json").cells
        (more,) = re.findall(r"^(\d+) more cells ", text, flags=re.MULTILINE)
        assert set(rows) < set(stored)
        assert len(rows) + int(more) == len(stored)
        for cell, row in rows.items():
            assert f"  {stored[cell].band}  " in re.sub(r" {2,}", "  ", row), row


def test_table_of_drops_has_a_row_for_every_method_and_scheme() -> None:
    table = README.partition("<!-- drops:begin -->")[2].partition("<!-- drops:end -->")[0]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in table.split("\n")[3:-1]]
    stored = read_baselines(ROOT / "baselines" / "llada-embedded.json").cells
    assert {f"{row[1]}/{row[0]}" for row in rows} == {cell.rpartition("/")[0] for cell in stored}
    for row in rows:
        assert len([float(value) for value in row[2:]]) == 6
