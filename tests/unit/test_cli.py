"""``qbench``: exit statuses, messages, JSON."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dllm_qbench import __version__, cli, cli_complete, cli_output
from dllm_qbench.outcomes import Outcome, OutcomeFile, read_records
from tests.helpers.command import qbench as run
from tests.helpers.records import make_record
from tests.helpers.screens import Stream


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
    assert run(monkeypatch, "merge", "--json", str(out), str(out), str(one)) == 0
    assert json.loads(capsys.readouterr().out) == {
        "entries": 2,
        "repeated": 1,
        "interrupted": [],
        "out": str(out),
    }
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
    as_json = capsys.readouterr().out
    (row,) = json.loads(as_json)["rows"]
    assert run(monkeypatch, "compare", records, "paper", "--json") == 0
    assert capsys.readouterr().out == as_json
    assert row["cell"] == "gptq/W4A16-g128/gsm8k"
    assert run(monkeypatch, "compare", records, str(tmp_path / "nothing.jsonl")) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert run(monkeypatch, "compare", records, "paper", "--format", "xml") == 2
    assert "format 'xml' is unknown" in capsys.readouterr().err


def test_summary_in_json_says_what_fails_and_what_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = str(write(tmp_path / "base.jsonl", "gptq/W4A16-g128/gsm8k"))
    now = tmp_path / "now.jsonl"
    kept = OutcomeFile(now)
    worse = make_record(cell="gptq/W4A16-g128/gsm8k", model="llada-8b-base", counts=(20, 70, 0, 10))
    kept.append(Outcome.of_measurement(worse, "too low", status="degraded"))
    kept.append(Outcome.of_error("rtn/W8A8/mmlu", "llada-8b-base", ValueError("no data"), None))
    assert run(monkeypatch, "summary", str(now), "--base", base, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["fails"], found["cells"]) == (True, 2)
    assert found["counts"] == {"infra": 1, "degraded": 1}
    assert [failing["cell"] for failing in found["failing"]] == [
        "rtn/W8A8/mmlu",
        "gptq/W4A16-g128/gsm8k",
    ]
    assert "ValueError: no data" in found["failing"][0]["why"]
    (change,) = found["base"]["changed"]
    assert (change["cell"], change["lost"], change["gained"]) == ("gptq/W4A16-g128/gsm8k", 62, 0)
    assert found["base"]["new"] == [["llada-8b-base", "rtn/W8A8/mmlu"]]
    assert run(monkeypatch, "summary", base, "--json", "--out", str(tmp_path / "s.json")) == 0
    alone = json.loads((tmp_path / "s.json").read_text())
    assert (alone["fails"], alone["failing"], alone["base"]) == (False, [], None)


def test_init_says_in_json_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("init", "--subject", "mine:quantize", "--folder", str(tmp_path), "--json")
    assert run(monkeypatch, *given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(tmp_path / "test_quantization.py")
    assert len(found["next_steps"]) == 3


# --- help and errors -------------------------------------------------------------------------------

COMMANDS = {
    command.name or command.callback.__name__.replace("_", "-"): command
    for command in cli.app.registered_commands
    if command.callback
}
GROUPS = {group.name: group.typer_instance for group in cli.app.registered_groups}


def shown(
    *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its output piped."""
    return subprocess.run(
        [sys.executable, "-m", "dllm_qbench.cli", *arguments],
        capture_output=True,
        text=True,
        check=check,
        env=os.environ | environment,
    )


def test_help_says_what_each_exit_status_means() -> None:
    text = shown("--help").stdout
    for status in (0, 1, 2, cli.INTERRUPTED, cli.UNREAD):
        assert re.search(rf"^    {status} +\w", text, re.MULTILINE)


def test_every_command_has_an_example_that_it_takes() -> None:
    """The example's command is the one whose help it is in, and its options are known."""
    listed = [("qbench", name, command) for name, command in COMMANDS.items()]
    for group, app in GROUPS.items():
        listed += [
            (f"qbench {group}", c.callback.__name__, c)
            for c in app.registered_commands
            if c.callback
        ]
    assert len(listed) >= 13
    for prefix, name, command in listed:
        assert command.epilog is not None, name
        example = command.epilog.removeprefix("Example: ")
        assert example.startswith(f"{prefix} {name} ")
        declared = str(inspect.signature(command.callback, eval_str=True))
        assert "as_json" in declared, name
        for option in re.findall(r"--[a-z-]+", example):
            plain = option.removeprefix("--").replace("-", "_")
            assert plain in declared or option in declared, (name, option)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("rnu",), ("run", "--metods")]
)
def test_help_and_errors_are_plain_text_of_bounded_width(arguments: tuple[str, ...]) -> None:
    """Also where colours are forced on everybody, or the terminal is wide."""
    forced = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "COLUMNS": "300", "PY_COLORS": "1"}
    done = shown(*arguments, check=False, **forced)
    text = done.stdout + done.stderr
    assert "\x1b" not in text
    assert len(text.splitlines()) > 2
    assert max(map(len, text.splitlines())) <= 100


def test_a_mistyped_name_is_answered_with_the_near_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "rnu") == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err
    assert run(monkeypatch, "run", "--metods", "rtn") == 2
    assert "--methods" in capsys.readouterr().err
    assert run(monkeypatch, "baseline", "dif", "a", "b") == 2
    assert "Did you mean 'diff'?" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"qbench {__version__}\n"


