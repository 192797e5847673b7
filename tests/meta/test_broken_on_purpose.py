"""One thing broken at a time: the run has to fail and to say where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm_qbench as qb
from dllm_qbench import terminal
from dllm_qbench.engine.cells import CellRunner
from dllm_qbench.models.loading import EMBEDDED
from dllm_qbench.quant.methods import gptq

ROOT = Path(__file__).parents[2]
BASELINES = ROOT / "baselines" / "llada-embedded.json"
CELL = "gptq/W3A16-g64/general"

# A user's test of one cell, run by a pytest of its own with the plugin's options.
ONE_CELL = """
    def test_cell(gptq, qbench_cell):
        qbench_cell(gptq("SCHEME"), "general")
"""


Outcome = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def _imported(embedded_lm: qb.DiffusionLM) -> None:
    """Import all that a cell needs: a run inside this process forgets modules that it was first to use."""
    calibration = qb.calibration(embedded_lm, sequences=8)
    quantized = qb.quantize(embedded_lm, "gptq", "W3A16-g64", calibration=calibration)
    qb.judge(qb.evaluate(quantized, reference=embedded_lm, task="general", items=8), BASELINES)
    CellRunner("llada-embedded", 8)
    terminal.header((), 1, "")


@pytest.fixture
def run_cell(_imported: None, pytester: pytest.Pytester) -> Outcome:
    def run(
        *options: str, scheme: str = "W3A16-g64", baselines: Path = BASELINES
    ) -> pytest.RunResult:
        pytester.makepyfile(ONE_CELL.replace("SCHEME", scheme))
        folder = pytester.mkdir("stored")
        shutil.copy(baselines, folder / "llada-embedded.json")
        given = (
            f"--qbench-baselines={folder}",
            "--qbench-items=24",
            "--qbench-model=llada-embedded",
        )
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *given, *options)

    return run


def embedded_copy(folder: Path) -> Path:
    copy = folder / "llada-embedded"
    shutil.copytree(EMBEDDED["llada-embedded"], copy)
    return copy


def test_unbroken_cell_passes(run_cell: Outcome) -> None:
    """The control: without it the tests below could pass for another reason."""
    run_cell().assert_outcomes(passed=1)


@pytest.mark.parametrize("field", ["band", "reference_bits", "recipe", "provenance"])
def test_baseline_with_a_field_missing(run_cell: Outcome, tmp_path: Path, field: str) -> None:
    data = json.loads(BASELINES.read_text())
    del data["cells"][CELL][field]
    broken = tmp_path / "llada-embedded.json"
    broken.write_text(json.dumps(data))
    result = run_cell(baselines=broken)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*BaselineError: *llada-embedded.json*"])
    assert f"field cells['{CELL}'].{field} is missing" in result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_truncated_safetensors(run_cell: Outcome, tmp_path: Path) -> None:
    copy = embedded_copy(tmp_path)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    result = run_cell(f"--qbench-model={copy}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*CheckpointError: *model.safetensors: not a readable safetensors file*"]
    )


def test_scheme_with_five_bit_activations(run_cell: Outcome) -> None:
    result = run_cell(scheme="W4A5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*SchemeError: *scheme 'W4A5': activations must be 4, 8 or 16 bits*"]
    )


def test_nan_weight(run_cell: Outcome, tmp_path: Path) -> None:
    copy = embedded_copy(tmp_path)
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.transformer.blocks.2.v_proj.weight"][3, 5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    result = run_cell(f"--qbench-model={copy}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*NonFiniteError: *model.layers.2.self_attn.v_proj.weight holds 1 non-finite*"]
    )


def without_feedback(hessian: torch.Tensor, *_: Any) -> torch.Tensor:
    """Stands in for the factor of H^-1: a diagonal one hands no error on to later columns."""
    return torch.eye(len(hessian), dtype=torch.float64)


def test_gptq_without_error_feedback(run_cell: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "inverse_factor", without_feedback)
    result = run_cell()
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert f"{CELL} on llada-embedded: degraded" in text
    assert "first  model.layers.0.self_attn.q_proj" in text
    assert "(baseline " in text


@pytest.mark.parametrize("layer", [0, 2])
def test_gptq_without_error_feedback_in_one_linear_names_it(
    monkeypatch: pytest.MonkeyPatch, embedded_lm: qb.DiffusionLM, layer: int
) -> None:
    """Only down_proj has 512 inputs; breaking one block's leaves the modules before it alone."""
    sound: Any = gptq.inverse_factor
    calls = iter(range(99))

    def sometimes(hessian: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(hessian) == 512 and next(calls) == layer:
            return without_feedback(hessian)
        found: torch.Tensor = sound(hessian, *rest)
        return found

    monkeypatch.setattr(gptq, "inverse_factor", sometimes)
    broken = qb.quantize(
        embedded_lm, "gptq", "W3A16-g64", calibration=qb.calibration(embedded_lm, seed=0)
    )
    record = qb.evaluate(broken, reference=embedded_lm, task="general", items=24)
    verdict = qb.judge(record, BASELINES)
    assert verdict.status == "degraded"
    assert verdict.layers is not None
    assert verdict.layers.first is not None
    assert verdict.layers.first.module == f"model.layers.{layer}.mlp.down_proj"
    assert f"model.layers.{layer}.mlp.down_proj" in verdict.message
