"""Other libraries' quantizers against the baselines that they were given.

pytest -m others --qbench-baselines=baselines/others                    those installed, on the embedded LLaDA
pytest -m others --qbench-baselines=baselines/others -k torchao         one library
pytest -m others --qbench-baselines=baselines/others --qbench-update    measure, write, fail for review

Each library has an environment of its own (``tox -e others-torchao`` ...); where one is not installed its
cells are skipped, and say so. Without that folder of baselines all are: they are no part of a default run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dllm_qbench.baselines import baseline_path
from dllm_qbench.interop.catalogue import missing, subjects
from dllm_qbench.pytest_plugin import Cell, SubjectQuantizer

if TYPE_CHECKING:
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.pytest_session import Run
    from dllm_qbench.quant.calibration import Calibration

TASKS = ("general", "math", "code")
CELLS = [
    pytest.param(
        name,
        scheme,
        task,
        id=f"{subject.method}-{scheme}-{task}",
        marks=[pytest.mark.skipif(reason is not None, reason=str(reason))],
    )
    for name, subject in subjects().items()
    for reason in [missing(name)]
    for scheme in subject.schemes
    for task in TASKS
]


# Ours as theirs are, where the regression matrix has no such cell: on their grid, and GPTQ as published,
# where ours departs from it (massive tokens, the order of columns).
TWINS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("rtn", "W8A16-sym", {}),
    ("rtn", "W4A16-g64-sym", {}),
    ("gptq", "W4A16-g64", {"token_cap": None, "act_order": True}),
)


pytestmark = pytest.mark.others


@pytest.fixture(autouse=True)
def their_baselines(qbench_run: Run, qbench_model: str) -> None:
    """Skip where the run has other baselines than theirs, or none of the model."""
    settings = qbench_run.settings
    path = baseline_path(settings.baselines, qbench_model)
    if settings.baselines.name != "others":
        pytest.skip("their baselines are apart: --qbench-baselines=baselines/others")
    if not (settings.update or path.exists()):
        pytest.skip(f"{path} is not there: they were measured on the embedded LLaDA")


@pytest.mark.parametrize(("name", "scheme", "task"), CELLS)
def test_library_is_as_its_baseline_says(
    name: str, scheme: str, task: str, qbench_subject: SubjectQuantizer, qbench_cell: Cell
) -> None:
    qbench_cell(qbench_subject(name, scheme), task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("method", "scheme", "parameters"), TWINS)
def test_ours_beside_them_is_as_its_baseline_says(
    method: str,
    scheme: str,
    parameters: dict[str, Any],
    task: str,
    qbench_cell: Cell,
    request: pytest.FixtureRequest,
) -> None:
    quantize = request.getfixturevalue(method)
    qbench_cell(quantize(scheme, **parameters), task)


def test_llm_int8_answers_by_what_else_is_in_the_batch(
    qbench_subject: SubjectQuantizer, qbench_lm: DiffusionLM, qbench_calibration: Calibration
) -> None:
    """Outlier channels are those of the whole batch; full precision gives the same bits either way."""
    name = "dllm_qbench.interop.bitsandbytes:llm_int8"
    if (reason := missing(name)) is not None:
        pytest.skip(reason)
    ids, real = qbench_calibration.ids[:8], qbench_calibration.attention_mask[:8]
    quantized = qbench_subject(name, "W8A8")
    moved = {}
    for lm in (qbench_lm, quantized):
        alone, among = lm.logits(ids[:1], real[:1]), lm.logits(ids, real)[:1]
        mask = real[:1].bool()
        moved[lm] = float((alone - among)[mask].norm() / alone[mask].norm())
    assert moved[qbench_lm] < 1e-5
    assert moved[quantized] > 1e-3
