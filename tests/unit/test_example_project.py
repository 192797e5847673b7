"""The example project in an environment that has our wheel: green as it is, red where a layer is broken.

The environment is a fresh one but for the libraries that the wheel needs, which it shares with this one: a
test downloads nothing. ``tox -e example`` installs them all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from dllm_qbench.scaffold import FILE, scaffold

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_quantizer"
LAYER = "model.layers.2.mlp.down_proj"
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the built wheel in it."""
    folder = tmp_path_factory.mktemp("fresh")
    build = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([interpreter, *install], check=True, capture_output=True)
    # As plain folders on the path, behind the environment's own: an editable install stays out.
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


@pytest.fixture
def project(tmp_path: Path) -> Path:
    leave = shutil.ignore_patterns("__pycache__", ".pytest_cache", "*.egg-info")
    return shutil.copytree(EXAMPLE, tmp_path / "project", ignore=leave)


def gate(python: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment | QUIET, capture_output=True, text=True, timeout=300
    )


def broken(project: Path) -> None:
    """Give one linear its neighbour row's scales."""
    path = project / "my_quantizer" / "__init__.py"
    text = path.read_text()
    call = "round_groups(module.weight.data, scheme.weight_bits, scheme.group)"
    line = "scale = shrink * w.abs().amax(-1, keepdim=True) / (most - 0.5)"
    assert text.count(call) == text.count(line) == 1
    text = text.replace(call, call.replace(")", ", name)"))
    text = text.replace(
        "group: int | None) -> Tensor", 'group: int | None, name: str = "") -> Tensor'
    )
    wrong = f'{line}\n        if name == "{LAYER}":\n            scale = scale.roll(1, dims=0)'
    path.write_text(text.replace(line, wrong))


def test_it_is_the_wheel_that_is_tested(python: Path, tmp_path: Path) -> None:
    asked = "import dllm_qbench; print(dllm_qbench.__file__)"
    found = subprocess.run(
        [python, "-c", asked], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(python.parents[1])


def test_sound_quantizer_passes_and_a_broken_layer_is_named(python: Path, project: Path) -> None:
    sound = gate(python, project, "-v", "-k", "general")
    assert sound.returncode == 0, sound.stdout
    assert re.search(r"quantize/W4A16-g64/general .* near-lossless <=2.5", sound.stdout)
    broken(project)
    red = gate(python, project, "-k", "general")
    assert red.returncode == 1, red.stdout
    assert "quantize/W4A16-g64/general on llada-embedded: degraded" in red.stdout
    assert f"where      first  {LAYER}: fed with full precision's inputs" in red.stdout


def test_its_test_module_is_what_init_writes(tmp_path: Path) -> None:
    made = scaffold(tmp_path, "my_quantizer:quantize", ("W4A16-g64",), "rtn/W4A16")
    assert made.path.read_text() == (EXAMPLE / "tests" / FILE).read_text()
