"""``--qbench-execution=packed``: the quick matrix on kernels, held to the baselines of fake quantization."""

from __future__ import annotations

import json

import pytest

from dllm_qbench.engine.cells import CellRunner
from dllm_qbench.pytest_options import EXECUTIONS
from dllm_qbench.quant.packed import checked_execution, execution_of
from tests.helpers.suite import Suite


def executions(suite: Suite, *arguments: str) -> set[str]:
    """How the runners of a run of three cells were made, by the records that it writes."""
    suite.run("--qbench-records=seen.jsonl", *arguments).assert_outcomes(passed=3)
    lines = (suite.pytester.path / "seen.jsonl").read_text().splitlines()
    return {json.loads(line)["record"]["provenance"].get("execution", "fake") for line in lines}


def test_option_and_its_twin_reach_the_cells(recorded: Suite) -> None:
    assert executions(recorded) == {"fake"}
    assert executions(recorded, "--qbench-execution=packed") == {"packed"}
    recorded.pytester.makeini("[pytest]\nqbench_model = llada-embedded\nqbench_execution = packed")
    assert executions(recorded) == {"packed"}
    assert executions(recorded, "--qbench-execution=fake") == {"fake"}


def test_header_says_that_weights_are_packed(suite: Suite) -> None:
    suite.run("--qbench-execution=packed", "--collect-only").stdout.fnmatch_lines(
        ["qbench: model *, weights packed"]
    )
    plain = suite.run("--collect-only").stdout
    plain.fnmatch_lines(["qbench: model *"])
    plain.no_fnmatch_line("*weights packed*")


def test_unknown_execution_is_a_usage_error(suite: Suite) -> None:
    result = suite.run("--qbench-execution=int4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-execution is 'int4', expected one of fake, packed*"])


@pytest.mark.parametrize("update", ["--qbench-update", "--qbench-update-pass"])
def test_packed_runs_write_no_baselines(recorded: Suite, update: str) -> None:
    before = recorded.stored()
    result = recorded.run("--qbench-execution=packed", update)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qbench-execution=packed is held to the baselines*"])
    assert recorded.stored() == before


def test_options_know_the_executions_that_there_are() -> None:
    assert [checked_execution(name) for name in EXECUTIONS] == ["fake", "packed"]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_runner_makes_models_that_run_so(execution: str) -> None:
    runner = CellRunner("llada-embedded", 4, execution=execution)
    made = runner.quantized("rtn", "W4A16-g128")
    assert execution_of(made) == execution
    record = runner.measure(made, "math")
    assert record.audit_findings == ()
    assert record.provenance.get("execution", "fake") == execution
