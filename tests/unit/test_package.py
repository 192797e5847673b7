"""The package as a whole: what it exports, what importing it costs, what a wheel of it holds."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import dllm_qbench as qb

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dllm_qbench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# The names that users of the package import; each has to stay.
PUBLIC = (
    "Band",
    "DiffusionLM",
    "QBenchError",
    "Record",
    "Scheme",
    "Verdict",
    "audit",
    "calibration",
    "evaluate",
    "judge",
    "load",
    "outliers",
    "quantize",
    "save_quantized",
    "load_quantized",
    "pack",
)
# What is needed to read options, records and baselines and to judge: none of it touches a tensor.
LIGHT = (
    "dllm_qbench",
    "dllm_qbench.errors",
    "dllm_qbench.seeding",
    "dllm_qbench.records",
    "dllm_qbench.noise",
    "dllm_qbench.baseline_cell",
    "dllm_qbench.baselines",
    "dllm_qbench.outcomes",
    "dllm_qbench.models.released",
    "dllm_qbench.models.hub",
    "dllm_qbench.full_matrix",
    "dllm_qbench.tasks.paper",
    "dllm_qbench.engine.jobs",
    "dllm_qbench.engine.store",
    "dllm_qbench.engine.leases",
    "dllm_qbench.engine.merge",
    "dllm_qbench.engine.devices",
    "dllm_qbench.engine.ray_engine",
    "dllm_qbench.cli",
    "dllm_qbench.cli_baseline",
    "dllm_qbench.cli_check",
    "dllm_qbench.cli_complete",
    "dllm_qbench.cli_run",
    "dllm_qbench.cli_summary",
    "dllm_qbench.cli_train",
    "dllm_qbench.quick_matrix",
    "dllm_qbench.run",
    "dllm_qbench.run_records",
    "dllm_qbench.judging",
    "dllm_qbench.baseline_diff",
    "dllm_qbench.baseline_update",
    "dllm_qbench.progress",
    "dllm_qbench.report.data",
    "dllm_qbench.report.result_tables",
    "dllm_qbench.report.table_files",
    "dllm_qbench.report.roofline",
    "dllm_qbench.report.write",
    "dllm_qbench.pytest_report",
    "dllm_qbench.cli_figures",
    "dllm_qbench.cli_report",
    "dllm_qbench.run_view",
    "dllm_qbench.summary",
    "dllm_qbench.summary_data",
    "dllm_qbench.scaffold",
    "dllm_qbench.subject_cells",
    "dllm_qbench.verdict.bands",
    "dllm_qbench.verdict.statistics",
    "dllm_qbench.verdict.localise",
    "dllm_qbench.verdict.evidence",
    "dllm_qbench.verdict.matrix",
    "dllm_qbench.verdict.sequential",
    "dllm_qbench.verdict.judge",
    "dllm_qbench.verdict.alike",
    "dllm_qbench.terminal",
    "dllm_qbench.pytest_plugin",
)
# Backends of kernels, which nothing imports but who asks for them, and what of an extra they need.
BACKENDS = {
    "dllm_qbench.kernels.cpu": ("numba", "llvmlite"),
    "dllm_qbench.kernels.triton": ("triton",),
}
HEAVY = ("numba", "triton", "torch", "transformers", "lm_eval", "datasets", "pandas", "ray")


def modules() -> list[str]:
    """Return the dotted names of the package and of every module in it."""
    found = pkgutil.walk_packages([str(PACKAGE)], prefix="dllm_qbench.")
    return ["dllm_qbench", *(module.name for module in found)]


def needed_extra(module: str) -> tuple[str, ...]:
    """Return the libraries of an extra that a module may import: a backend's own."""
    for backend, libraries in BACKENDS.items():
        if f"{module}.".startswith(f"{backend}."):
            return libraries
    return ()


def source(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(statement: ast.AST) -> list[str]:
    """Return the dotted names that an import statement may load (a name may be a module)."""
    match statement:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(home), names=names):
            return [home, *(f"{home}.{alias.name}" for alias in names)]
    return []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(qb, name).__name__ == name
    assert name in qb.__all__
    assert name in dir(qb)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dllm_qbench' has no attribute 'quantise'"):
        qb.quantise  # noqa: B018 (reading the attribute is what is tested)


@pytest.mark.parametrize("module", modules())
def test_every_module_imports(module: str) -> None:
    for library in needed_extra(module):
        pytest.importorskip(library, reason=f"{module} needs {library}")
    importlib.import_module(module)


def test_import_stays_light() -> None:
    program = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "print(json.dumps(loaded))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {name: [] for name in LIGHT}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    known = set(modules())
    graph = {
        module: sorted(
            {name for part in source(module).body for name in imported(part)} & known - {module}
        )
        for module in known
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in done:
            for child in graph[module]:
                visit(child, (*path, module))
            done.add(module)

    for module in sorted(known):
        visit(module, ())


def test_kernels_load_a_backend_only_when_it_is_used() -> None:
    program = (
        "import sys, torch\n"
        "from dllm_qbench import kernels\n"
        "kernels.available()\n"
        "kernels.hadamard(torch.ones(2, 4), backend='torch')\n"
        "print(sorted({'numba', 'llvmlite', 'triton'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


def test_every_library_that_the_package_imports_is_a_declared_dependency() -> None:
    declared = {
        re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()  # type: ignore[index]
        for line in PROJECT["dependencies"]
    }
    providers = metadata.packages_distributions()
    undeclared = {}
    for module in modules():
        for statement in ast.walk(source(module)):
            for name in imported(statement):
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top == "dllm_qbench":
                    continue
                if top in needed_extra(module):
                    continue
                if (module, top) == ("dllm_qbench.pytest_scheduling", "xdist"):
                    continue  # imported by a hook that only pytest-xdist itself calls
                owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in providers.get(top, ())}
                if not owners & declared:
                    undeclared[top] = module
    assert undeclared == {}


def test_version_is_the_newest_one_in_the_changelog() -> None:
    headings = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == qb.__version__


def test_installed_plugin_is_found_by_pytest_once() -> None:
    try:
        version = metadata.version("dllm-qbench")
    except metadata.PackageNotFoundError:
        pytest.skip("runs from a source tree that is not installed")
    assert version == qb.__version__
    (plugin,) = metadata.entry_points(group="pytest11", name="dllm_qbench")
    assert plugin.value == "dllm_qbench.pytest_plugin"


def test_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend comes with the extra 'test'")
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # zip files cannot hold times before 1980; a fixed time also makes two builds comparable
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("dllm_qbench/")}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    paper = "dllm_qbench/baselines_of_the_paper/"  # in a checkout: baselines/paper
    expected |= {paper + path.name for path in (ROOT / "baselines" / "paper").glob("*.json")}
    shipped = "dllm_qbench/shipped_baselines/"  # likewise: baselines
    expected |= {f"{shipped}{model}.json" for model in ("llada-embedded", "dream-embedded")}
    assert held == expected
    assert {Path(name).suffix for name in held} >= {".json", ".py", ".safetensors", ".yaml"}
