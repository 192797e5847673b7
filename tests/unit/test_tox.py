"""tox across releases of torch: its matrix, the pins that it installs with, and records side by side."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dllm_qbench.outcomes import Outcome
from tests.helpers.records import LOCAL, PROVENANCE, make_record
from tools import torch_versions, tox_install

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PYTHONS = ("311", "312", "313")
# Minor releases of torch on PyPI from the floor of pyproject.toml on.
RELEASES = ("2.8", "2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15")


def tox(*arguments: str, **environment: str) -> str:
    """What tox says of this project; it makes no environment for that.

    On a short path, since tox asks every interpreter that it finds for its version.
    """
    pytest.importorskip("tox", reason="tox comes with the extra 'dev'")
    given = {name: value for name, value in os.environ.items() if name != "TOX_TORCH_INDEX"}
    given["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    run = subprocess.run(
        [sys.executable, "-m", "tox", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=given | environment,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def settings(*arguments: str, **environment: str) -> dict[str, dict[str, str]]:
    """By environment, the variables that it sets and, as ``commands``, what it runs."""
    asked = ("-k", "set_env", "commands")
    sections = re.split(r"(?m)^\[testenv:(.*)\]$", tox("config", *arguments, *asked, **environment))
    found = {}
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        before, _, commands = text.partition("commands =")
        found[name] = dict(re.findall(r"(?m)^  (\w+)=(.*)$", before)) | {"commands": commands}
    return found


def test_list_shows_every_python_with_every_release() -> None:
    listed = tox("list", "--no-desc").split()
    full = [f"py{python}-torch213" for python in PYTHONS]
    quick = [
        f"py{python}-torch{release.replace('.', '')}-quick"
        for python in PYTHONS
        for release in RELEASES
    ]
    head = listed.index("lint")
    assert listed[head : head + len(full) + 2] == ["lint", "type", *full]
    assert set(quick) <= set(listed)


def test_factors_choose_the_release_the_tests_and_the_index() -> None:
    names = [f"torch{release.replace('.', '')}" for release in RELEASES]
    found = settings("-e", ",".join([*names, "py312-torch28-quick", "torch210-cpu"]))
    assert [found[name]["TOX_TORCH"] for name in names] == [*RELEASES]
    assert {found[name].get("TOX_TORCH_INDEX") for name in names} == {None}
    assert "  pytest -n 2\n" in found["torch28"]["commands"]
    assert found["py312-torch28-quick"]["TOX_TORCH"] == "2.8"
    assert "  pytest -m quick -n 2\n" in found["py312-torch28-quick"]["commands"]
    assert "  pytest -n 2\n" not in found["py312-torch28-quick"]["commands"]
    assert found["torch210-cpu"]["TOX_TORCH_INDEX"] == "https://download.pytorch.org/whl/cpu"


def test_an_index_that_is_named_is_the_one_that_is_taken() -> None:
    index = "https://mirror.example/torch"
    found = settings("-e", "torch210-cpu", TOX_TORCH_INDEX=index)
    assert found["torch210-cpu"]["TOX_TORCH_INDEX"] == index


def test_the_factors_are_what_the_package_admits() -> None:
    (torch,) = (
        wanted for wanted in map(Requirement, PROJECT["dependencies"]) if wanted.name == "torch"
    )
    assert all(f"{release}.0" in torch.specifier for release in RELEASES)
    assert "2.7.1" not in torch.specifier
    pythons = SpecifierSet(PROJECT["requires-python"])
    assert all(f"3.{python[1:]}.0" in pythons for python in PYTHONS)


@pytest.mark.parametrize("release", RELEASES)
def test_constraints_keep_every_pin_but_torch_s(release: str) -> None:
    made = tox_install.constraints(PINS, release).splitlines()
    before = PINS.splitlines()
    assert len(made) == len(before)
    ((old, new),) = (pair for pair in zip(before, made, strict=True) if pair[0] != pair[1])
    assert old.startswith("torch==")
    wanted = Requirement(new).specifier
    assert f"{release}.0" in wanted
    assert f"{release}.1+cpu" in wanted
    following = f"{release.split('.')[0]}.{int(release.split('.')[1]) + 1}.0"
    assert following not in wanted


def test_without_a_release_the_pins_are_as_they_are() -> None:
    assert tox_install.constraints(PINS, "") == PINS


def test_builds_without_cuda_are_newer_to_pip() -> None:
    """What makes an extra index enough: a local version counts as newer than its public one."""
    assert Version("2.10.0") < Version("2.10.0+cpu") < Version("2.10.1")


@pytest.mark.parametrize("release", ["2", "2.13.0", ">=2.8", "2.x", "2.13\ntorch==1"])
def test_what_is_no_release_is_refused(release: str) -> None:
    with pytest.raises(ValueError, match=r"expected a release of torch such as 2\.13"):
        tox_install.constraints(PINS, release)


def test_constraints_without_torch_are_refused() -> None:
    with pytest.raises(ValueError, match="0 lines pin torch"):
        tox_install.constraints("numpy==2.4.6\n", "2.8")


def run_install(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installer with a pip that only says what it was asked, and its constraints' line of torch."""
    (tmp_path / "pip").mkdir(exist_ok=True)
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        "import sys, pathlib\n"
        "at = sys.argv.index('-c') + 1\n"
        "pins = pathlib.Path(sys.argv[at]).read_text()\n"
        "print([line for line in pins.splitlines() if line.startswith('torch')])\n"
        "print(sys.argv[1:at] + sys.argv[at + 1:])\n"
        "sys.exit(3)\n"
    )
    program = (
        "import sys, subprocess, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tools import tox_install\n"
        "run = subprocess.run\n"
        # -I would hide the stand-in.
        "tox_install.subprocess.run = lambda command, **rest: run(\n"
        "    [part for part in command if part != '-I'], **rest)\n"
        "sys.exit(tox_install.main(sys.argv[1:]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "--pre", "some package"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
        cwd=tmp_path,
    )


