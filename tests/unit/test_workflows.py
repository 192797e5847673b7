"""The GitHub action, the workflows and the Slurm scripts: linted, and their steps run here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from dllm_qbench.baselines import write_cell
from dllm_qbench.outcomes import read_records
from tests.helpers.fake_cells import measured
from tests.helpers.suite import CONFTEST, TESTS
from tests.helpers.workflow_steps import Runner

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
OWN = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXAMPLES = sorted((ROOT / "examples" / "workflows").glob("*.yml"))
WORKFLOWS = [*OWN, *EXAMPLES]
FILES = [ACTION, *WORKFLOWS]
SLURM = ROOT / "examples" / "slurm"
JUDGED = "Quantization fidelity"


def parsed(path: Path) -> Any:
    # YAML 1.1 reads the key `on` as true.
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    """All steps of an action or of a workflow's jobs."""
    data = parsed(path)
    if "runs" in data:
        return list(data["runs"]["steps"])
    return [step for job in data["jobs"].values() for step in job["steps"]]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- linters


def lint(*command: str | Path) -> None:
    """Run a linter where it is installed, from the project's folder."""
    program = shutil.which(str(command[0]), path=_path())
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    run = subprocess.run(
        [program, *map(str, command[1:])], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_actionlint_finds_nothing() -> None:
    lint("actionlint", *WORKFLOWS)


def test_zizmor_finds_nothing() -> None:
    """What it looks for: injection, secrets and credentials that leak, unpinned actions, broad rights."""
    lint("zizmor", "--offline", "--persona=pedantic", *FILES)


def test_workflows_are_as_github_s_schema_says() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)


def test_the_action_is_as_github_s_schema_says() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.github-actions", ACTION)


def test_shellcheck_finds_nothing() -> None:
    lint("shellcheck", *sorted(SLURM.glob("*.s*")))


# --- rules that hold without a linter


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_expression_is_pasted_into_a_shell(path: Path) -> None:
    """What a pull request chooses (a branch's name, an input) must not become a program."""
    for step in steps(path):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", FILES, ids=named)