def test_help_and_completion_stay_light() -> None:
    """Neither torch nor scipy nor rich: a key pressed in a shell must not wait for them."""
    code = (
        "import os, sys\n"
        "from dllm_qbench import cli\n"
        "sys.argv = ['qbench'] + sys.argv[1:]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'scipy', 'numpy', 'pandas', 'transformers', 'rich', 'jsonschema', 'jinja2')\n"
        "print('LOADED', *[name for name in heavy if name in sys.modules])\n"
    )
    for arguments, environment in (
        (["--help"], {}),
        (["run", "--help"], {}),
        ([], completing("qbench run --methods gptq,")),
        ([], completing("qbench baseline show llada-embedded gptq/")),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        )
        assert len(done.stdout.splitlines()) > 2
        assert done.stdout.splitlines()[-1] == "LOADED", done.stdout


# --- how a command ends ----------------------------------------------------------------------------


def test_an_interrupt_is_130_and_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dllm_qbench.doctor.diagnose", interrupted)
    assert run(monkeypatch, "doctor") == 130
    assert capsys.readouterr().err == "qbench: interrupted\n"


def test_a_reader_that_leaves_is_141_and_nothing_is_said(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "dllm_qbench.cli", "baseline", "show", "llada-embedded", "--json"],
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


# --- colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tty", "environment", "colored"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        (False, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (False, {"NO_COLOR": "1", "PY_COLORS": "1"}, True),
        (True, {"FORCE_COLOR": "1", "PY_COLORS": "0"}, False),
    ],
)
def test_colours_follow_the_rules_that_pytest_has(
    monkeypatch: pytest.MonkeyPatch, tty: bool, environment: dict[str, str], colored: bool
) -> None:
    from _pytest._io.terminalwriter import should_do_markup

    for name in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli_output.takes_color(Stream(tty)) == colored
    assert should_do_markup(Stream(tty)) == colored


def test_lines_have_their_colour_only_where_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [("fails", "red"), ("plain", None)]
    for color, expected in (("1", "\x1b[31mfails\x1b[0m\nplain\n"), ("0", "fails\nplain\n")):
        monkeypatch.setenv("PY_COLORS", color)
        cli_output.show(lines)
        assert capsys.readouterr().out == expected


# --- completion ------------------------------------------------------------------------------------


def completing(line: str) -> dict[str, str]:
    """What bash sets when the tab key is pressed at the end of a line."""
    return {
        "_QBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qbench tr", ["train-embedded"]),
        ("qbench baseline u", ["update"]),
        ("qbench run --model dream-e", ["dream-embedded"]),
        ("qbench run --methods gptq,d", ["gptq,duquant"]),
        ("qbench run --schemes W8", ["W8A8"]),
        ("qbench run --tasks math,c", ["math,code"]),
        ("qbench check x --like smoothquant/W4", ["smoothquant/W4A4"]),
        ("qbench baseline show dream", ["dream-embedded"]),
        ("qbench baseline show dream-embedded awq/W3A16-g64/m", ["awq/W3A16-g64/math"]),
        ("qbench train-embedded --after s", ["settled"]),
    ],
)
def test_a_shell_completes_names(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: list[str],
) -> None:
    for name, value in completing(line).items():
        monkeypatch.setenv(name, value)
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out.split() == expected


def test_what_is_in_a_list_already_is_not_offered_again() -> None:
    assert "gptq,gptq" not in cli_complete.methods("gptq,")
    assert cli_complete.methods("gptq,awq,r") == ["gptq,awq,rtn"]


def test_cells_of_what_cannot_be_read_are_none(tmp_path: Path) -> None:
    broken = tmp_path / "toy.json"
    broken.write_text("{")
    for name in (str(broken), "nowhere", ""):
        ctx: Any = SimpleNamespace(params={"baselines": name})
        assert cli_complete.cells(ctx, "") == []


# --- train-embedded --------------------------------------------------------------------------------


def test_training_is_asked_for_as_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "dllm_qbench.models.embedded.train.train", lambda *a, **k: calls.append((a, k))
    )
    given = ("train-embedded", "--model", "dream", "--out", str(tmp_path), "--steps", "7", "-v")
    assert run(monkeypatch, *given, "--seed", "3", "--after", "natural") == 0
    ((recipe, out, after), settings) = calls[0]
    assert (recipe.architecture, recipe.seed, out, after) == ("Dream", 3, tmp_path, "natural")
    assert [stage.steps for stage in (recipe.natural, recipe.settled, recipe.polished)] == [7] * 3
    assert settings == {"verbosity": 1}
    assert f"qbench run --model {tmp_path / 'polished'}" in capsys.readouterr().out


def test_training_that_is_interrupted_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the stages that this run wrote; those of a run before are no part of it."""
    old = tmp_path / "settled" / "config.json"
    old.parent.mkdir()
    old.write_text("{}")
    os.utime(old, (1, 1))

    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "natural").mkdir(exist_ok=True)
        (tmp_path / "natural" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("dllm_qbench.models.embedded.train.train", interrupted)
    assert run(monkeypatch, "train-embedded", "--out", str(tmp_path)) == 130
    assert capsys.readouterr().err == (
        "qbench: the same command with --after natural goes on\nqbench: interrupted\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "bert"), "--model is 'bert', expected llada or dream"),
        (("--after", "polished"), "--after is 'polished', expected natural or settled"),
        (("--steps", "0"), "--steps is 0, expected 1 or more"),
    ],
)
def test_bad_training_options_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    assert run(monkeypatch, "train-embedded", "--out", "x", *arguments) == 2
    assert told in capsys.readouterr().err