def test_installer_hands_pip_the_pins_the_index_and_its_status(tmp_path: Path) -> None:
    run = run_install(tmp_path, TOX_TORCH="2.10", TOX_TORCH_INDEX="https://mirror.example/torch")
    assert run.stdout.splitlines() == [
        "['torch~=2.10.0']",
        "['install', '-c', '--extra-index-url', 'https://mirror.example/torch', '--pre',"
        " 'some package']",
    ]
    assert run.returncode == 3
    run = run_install(tmp_path, TOX_TORCH="", TOX_TORCH_INDEX="")
    assert "['install', '-c', '--pre', 'some package']" in run.stdout
    assert re.search(r"\['torch==[\d.]+'\]", run.stdout)


def test_installer_says_what_is_wrong_and_installs_nothing(tmp_path: Path) -> None:
    run = run_install(tmp_path, TOX_TORCH="2.x")
    assert (run.returncode, run.stdout) == (2, "")
    assert "TOX_TORCH is '2.x'" in run.stderr


# --- releases side by side


def measured(torch: str, **fields: Any) -> Outcome:
    """A shipped cell on a release of torch."""
    origin = {**PROVENANCE, "versions": {"torch": torch, "python": "3", "transformers": "5"}}
    record = make_record(
        cell="rtn/W8A8/math",
        model="llada-embedded",
        provenance=origin,
        **{"counts": (90, 2, 1, 7)} | fields,
    )
    return replace(Outcome.of_measurement(record, "told"), status="equivalent", fails=False)


def table(outcomes: list[Outcome]) -> dict[str, list[str]]:
    """By release, the numbers of its row."""
    text = torch_versions.report(outcomes, "2.13").partition("## Cells")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0][:1].isdigit()}


def test_releases_that_agree_are_told_to() -> None:
    text = torch_versions.report([measured("2.13.0+cpu"), measured("2.8.0+cu128")], "2.13")
    assert "**No verdict of 1 changed.**" in text
    assert "No cell differs in a verdict or in an answer" in text
    assert "| 2.8.0+cu128 | 1 | 100 | 0 | 0 of 100 | 0, 0 | 0 | 0 | 0 | 0 | 0 |" in text


def test_what_differs_on_a_release_is_counted_and_named() -> None:
    """Five answers lost and one gained, a module 3 dB down on its own: seen in the row and below it."""
    down = {**LOCAL, "layers.0.down_proj": LOCAL["layers.0.down_proj"] - 3}
    right = [*[True] * 90, False, False, True, *[False] * 7]
    moved = [*[False] * 5, *[True] * 85, False, True, True, *[False] * 7]
    full = [*[True] * 92, *[False] * 8]
    other = measured("2.10.0", reference=full, quantized=moved, local_sqnr=down)
    base = measured("2.13.0+cpu", reference=full, quantized=right)
    found = table(
        [
            base,
            replace(other, status="degraded"),
            measured("2.9.1", reference=full, quantized=right),
        ]
    )
    assert [*found] == ["2.9.1", "2.10.0"]
    assert found["2.9.1"] == ["1", "100", "0", "0 of 100", "0, 0", "0", "0", "0", "0", "0"]
    assert found["2.10.0"] == ["1", "100", "1", "6 of 100", "5, 1", "0", "3", "0", "0", "1"]
    text = torch_versions.report([base, replace(other, status="degraded")], "2.13")
    assert "**1 verdicts of 1 changed.**" in text
    assert (
        "| 2.10.0 | llada-embedded | rtn/W8A8/math | equivalent, now degraded | 6 | 5, 1 | 3 | 0 |"
        " local_sqnr, flips |"
    ) in text


def test_a_base_that_was_not_measured_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--base 2\.13: one of 2\.8\.0 is expected"):
        torch_versions.report([measured("2.8.0")], "2.13")
    with pytest.raises(SystemExit, match="no cell was measured on the base and on another release"):
        torch_versions.report([measured("2.13.0")], "2.13")
