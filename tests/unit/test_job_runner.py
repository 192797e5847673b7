"""Jobs run in this process: with and without a store, again, and where something is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_qbench.engine import job_runner
from dllm_qbench.engine.job_runner import JobRunner
from dllm_qbench.engine.jobs import Job, Setup, execute, execute_dicts
from dllm_qbench.engine.store import Store
from dllm_qbench.errors import QBenchError
from dllm_qbench.records import Record

SETUP = Setup(items=6, audits="cheap")
JOBS = [
    Job("llada-embedded", method, scheme, task, SETUP)
    for method, scheme in (("rtn", "W4A16-g64"), ("smoothquant", "W4A4"))
    for task in ("general", "math")
]


def steady(record: Record) -> Record:
    """A record without what differs from run to run."""
    return replace(record, seconds=0.0, provenance={**record.provenance, "date": ""})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def stored(store: Store) -> dict[Job, Record]:
    """What the jobs give through a store, where quantized models go to disk and back."""
    return records(execute(JOBS, store))


def records(results: Any) -> dict[Job, Record]:
    found = {}
    for job, result in results:
        assert isinstance(result, Record), result
        found[job] = result
    return found


def test_a_store_changes_no_record(stored: dict[Job, Record]) -> None:
    """Packed, written and read again, a quantized model answers as it did before."""
    direct = records(execute(JOBS))
    assert [*direct] == [*stored] == JOBS
    for job, record in direct.items():
        assert steady(record) == steady(stored[job])
        assert record.items == 6


def test_what_is_stored_is_neither_measured_nor_quantized_again(
    stored: dict[Job, Record], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("done before")

    for name in ("quantize", "load_quantized", "save_quantized"):
        monkeypatch.setattr(job_runner, name, forbidden)
    assert records(execute(JOBS, store)) == stored


def test_another_task_reads_the_quantized_model_that_is_there(
    stored: dict[Job, Record], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "quantize", None)
    job = replace(JOBS[0], task="code")
    assert records(execute([job], store))[job].cell == "rtn/W4A16-g64/code"


def test_full_precision_is_answered_once_for_all_quantized_models(
    stored: dict[Job, Record], store: Store
) -> None:
    keys = [key for key, _ in store.entries("answers")]
    full = [key for key in keys if key["weights_sha256"] == fingerprint(stored)]
    assert len(full) == len({key["task"] for key in keys})


def fingerprint(stored: dict[Job, Record]) -> str:
    return str(stored[JOBS[0]].provenance["checkpoint_sha256"])


def test_more_items_take_what_there_is_and_add_the_rest(store: Store, tmp_path: Path) -> None:
    """Items come by fifty: the first fifty of sixty are those of a run of fifty."""
    runs = [replace(JOBS[1], setup=replace(SETUP, items=items)) for items in (50, 60)]
    fifty, sixty = (records(execute([job], store))[job] for job in runs)
    assert sixty.first(50).quantized_answers == fifty.quantized_answers
    spans = sorted(
        (key["start"], key["end"]) for key, _ in store.entries("answers") if key["task"] == "math"
    )
    assert (50, 60) in spans
    assert spans.count((0, 50)) == 2  # full precision's and the quantized model's, once each


def test_an_error_is_told_of_its_job_alone(store: Store, tmp_path: Path) -> None:
    odd = [
        Job("llada-embedded", "quip", "W4A4", "math", SETUP),
        Job("llada-embedded", "rtn", "W4A5", "math", SETUP),
        Job("llada-embedded", "rtn", "W4A4", "poetry", SETUP),
        Job(str(tmp_path / "nowhere"), "rtn", "W4A4", "math", SETUP),
        Job("llada-8b-base", "rtn", "W4A4", "gsm8k", replace(SETUP, models_dir=str(tmp_path))),
    ]
    found = dict(execute([*odd, JOBS[0]], store))
    said = [str(found[job]) for job in odd]
    assert all(isinstance(found[job], QBenchError) for job in odd)
    assert "method 'quip' is unknown; methods: rtn, gptq," in said[0]
    assert "scheme 'W4A5'" in said[1]
    assert "'poetry'" in said[2]
    assert "nowhere: no such checkpoint folder" in said[3]
    assert "hf download GSAI-ML/LLaDA-8B-Base --revision" in said[4]
    assert isinstance(found[JOBS[0]], Record)


def test_too_little_memory_says_where_and_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB")

    monkeypatch.setattr(JobRunner, "quantized", short)
    ((_, error),) = execute([JOBS[0]])
    assert isinstance(error, QBenchError)
    assert "rtn/W4A16-g64/general: out of memory on cpu: Tried to allocate 3.00 GiB; what" in str(
        error
    )


def test_jobs_as_json_answer_with_json(stored: dict[Job, Record], store: Store) -> None:
    odd = replace(JOBS[0], task="poetry")
    sent = [job.to_dict() for job in (odd, *JOBS)]
    found = dict(execute_dicts(sent, str(store.folder)))
    assert found[0]["kind"] == "TaskError"
    assert [found[n]["record"] for n in range(1, 5)] == [stored[job].to_dict() for job in JOBS]