def test_actions_of_others_are_pinned_by_a_full_hash(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used or path in EXAMPLES
    for name in used:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", name), name


def test_one_action_is_pinned_by_one_hash_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for step in steps(path):
            name, _, pin = step.get("uses", "").partition("@")
            pins.setdefault(name, set()).add(pin)
    assert {name: len(found) for name, found in pins.items()} == dict.fromkeys(pins, 1)


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_a_workflow_may_read_and_nothing_else(path: Path) -> None:
    data = parsed(path)
    assert data["permissions"] == {}
    for job in data["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert job["timeout-minutes"] <= 720
    assert "pull_request_target" not in data[True]
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_our_own_workflow_runs_ci() -> None:
    ran = [step.get("run") for step in steps(ROOT / ".github" / "workflows" / "ci.yml")]
    assert "bash .ci/run" in ran
    assert (ROOT / ".ci" / "run").is_file()


def test_the_releases_that_the_workflow_names_are_tox_s() -> None:
    job = parsed(ROOT / ".github" / "workflows" / "torch.yml")["jobs"]["quick"]
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    known = re.findall(r"^    (torch\d+): TOX_TORCH", tox, re.MULTILINE)
    assert job["strategy"]["matrix"]["torch"] == known
    assert 'tox run -e "$TORCH-quick-cpu"' in job["steps"][2]["run"]


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_examples_give_the_action_inputs_that_it_has(path: Path) -> None:
    declared = parsed(ACTION)["inputs"]
    (used,) = (step for step in steps(path) if "/dllm_qbench@" in step.get("uses", ""))
    assert set(used["with"]) <= set(declared)
    assert all(isinstance(value, str) for value in used["with"].values())


@pytest.mark.parametrize("path", [ACTION, *EXAMPLES], ids=named)
def test_options_that_are_given_exist(path: Path, pytestconfig: pytest.Config) -> None:
    options = re.findall(r"--(qbench-[\w-]+)", path.read_text(encoding="utf-8"))
    unknown = [one for one in options if not hasattr(pytestconfig.option, one.replace("-", "_"))]
    assert unknown == []


# --- the action's steps, run in bash


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runner's disk, with what stands for the action's virtual environment: this Python and package."""
    root = tmp_path_factory.mktemp("runner")
    folder = root / "temp" / "qbench-venv" / "bin"
    folder.mkdir(parents=True)
    for name, call in (("python", ""), ("qbench", "-m dllm_qbench.cli")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        script.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def project(root: Path) -> Path:
    """A repository with three cells that a fake runner measures, and their baselines."""
    folder = root / "workspace" / "project"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{CONFTEST}"
    )
    (folder / "test_cells.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nqbench_model = llada-embedded\n")
    for task in ("general", "math", "code"):
        cell = measured(f"gptq/W4A16-g64/{task}", "llada-embedded")
        write_cell(folder / "baselines" / "llada-embedded.json", cell)
    return folder


def gate(root: Path, **inputs: str) -> Runner:
    arguments = ["-m", "quick", "-p", "no:cacheprovider", *_plugin()]
    given = {"working-directory": "project", "pytest-args": "\n".join(arguments)}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    return Runner(root, ROOT, given)


def _plugin() -> list[str]:
    """What pytest needs where the package is not installed."""
    installed = entry_points(group="pytest11", name="dllm_qbench")
    return [] if installed else ["-p", "dllm_qbench.pytest_plugin"]


@pytest.fixture(scope="module")
def sound(root: Path, project: Path) -> Runner:
    """The gate of a sound change, measured."""
    runner = gate(root)
    done = runner.run("Measure and judge")
    assert done.returncode == 0, done.stdout + done.stderr
    return runner


def test_a_sound_change_passes_and_is_summarized(sound: Runner, project: Path) -> None:
    assert sound.run("Summarize").returncode == 0
    text = sound.summary.read_text("utf-8")
    assert text.startswith(f"## {JUDGED}: no cell fails\n\n3 cells: 3 equivalent.")
    assert sound.run("Verdict").returncode == 0
    results = project / "qbench-results"
    written = {"records.jsonl", "junit.xml", "summary.md", "report.html"}
    assert {path.name for path in results.iterdir()} == written
    assert "<testsuite " in (results / "junit.xml").read_text("utf-8")


def test_a_broken_change_fails_after_its_summary(sound: Runner, project: Path) -> None:
    """300 of 810 answers lost, and a module 9 dB down: red, the module named, beside the base's run."""
    down = {"layers.0.q_proj": 21.0, "layers.0.down_proj": 8.0, "layers.1.q_proj": 22.0}
    broken = {"gptq/W4A16-g64/math": {"counts": [510, 390, 0, 100], "local_sqnr": down}}
    (project / "cells.json").write_text(json.dumps(broken))
    base = "qbench-results/records.jsonl"
    runner = gate(sound.root, results="now", base_records=base)
    runner.summary.unlink(missing_ok=True)
    # The step itself goes on: the summary comes after it.
    assert runner.run("Measure and judge").returncode == 0
    (project / "cells.json").unlink()
    assert runner.outputs["steps.measure.outputs.status"] == "1"
    assert runner.run("Summarize").returncode == 0
    text = runner.summary.read_text("utf-8")
    assert text.startswith(f"## {JUDGED}: 1 of 3 cells fail")
    row = next(line for line in text.splitlines() if "equivalent → degraded" in line)
    assert row.startswith("| `gptq/W4A16-g64/math` | `llada-embedded` |")
    assert row.endswith("| `layers.0.down_proj` |")
    assert "worse**" in row
    page = (project / "now" / "report.html").read_text("utf-8")
    assert "1 of 3 cells" in page
    assert "layers.0.down_proj" in page
    assert "Against" in page  # the base's records
    assert runner.run("Verdict").returncode == 1


def test_a_run_that_measures_nothing_fails_and_says_so(root: Path, project: Path) -> None:
    """As pytest does: 5 where nothing was collected. What an earlier run left is not taken for its own."""
    (project / "none").mkdir()
    (project / "none" / "records.jsonl").write_text("of an earlier run\n")
    runner = gate(root, results="none", pytest_args="-k\nnone", base_records="none.jsonl")
    runner.summary.unlink(missing_ok=True)
    assert runner.run("Measure and judge").returncode == 0
    assert runner.run("Summarize").returncode == 0
    assert runner.summary.read_text("utf-8").startswith(f"## {JUDGED}: no cell was measured")
    assert runner.run("Verdict").returncode == 5


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Stands for Python, and writes down what it is asked for; makes no environment."""
    folder = tmp_path / "told"
    folder.mkdir()
    (tmp_path / "workspace" / "project").mkdir(parents=True)
    stub = folder / "python3"
    stub.write_text(
        "#!/bin/sh\n"
        f'for one in "$@"; do printf "%s\\n" "$one" >> "{tmp_path}/asked"; done\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; ln -sf "$0" "$3/bin/python"; fi\n'
    )
    stub.chmod(0o755)
    return folder


def test_install_takes_the_suite_the_index_the_pins_and_the_project(
    tmp_path: Path, told: Path
) -> None:
    runner = gate(tmp_path, requirements="-e .\nother >= 2\n")
    runner.path = [told]
    done = runner.run("Install")
    assert done.returncode == 0, done.stderr
    venv = str(tmp_path / "temp" / "qbench-venv")
    assert (tmp_path / "asked").read_text("utf-8").splitlines() == [
        *("-m", "venv", venv),
        *("-m", "pip", "install"),
        *("--constraint", str(ROOT / "constraints.txt")),
        *("--extra-index-url", "https://download.pytorch.org/whl/cpu"),
        f"dllm-qbench[test] @ file://{ROOT}",
        *("-e", "."),
        "other >= 2",
    ]


def test_install_without_an_index_and_with_pins_of_one_s_own(tmp_path: Path, told: Path) -> None:
    runner = gate(tmp_path, torch_index_url="", constraints="pins.txt")
    runner.path = [told]
    assert runner.run("Install").returncode == 0
    asked = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert "--extra-index-url" not in asked
    assert asked[asked.index("--constraint") + 1] == "pins.txt"


@pytest.mark.parametrize(
    "value", ["$(touch pwned)", "`touch pwned`", "; touch pwned", '" && touch "pwned']
)
def test_no_input_is_run_as_a_program(value: str, tmp_path: Path, told: Path) -> None:
    names = "subject schemes tasks like models items baselines".split()
    names += "pytest-args requirements torch-index-url".split()
    runner = gate(tmp_path, **{name.replace("-", "_"): value for name in names})
    runner.path = [told]
    for step in ("Install", "Measure and judge"):
        assert runner.run(step).returncode == 0
    assert list(tmp_path.rglob("*pwned*")) == []
    asked = (tmp_path / "asked").read_text("utf-8").splitlines()
    for wanted in (
        value,
        f"--qbench-subject={value}",
        f"--qbench-schemes={value}",
        f"--qbench-tasks={value}",
        f"--qbench-like={value}",
        f"--qbench-model={value}",
        f"--qbench-items={value}",
        f"--qbench-baselines={value}",
    ):
        assert wanted in asked


def test_the_steps_measure_a_real_cell(root: Path, tmp_path: Path) -> None:
    """The shipped LLaDA at W8A8 on 50 items, as a pull request to this repository would be gated."""
    runner = Runner(
        root,
        ROOT,
        {
            "models": "llada-embedded",
            "items": "50",
            "results": str(tmp_path / "results"),
            "pytest-args": "tests/test_regression.py\n-k\nrtn-W8A8-general\n-p\nno:cacheprovider",
        },
    )
    runner.workspace = ROOT
    runner.summary.unlink(missing_ok=True)
    done = runner.run("Measure and judge")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runner.outputs["steps.measure.outputs.status"] == "0", done.stdout + done.stderr
    assert runner.run("Summarize").returncode == 0
    (record,) = read_records(tmp_path / "results" / "records.jsonl")
    assert (record.cell, record.items) == ("rtn/W8A8/general", 50)
    text = runner.summary.read_text("utf-8")
    assert f"## {JUDGED}: no cell fails" in text
    assert f"| `rtn/W8A8/general` | {100 * record.reference_accuracy:.1f} |" in text


# --- Slurm


def test_a_slurm_array_measures_every_cell_once_and_merges(
    tmp_path: Path, project: Path, root: Path
) -> None:
    """Stand-ins for sbatch and srun run the scripts as Slurm would: the array's parts, then the merge."""
    bins = tmp_path / "bin"
    bins.mkdir()
    stubs = {
        "srun": 'exec "$@"\n',
        # --parsable answers "id;cluster" where there are several clusters.
        "sbatch": f"""
            echo "$@" >> {tmp_path}/asked
            parts=; script=
            while [ $# -gt 0 ]; do
              case "$1" in
                --array=1-*) parts=${{1#--array=1-}} ;;
                --*) ;;
                *) script=$1; shift; break ;;
              esac
              shift
            done
            n=1
            while [ $n -le ${{parts:-1}} ]; do
              SLURM_ARRAY_TASK_ID=$n SLURM_ARRAY_TASK_COUNT=$parts bash "$script" "$@" >&2 || exit 1
              n=$((n + 1))
            done
            echo "41;one"
        """,
    }
    for name, body in stubs.items():
        (bins / name).write_text(f"#!/bin/sh\n{body}")
        (bins / name).chmod(0o755)
    results = tmp_path / "results"
    command = ["bash", str(SLURM / "submit.sh"), "2", str(results), "-m", "quick", *_plugin()]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {
        "PATH": os.pathsep.join([str(bins), os.environ["PATH"]]),
        "QBENCH_PYTHON": str(root / "temp" / "qbench-venv" / "bin" / "python"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(results.glob("records-?.jsonl"))) >= 1
    cells = sorted(record.cell for record in read_records(results / "records.jsonl"))
    assert cells == [f"gptq/W4A16-g64/{task}" for task in ("code", "general", "math")]
    assert (results / "summary.md").read_text("utf-8").startswith(f"## {JUDGED}: no cell fails")
    array, merge = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert "--array=1-2" in array
    assert "--dependency=afterany:41 " in merge


def test_a_slurm_call_without_parts_is_refused() -> None:
    for arguments in ([], ["none", "/tmp"], ["0", "/tmp"]):
        done = subprocess.run(
            ["bash", str(SLURM / "submit.sh"), *arguments], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "usage: submit.sh PARTS RESULTS" in done.stderr
