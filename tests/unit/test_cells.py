"""The runner of cells: audits come first, once a model, and travel with the record."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.engine import cells
from dllm_qbench.engine.cells import CellRunner
from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.quant.audits import AUDITS, EXPENSIVE

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def runner() -> CellRunner:
    return CellRunner("llada-embedded", 4)


def test_every_audit_runs_before_a_cell_and_is_named_in_its_record(runner: CellRunner) -> None:
    record = runner.measure(runner.quantized("rtn", "W4A16-g64"), "math")
    assert record.audits == tuple(AUDITS)
    assert record.audit_findings == ()


def test_a_model_is_audited_once_for_all_its_cells(
    runner: CellRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited = []
    monkeypatch.setattr(cells, "audit", lambda *args, **_: audited.append(args) or [])
    made = runner.quantized("rtn", "W8A8")
    for task in ("math", "code"):
        runner.measure(made, task)
    assert len(audited) == 1


def test_a_fault_is_in_the_record_beside_the_accuracy(runner: CellRunner) -> None:
    broken = qb.quantize(runner.lm, "rtn", "W4A16-g64")
    with torch.no_grad():
        broken.model.get_parameter(f"{Q0}.weight")[0] += 0.01
    record = runner.measure(broken, "math")
    assert record.items == 4
    assert any(finding.startswith(f"grid: {Q0}: ") for finding in record.audit_findings)


def test_an_error_says_what_the_audits_had_found(runner: CellRunner) -> None:
    broken = qb.quantize(runner.lm, "rtn", "W4A16-g64")
    with torch.no_grad():
        broken.model.get_parameter(f"{Q0}.weight")[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"audits before it found .*finite: {Q0}: weight"):
        runner.measure(broken, "math")


def test_runner_says_before_a_cell_what_its_record_will_say(runner: CellRunner) -> None:
    before = runner.provenance
    record = runner.measure(runner.quantized("rtn", "W8A8"), "math")
    assert {**record.provenance, "date": ""} == {**before, "date": ""}


def test_stop_ends_a_cell_early(runner: CellRunner) -> None:
    many = CellRunner("llada-embedded", 60)
    many.__dict__["lm"] = runner.lm
    record = many.measure(many.quantized("rtn", "W8A8"), "general", stop=lambda *_: True)
    assert record.items == 50


def test_symptom_names_the_kind_of_error_and_says_why(runner: CellRunner) -> None:
    broken = qb.quantize(runner.lm, "rtn", "W4A16-g64")
    with torch.no_grad():
        broken.model.get_parameter(f"{Q0}.weight").mul_(2)
    kind, _, text = runner.symptom(broken, "math", Q0).partition(": ")
    assert kind == "scale"
    assert text


def test_device_is_where_the_model_goes() -> None:
    assert CellRunner("llada-embedded", 4, "cpu").lm.device == torch.device("cpu")
    with pytest.raises(QBenchError, match="device 'warp' cannot be used"):
        _ = CellRunner("llada-embedded", 4, "warp").lm


def test_a_method_of_the_users_own_is_not_run_again(runner: CellRunner) -> None:
    made = qb.quantize(runner.lm, "rtn", "W4A16-g64")
    mine = replace(made, recipe={**(made.recipe or {}), "method": "mine"})
    report = runner.audited(mine)
    assert report.findings == ()
    assert set(AUDITS) - set(report.audits) == set(EXPENSIVE)
