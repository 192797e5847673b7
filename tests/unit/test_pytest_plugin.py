"""The plugin from the outside: small pytest runs on cells that a fake runner measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_qbench.baselines import write_cell
from dllm_qbench.outcomes import read_records
from tests.helpers.fake_cells import DEFAULT, measured
from tests.helpers.records import LOCAL
from tests.helpers.suite import MODULE, ONE, Suite


def test_plugin_is_light_to_load() -> None:
    code = (
        f"import sys, {MODULE}; heavy = ('torch', 'transformers', 'lm_eval', 'scipy', 'jsonschema');"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_run_without_cells_has_a_header_and_no_table(suite: Suite) -> None:
    suite.pytester.makepyfile(test_cells="def test_nothing(): pass")
    suite.pytester.makeini("[pytest]")
    result = suite.run()
    result.stdout.fnmatch_lines(
        [
            "qbench: dllm-qbench *torch *",
            "qbench: model llada-embedded, dream-embedded, 500 items a cell, *",
        ]
    )
    result.stdout.no_fnmatch_line("*quantization fidelity*")


def test_options_have_twins_in_the_configuration_file(suite: Suite) -> None:
    suite.pytester.makepyfile(test_cells="def test_nothing(): pass")
    suite.pytester.makeini("[pytest]\nqbench_items = 40\nqbench_model = mine\nqbench_baselines = b")
    suite.run().stdout.fnmatch_lines(["qbench: model mine, 40 items a cell, baselines b"])
    given = suite.run("--qbench-items=7", "--qbench-model=yours,checkpoints/hers")
    given.stdout.fnmatch_lines(
        ["qbench: model yours, checkpoints/hers, 7 items a cell, baselines b"]
    )


def test_markers_are_registered(suite: Suite) -> None:
    result = suite.run("--markers")
    for name in ("quick", "full", "bench", "faults", "scale"):
        result.stdout.fnmatch_lines([f"@pytest.mark.{name}:*"])


def test_no_model_is_a_usage_error(suite: Suite) -> None:
    result = suite.run("--qbench-model=,")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-model is empty*"])


def test_every_cell_runs_on_every_model_one_model_after_the_other(recorded: Suite) -> None:
    other = recorded.pytester.path / "baselines" / "tiny.json"
    for task in ("general", "math", "code"):
        write_cell(other, measured(f"gptq/W4A16-g64/{task}", "tiny"))
    models = "--qbench-model=llada-embedded,tiny"
    result = recorded.run("-v", models, "--qbench-records=r.jsonl")
    result.assert_outcomes(passed=6)
    ran = [str(line) for line in result.outlines if "PASSED" in str(line)]
    assert ["llada-embedded" in line for line in ran] == [True] * 3 + [False] * 3
    result.stdout.fnmatch_lines(
        ["*quantization fidelity: *, 1000 items a cell*", "*quantization fidelity: *"]
    )
    records = read_records(recorded.pytester.path / "r.jsonl")
    assert [record.model for record in records] == ["llada-embedded"] * 3 + ["tiny"] * 3
    recorded.run(models, "-k", "tiny-gptq").assert_outcomes(passed=0, deselected=6)
    recorded.run(models, "-k", "tiny and math").assert_outcomes(passed=1, deselected=5)


def test_checkpoint_folder_may_have_blanks_in_its_name(suite: Suite) -> None:
    suite.pytester.makepyfile(test_cells="def test_nothing(): pass")
    result = suite.run("--qbench-model=my checkpoints/a model, tiny")
    result.stdout.fnmatch_lines(["qbench: model my checkpoints/a model, tiny, 500 items *"])
    assert result.ret == 0


def test_model_with_the_worst_cell_comes_first(recorded: Suite) -> None:
    recorded.plan(math=(400, 500, 0, 100))
    other = recorded.pytester.path / "baselines" / "a-model.json"
    for task, counts in {"general": DEFAULT, "math": (400, 500, 0, 100), "code": DEFAULT}.items():
        write_cell(other, measured(f"gptq/W4A16-g64/{task}", "a-model", counts))
    result = recorded.run("--qbench-model=a-model,llada-embedded")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*fidelity: llada-embedded, *", "*fidelity: a-model, *"])


def test_model_is_released_before_the_next_one_comes(suite: Suite) -> None:
    suite.pytester.makepyfile(
        test_cells="""
        held = []

        def test_models(qbench_run, qbench_model, qbench_lm):
            held.append(sorted(qbench_run._runners))
            assert held == [[name] for name in ("one", "two")][: len(held)]
        """
    )
    suite.run("--qbench-model=one,two").assert_outcomes(passed=2)


def test_audit_finding_fails_the_cell_and_is_named(recorded: Suite) -> None:
    recorded.plan(math={"counts": DEFAULT, "audit_findings": ["coverage: model.x: is Linear"]})
    result = recorded.run("--qbench-records=r.jsonl")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [f"{ONE} on llada-embedded: degraded", "*- audit coverage: model.x: is Linear"]
    )
    found = {r.task: r.audit_findings for r in read_records(recorded.pytester.path / "r.jsonl")}
    assert found == {"general": (), "math": ("coverage: model.x: is Linear",), "code": ()}


def test_failing_cell_says_what_its_error_looks_like(recorded: Suite) -> None:
    recorded.plan(math={"counts": DEFAULT, "local_sqnr": LOCAL | {"layers.0.q_proj": 9.0}})
    result = recorded.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "  where *first  layers.0.q_proj: fed with full precision's inputs it is at 9.0 dB, *",
            "  looks like *noise: of layers.0.q_proj in math",
        ]
    )


@pytest.mark.parametrize("items", ["0", "-3", "many", "1.5"])
def test_bad_number_of_items_is_a_usage_error(suite: Suite, items: str) -> None:
    result = suite.run(f"--qbench-items={items}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--qbench-items is '{items}'*"])


def test_table_has_every_cell_within_100_columns_worst_first(recorded: Suite) -> None:
    recorded.plan(math=(400, 500, 0, 100), code=(805, 95, 0, 100))
    result = recorded.run("-v")
    result.assert_outcomes(passed=2, failed=1)
    lines = [str(line) for line in result.outlines]
    start = next(n for n, line in enumerate(lines) if "quantization fidelity" in line)
    rows = [line.split() for line in lines[start + 3 : start + 6]]
    assert [(row[0].split("/")[2], row[-1]) for row in rows] == [
        ("math", "degraded"),
        ("code", "changed"),
        ("general", "equivalent"),
    ]
    assert rows[0][1:4] == ["90.0", "40.0", "55.6"]
    assert max(len(line) for line in lines[start : start + 8]) <= 100


def test_failing_cell_prints_the_verdict_and_no_traceback(recorded: Suite) -> None:
    recorded.plan(math=(400, 500, 0, 100))
    result = recorded.run()
    result.stdout.fnmatch_lines(
        [
            f"{ONE} on llada-embedded: degraded",
            "  expected *graceful: a drop of *",
            "  seen *a drop of 55.6 % [[]*",
            "  items *1000, the same items and masks for both",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_strict_fails_on_changed_answers(recorded: Suite) -> None:
    recorded.plan(math=(805, 95, 0, 100))
    assert recorded.run().ret == 0
    recorded.run("--qbench-strict").assert_outcomes(passed=2, failed=1)


def test_missing_baseline_says_how_to_record_and_keeps_what_was_measured(suite: Suite) -> None:
    result = suite.run("--qbench-records=r.jsonl", "-k", "math")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no such file; *pytest --qbench-update*"])
    result.stdout.fnmatch_lines([f"{ONE} *90.0 *81.0 *not judged"])
    assert [record.cell for record in read_records(suite.pytester.path / "r.jsonl")] == [ONE]


def test_cell_that_cannot_be_measured_is_infra_and_no_accuracy(recorded: Suite) -> None:
    recorded.plan(math="NaN in model.layers.0")
    result = recorded.run("--qbench-records=r.jsonl")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"{ONE} * - * - * infra"])
    lines = (recorded.pytester.path / "r.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["error"] == "NonFiniteError: NaN in model.layers.0"
    assert len(read_records(recorded.pytester.path / "r.jsonl")) == 2


def test_interrupted_run_keeps_the_finished_cells(recorded: Suite) -> None:
    recorded.plan(code=None)
    result = recorded.run("--qbench-records=r.jsonl")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert len(read_records(recorded.pytester.path / "r.jsonl")) == 2
    result.stdout.fnmatch_lines(["*quantization fidelity*"])


def test_records_reach_junit_files(recorded: Suite) -> None:
    recorded.run("--junitxml=junit.xml")
    text = (recorded.pytester.path / "junit.xml").read_text()
    assert text.count('<property name="qbench"') == 3


def test_broken_baseline_fails_every_cell_and_names_the_field(recorded: Suite) -> None:
    data = json.loads(recorded.baseline.read_text())
    del data["cells"][ONE]["band"]
    recorded.baseline.write_text(json.dumps(data))
    result = recorded.run()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines([f"*field cells?'{ONE}'?.band is missing*"])


@pytest.mark.parametrize(("flags", "shown"), [([], True), (["-q"], True), (["-qq"], False)])
def test_quiet_runs_say_less(recorded: Suite, flags: list[str], shown: bool) -> None:
    text = str(recorded.run(*flags).stdout)
    assert ("quantization fidelity" in text) == shown
    assert ("-v lists them" in text) == (not flags)
    assert "Drops are relative" not in text


def test_all_cells_have_a_row_only_when_asked(recorded: Suite) -> None:
    well = "all 3 cells equivalent, the largest drop 10.0 % (gptq/W4A16-g64/*); -v lists them"
    recorded.run().stdout.fnmatch_lines([well])
    every = recorded.run("-v").stdout
    every.no_fnmatch_line(well)
    every.fnmatch_lines([f"{ONE} * equivalent", "*Drops are relative*"])


def test_colour_follows_pytest(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    green = "\x1b[32mgptq/W4A16-g64"
    for variable in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(variable, raising=False)
    assert green in str(recorded.run("-v", "--color=yes").stdout)
    assert green not in str(recorded.run("-v").stdout)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert green in str(recorded.run("-v").stdout)
    assert green not in str(recorded.run("-v", "--color=no").stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    assert green not in str(recorded.run("-v").stdout)


def test_logs_hold_no_progress_unless_asked(
    recorded: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllm_qbench.progress.FIRST_AFTER_S", 0.0)
    assert " 50 %, 1 of 2" not in str(recorded.run().stdout)
    assert f"  {ONE}:  50 %, 1 of 2, 0 s" in str(recorded.run("-v").stdout)


def test_full_precision_is_no_cell(suite: Suite) -> None:
    suite.pytester.makepyfile(
        test_cells="def test_lm(qbench_lm, qbench_cell): qbench_cell(qbench_lm, 'math')"
    )
    result = suite.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has no recipe, it is not quantized*"])


def test_user_quantizer_is_a_cell_like_any_other(suite: Suite) -> None:
    suite.pytester.makepyfile(
        test_cells="""
        from types import SimpleNamespace

        def test_mine(qbench_cell):
            mine = SimpleNamespace(name="m", recipe={"method": "mine", "scheme": "W5A16"})
            qbench_cell(mine, "math")
        """
    )
    assert suite.run("--qbench-update-pass").ret == 0
    assert "mine/W5A16/math" in (suite.pytester.path / "baselines" / "m.json").read_text()


def test_record_path_that_is_a_folder_is_a_usage_error(suite: Suite, tmp_path: Path) -> None:
    result = suite.run(f"--qbench-records={tmp_path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
