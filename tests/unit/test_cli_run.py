"""``qbench run`` on cells that a fake runner measures: verdicts, files, and going on after a kill."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from dllm_qbench.baselines import shipped_baselines, write_cell
from dllm_qbench.errors import QBenchError, SchemeError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.quick_matrix import METHODS, QUANTIZERS, choose
from dllm_qbench.records import Record
from dllm_qbench.run import Settings
from dllm_qbench.summary_files import read_outcomes
from tests.helpers import fake_cells
from tests.helpers.command import qbench
from tests.helpers.fake_cells import measured
from tests.helpers.records import SHA

MODEL = "llada-embedded"
TASKS = ("general", "math", "code")
CELLS = [f"gptq/W4A16-g64/{task}" for task in TASKS]
ONE = ("run", "--methods", "gptq", "--schemes", "W4A16-g64", "--items", "1000")
WORSE = (400, 500, 0, 100)


class CellRunner(fake_cells.CellRunner):
    """Remembers what it measured."""

    seen: ClassVar[list[str]] = []

    def __init__(self, model: str, items: int, device: str) -> None:
        super().__init__(model, items, device)
        self.lm = SimpleNamespace(name=model, recipe=None, fingerprint=lambda: SHA)

    def audited(self, quantized: Any) -> None:
        pass

    def quantized(self, method: str, scheme: str, **_: Any) -> SimpleNamespace:
        if method == "awq":
            raise QBenchError("awq cannot")
        return super().quantized(method, scheme)

    def measure(self, quantized: Any, task: str, *rest: Any, **given: Any) -> Record:
        self.seen.append(task)
        return super().measure(quantized, task, *rest, **given)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A folder with baselines of three cells; the tasks that were measured in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        sys.modules, "dllm_qbench.engine.cells", SimpleNamespace(CellRunner=CellRunner)
    )
    for cell in CELLS:
        write_cell(tmp_path / "baselines" / f"{MODEL}.json", measured(cell, MODEL))
    CellRunner.seen = []
    return CellRunner.seen


def plan(**counts: Any) -> None:
    """What the tasks measure from now on."""
    cells = {f"gptq/W4A16-g64/{task}": value for task, value in counts.items()}
    Path("cells.json").write_text(json.dumps(cells))


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> Run:
    return lambda *arguments: qbench(monkeypatch, *ONE, *arguments)


def kept() -> list[Outcome]:
    return read_outcomes("r.jsonl")


def test_well_is_0_and_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, err = capsys.readouterr()
    assert "baselines baselines/llada-embedded.json" in out
    assert "all 3 cells equivalent, the largest drop 10.0 %" in out
    assert err == ""
    assert run("-v") == 0
    assert all(f"\n{cell} " in capsys.readouterr().out for cell in CELLS[:1])
    assert run("-qq") == 0
    assert capsys.readouterr().out == ""


def test_a_worse_cell_is_1_and_says_why(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plan(math=WORSE)
    assert run("-q") == 1
    out = capsys.readouterr().out
    assert f"{CELLS[1]} on {MODEL}: degraded" in out
    assert "3 cells: 1 degraded, 2 equivalent" in out
    assert "expected " in out


def test_json_holds_every_record_and_nothing_else(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(math=WORSE)
    assert run("--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fails"] is True
    assert {cell["cell"]: cell["fails"] for cell in found["cells"]} == {
        cell: cell == CELLS[1] for cell in CELLS
    }
    assert found["cells"][0]["record"]["task"] == "general"


def test_interrupted_it_loses_nothing_and_goes_on(
    run: Run, seen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan(math=None)
    assert run("--records", "r.jsonl") == 130
    told = "qbench: the same command goes on from r.jsonl\nqbench: interrupted\n"
    assert capsys.readouterr().err == told
    assert [outcome.cell for outcome in kept()] == CELLS[:1]
    assert Path("r.jsonl.unfinished").exists()
    with Path("r.jsonl").open("a") as file:
        file.write('{"cell": "half a li')
    seen.clear()
    plan()
    assert run("--records", "r.jsonl") == 0
    assert seen == ["math", "code"]
    assert "1 of 3 cells were measured before, in r.jsonl" in capsys.readouterr().out
    assert [outcome.cell for outcome in kept()] == CELLS
    assert [path.name for path in sorted(Path().glob("r.jsonl*"))] == ["r.jsonl"]


def test_a_run_that_was_through_is_measured_anew(run: Run, seen: list[str]) -> None:
    run("--records", "r.jsonl")
    plan(code=WORSE)
    assert run("--records", "r.jsonl") == 1
    assert seen == [*TASKS, *TASKS]
    assert [outcome.status for outcome in kept()] == ["equivalent", "equivalent", "degraded"]


@pytest.mark.parametrize("change", ["code", "note"])
def test_what_other_code_measured_is_not_used(
    run: Run, seen: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    plan(code=None)
    run("--records", "r.jsonl")
    if change == "code":
        monkeypatch.setattr("dllm_qbench.engine.store.code_version", lambda: "another")
    else:
        Path("r.jsonl.unfinished").unlink()
    seen.clear()
    plan()
    assert run("--records", "r.jsonl") == 0
    assert seen == [*TASKS]


def test_killed_at_once_an_old_file_is_not_taken_for_this_run(run: Run, seen: list[str]) -> None:
    """The note must not vouch for records that were there before it."""
    run("--records", "r.jsonl")
    plan(general=None)
    assert run("--records", "r.jsonl") == 130
    seen.clear()
    plan()
    run("--records", "r.jsonl")
    assert seen == [*TASKS]


def test_what_was_kept_is_judged_by_the_baselines_of_now(run: Run, seen: list[str]) -> None:
    plan(math=WORSE, code=None)
    run("--records", "r.jsonl")
    Path(f"baselines/{MODEL}.json").unlink()
    for cell in CELLS:
        write_cell(f"baselines/{MODEL}.json", measured(cell, MODEL, WORSE))
    plan(code=WORSE)
    seen.clear()
    run("--records", "r.jsonl")
    assert seen == ["code"]
    assert {o.cell: o.status for o in kept()}[CELLS[1]] == "equivalent"


def test_other_cells_of_an_unfinished_file_stay_in_it(run: Run, seen: list[str]) -> None:
    plan(code=None)
    run("--records", "r.jsonl")
    seen.clear()
    assert run("--records", "r.jsonl", "--tasks", "math") == 0
    assert seen == []
    assert [outcome.cell for outcome in kept()] == [CELLS[1], CELLS[0]]


def test_a_cell_that_cannot_be_measured_does_not_stop_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, seen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan(math="a NaN in the logits")
    assert run("--records", "r.jsonl") == 1
    assert seen == [*TASKS]
    assert "NonFiniteError: a NaN in the logits" in capsys.readouterr().out
    assert [outcome.status for outcome in kept()] == ["equivalent", "infra", "equivalent"]
    awq = ("run", "--methods", "awq", "--schemes", "W4A16-g64", "--tasks", "math")
    assert qbench(monkeypatch, *awq) == 1
    assert "QBenchError: awq cannot" in capsys.readouterr().out


def test_without_a_baseline_a_cell_is_told_and_like_judges_it(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("baselines/llada-embedded.json").rename("baselines/other.json")
    monkeypatch.setattr(CellRunner, "calibration", None, raising=False)
    assert run("--baselines", "baselines") == 0
    out = capsys.readouterr().out
    assert "informational: no baseline of its own" in out
    assert out.count("informational") >= 4


def test_progress_is_on_the_standard_error_of_a_terminal_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run() == 0
    out, err = capsys.readouterr()
    assert err.startswith("\r  loading torch\r")
    assert f"\r  [1/3] {CELLS[0]}: quantizing" in err
    assert "[3/3]" in err
    assert err.endswith(" \r")
    assert "quantizing" not in out


def test_the_page_of_the_run_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("dllm_qbench.report.write.write_report", lambda *given: calls.append(given))
    plan(math=WORSE)
    assert run("--html", "page.html") == 1
    ((path, outcomes, sources),) = calls
    assert path == Path("page.html")
    assert [(o.cell, o.fails) for o in outcomes] == [(cell, cell == CELLS[1]) for cell in CELLS]
    assert sources.baselines == Path("baselines")
    assert "report: page.html" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_loses_no_figure(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any) -> None:
        raise QBenchError("page.html: the report cannot be written: no space left")

    monkeypatch.setattr("dllm_qbench.report.write.write_report", full)
    assert run("--html", "page.html", "--json") == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out)["cells"]) == 3
    assert "the report cannot be written: no space left" in err


# --- what is run -----------------------------------------------------------------------------------


def test_methods_of_the_matrix_are_all_there_are() -> None:
    from dllm_qbench.quant.quantize import METHODS as KNOWN

    assert set(METHODS) == set(KNOWN)
    assert {method for method, _ in QUANTIZERS} == set(METHODS)


@pytest.mark.parametrize(
    ("methods", "schemes", "subjects", "chosen"),
    [
        ((), (), (), QUANTIZERS),
        (("gptq",), (), (), (("gptq", "W4A16-g64"), ("gptq", "W3A16-g64"))),
        (
            (),
            ("W4A4",),
            (),
            tuple((m, "W4A4") for m in ("rtn", "smoothquant", "quarot", "duquant")),
        ),
        (("gptq", "awq"), ("W2A16-g32",), (), (("gptq", "W2A16-g32"), ("awq", "W2A16-g32"))),
        ((), (), ("a.b:c",), (("a.b:c", "W4A16-g64"),)),
        ((), ("W8A8",), ("a.b:c",), (("a.b:c", "W8A8"),)),
        (("rtn",), ("W8A8",), ("a.b:c",), (("rtn", "W8A8"), ("a.b:c", "W8A8"))),
    ],
)
def test_what_is_named_is_what_is_run(
    methods: tuple[str, ...],
    schemes: tuple[str, ...],
    subjects: tuple[str, ...],
    chosen: tuple[tuple[str, str], ...],
) -> None:
    assert choose(methods, schemes, subjects) == chosen


def test_what_cannot_be_run_is_told() -> None:
    with pytest.raises(QBenchError, match="--methods: 'gtpq' is unknown; methods: rtn, gptq"):
        choose(("gtpq",), ())
    with pytest.raises(QBenchError, match="the quick matrix has no W2A16-g32, it has W4A16-g64"):
        choose((), ("W2A16-g32",))
    with pytest.raises(SchemeError, match="W4A5"):
        choose((), ("W4A5",))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--tasks", "knitting"), "--tasks is 'knitting'"),
        (("--items", "0"), "--items is 0"),
        (("--model", ","), "--model is empty"),
        (("--model", "nowhere"), "nowhere: no such checkpoint folder"),
        (("--baselines", "nowhere"), "--baselines: nowhere is no folder"),
        (("--records", "."), "--records: . is a folder"),
        (("--html", "."), "--html: . is a folder"),
        (("--like", "gptq/W5A16", "--baselines", "empty"), "no cell is like 'gptq/W5A16'"),
        (("--device", "toaster", "--records", "r.jsonl"), "device 'toaster' cannot be used"),
    ],
)
def test_bad_input_is_2_and_nothing_runs(
    run: Run,
    seen: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    Path("empty").mkdir()
    assert run(*arguments) == 2
    assert told in capsys.readouterr().err
    assert seen == []


def test_baselines_of_the_folder_come_before_the_shipped_ones(seen: list[str]) -> None:
    settings = Settings((MODEL,), QUANTIZERS[:1], TASKS)
    assert settings.baseline_file(MODEL) == Path(f"baselines/{MODEL}.json")
    assert settings.baseline_file("dream-embedded") == shipped_baselines("dream-embedded")
    assert not settings.baseline_file("mine").exists()
