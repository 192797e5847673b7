"""Jobs: cells as strings, in groups that share a quantized model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.engine.jobs import Job, Setup, grouped
from dllm_qbench.errors import QBenchError

JOB = Job("llada-8b-base", "gptq", "W4A16-g128", "gsm8k", Setup(device="cuda", items=5))
jobs = st.builds(
    Job,
    st.sampled_from(["one", "two"]),
    st.sampled_from(["rtn", "gptq"]),
    st.sampled_from(["W8A8", "W4A4"]),
    st.sampled_from(["math", "code", "general"]),
)


def test_job_survives_json() -> None:
    assert Job.from_dict(json.loads(json.dumps(JOB.to_dict()))) == JOB
    assert JOB.cell == "gptq/W4A16-g128/gsm8k"


def test_errors_name_the_field() -> None:
    whole = JOB.to_dict()
    with pytest.raises(QBenchError, match="job: unknown field 'colour'"):
        Job.from_dict({**whole, "colour": 1})
    with pytest.raises(QBenchError, match="setup: unknown field 'colour'"):
        Job.from_dict({**whole, "setup": {"colour": 1}})
    with pytest.raises(QBenchError, match="job: field 'scheme' is missing"):
        Job.from_dict({name: value for name, value in whole.items() if name != "scheme"})
    with pytest.raises(QBenchError, match="setup: dtype is 'fp8', expected one of float32, "):
        Setup(dtype="fp8")
    with pytest.raises(
        QBenchError, match="setup: profile is 'long', expected one of paper, release, brief"
    ):
        Setup(profile="long")  # type: ignore[arg-type]
    for items in (0, True, 2.5):
        with pytest.raises(QBenchError, match=f"setup: items is {items}, expected a count"):
            Setup(items=items)  # type: ignore[arg-type]


@given(st.lists(jobs, max_size=30))
def test_groups_hold_every_job_once_by_quantized_model_with_models_together(
    given_jobs: list[Job],
) -> None:
    groups = grouped(given_jobs)
    flat = [job for group in groups for job in group]
    assert sorted(flat, key=repr) == sorted(given_jobs, key=repr)
    subjects = [{job.subject for job in group} for group in groups]
    assert all(len(subject) == 1 for subject in subjects)
    assert len(set().union(*subjects)) == len(groups)
    models = [group[0].model for group in groups]
    assert len({*models}) == sum(a != b for a, b in zip(models, [None, *models], strict=False))
    for group in groups:  # in the order of first appearance
        members = [job for job in given_jobs if job.subject == group[0].subject]
        assert group == members


def test_jobs_bring_no_torch() -> None:
    code = "import sys, dllm_qbench.engine.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
