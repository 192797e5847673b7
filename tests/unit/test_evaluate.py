"""One cell through lm-eval's evaluator: pairing, determinism, scoring, errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance

import dllm_qbench as qb
from dllm_qbench import tasks
from dllm_qbench.diffusion.masking import Mask
from dllm_qbench.errors import NonFiniteError, TaskError
from dllm_qbench.evaluation import embedded_benchmark
from dllm_qbench.evaluation import evaluate as module
from dllm_qbench.evaluation.adapter import DiffusionAdapter
from dllm_qbench.evaluation.evaluate import answers, evaluate
from dllm_qbench.evaluation.probe import canvases
from dllm_qbench.models.embedded import items as embedded
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layer_error import MOST_DB
from dllm_qbench.records import Record
from tests.helpers.tiny import tiny_llada
from tests.helpers.worded import worded_llada

FAMILIES = ("general", "math", "code")


@pytest.fixture(scope="module")
def reference() -> DiffusionLM:
    return worded_llada()


@pytest.fixture(scope="module")
def quantized(reference: DiffusionLM) -> DiffusionLM:
    return qb.quantize(reference, "rtn", "W4A4")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_record_pairs_both_models_on_the_first_items(
    family: str, reference: DiffusionLM, quantized: DiffusionLM
) -> None:
    seen: list[tuple[int, int, str]] = []
    record = evaluate(
        quantized, reference, family, 12, seed=3, progress=lambda *step: seen.append(step)
    )
    expected = embedded.test_items(family, 12, seed=3)
    assert record.cell == f"rtn/W4A4/{family}"
    assert record.item_ids == tuple(item.id for item in expected)
    assert record.kinds == tuple(item.kind for item in expected)
    assert record.reference_answers == answers(reference, family, 12, seed=3).texts
    assert record.quantized_answers != record.reference_answers or family != "general"
    assert record.recipe["method"] == "rtn"
    assert record.provenance["checkpoint_sha256"] == reference.fingerprint()
    assert [label for _, _, label in seen[:1] + seen[-1:]] == [
        f"rtn/W4A4/{family}: full precision",
        f"rtn/W4A4/{family}: quantized",
    ]
    assert {total for _, total, _ in seen} == {12}
    assert seen[-1][0] == 12
    assert qb.Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_batch_size_threads_run_or_number_of_items(
    family: str, reference: DiffusionLM, quantized: DiffusionLM, threads: None
) -> None:
    """On the coarsest scheme: its activation grid turns a last-digit difference into a whole step."""
    whole = answers(quantized, family, 16)
    for batch_size in (1, 64):
        assert answers(quantized, family, 16, batch_size=batch_size) == whole
    for count in (1, 2):
        torch.set_num_threads(count)
        found = answers(quantized, family, 16)
        # Sums in another order: log-likelihoods of -20 nats may differ in float32's last digits.
        assert found.scores == pytest.approx(whole.scores, abs=1e-5)
        assert replace(found, scores=whole.scores) == whole
    assert answers(quantized, family, 7).texts == whole.texts[:7]


def test_full_precision_runs_once(
    reference: DiffusionLM, quantized: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_references", {})
    asked: list[str] = []
    real = module.answers

    def counted(lm: DiffusionLM, *rest: Any) -> Any:
        asked.append("reference" if lm is reference else "quantized")
        return real(lm, *rest)

    monkeypatch.setattr(module, "answers", counted)
    for _ in range(2):
        evaluate(quantized, reference, "general", 3)
    evaluate(quantized, reference, "general", 3, seed=1)
    assert asked == ["reference", "quantized", "quantized", "reference", "quantized"]


def test_unquantized_subject_agrees_with_itself(reference: DiffusionLM) -> None:
    record = evaluate(reference.clone(), reference, "general", 8)
    assert record.cell == "none/W16A16/general"
    assert record.quantized_answers == record.reference_answers
    assert set(record.layer_sqnr.values()) == set(record.local_sqnr.values()) == {MOST_DB}
    assert set(record.fidelity["logit_sqnr"]) == {MOST_DB}
    assert record.fidelity["agreement"] == 1.0
    assert set(record.trajectory["first_divergence"]) == {-1}
    assert all(record.trajectory["sequence_match"])


def test_layer_errors_and_fidelity_do_not_depend_on_the_number_of_items(
    reference: DiffusionLM, quantized: DiffusionLM
) -> None:
    few, more = (evaluate(quantized, reference, "math", items) for items in (2, 5))
    assert few.layer_sqnr == more.layer_sqnr
    assert few.local_sqnr == more.local_sqnr
    assert few.fidelity == more.fidelity
    assert next(iter(few.layer_sqnr)) == "model.layers.0.input_layernorm"
    assert next(iter(few.local_sqnr)) == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("family", FAMILIES)
def test_trajectories_are_those_of_the_answers_or_of_64_drafts(
    family: str, reference: DiffusionLM, quantized: DiffusionLM
) -> None:
    record = evaluate(quantized, reference, family, 6)
    size = 64 if family == "general" else 6
    assert record.trajectory["items"] == len(record.trajectory["sequence_match"]) == size
    if family == "code":  # where the answer's text is all that was written
        same = [a == b for a, b in zip(*_texts(record), strict=True)]
        matches = record.trajectory["sequence_match"]
        assert all(text for text, match in zip(same, matches, strict=True) if match)
    scores = record.fidelity["reference_scores"]
    assert len(scores) == (6 if family == "general" else 0)
    assert all(score < 0 for score in scores)


def _texts(record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return record.reference_answers, record.quantized_answers


@pytest.fixture
def chunks_of_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks small enough for several, and full precision's answers not remembered."""
    monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr(module, "_references", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_in_chunks_gives_the_same_record_as_at_once(
    family: str, reference: DiffusionLM, quantized: DiffusionLM, chunks_of_5: None
) -> None:
    whole = evaluate(quantized, reference, family, 13, seed=3)
    seen: list[tuple[int, int]] = []
    right: list[bool] = []

    def look(expected: Sequence[bool], found: Sequence[bool]) -> bool:
        seen.append((len(expected), len(found)))
        right.extend(found)
        return False

    chunked = evaluate(quantized, reference, family, 13, seed=3, stop=look)
    assert seen == [(5, 5), (5, 5), (3, 3)]
    assert tuple(right) == whole.quantized_correct
    assert replace(chunked, seconds=0.0, provenance={}) == replace(
        whole, seconds=0.0, provenance={}
    )


def test_stop_ends_an_evaluation_after_the_chunk_it_saw(
    reference: DiffusionLM, quantized: DiffusionLM, chunks_of_5: None
) -> None:
    calls = iter([False, True])
    record = evaluate(quantized, reference, "general", 500, stop=lambda *_: next(calls))
    whole = evaluate(quantized, reference, "general", 10)
    assert record.item_ids == whole.item_ids
    assert record.quantized_answers == whole.quantized_answers
    assert record.kinds == whole.kinds
    assert list(calls) == []


def test_chunks_of_full_precision_are_remembered(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    chunks_of_5: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    real = module.answers

    def counted(lm: DiffusionLM, *rest: Any) -> Any:
        asked.append("reference" if lm is reference else "quantized")
        return real(lm, *rest)

    monkeypatch.setattr(module, "answers", counted)
    for ends in (2, 3):
        evaluate(quantized, reference, "general", 5 * ends, stop=lambda *_: False)
    assert (asked.count("reference"), asked.count("quantized")) == (3, 5)


class Oracle(DiffusionAdapter):
    """Gives the answer that ``say`` makes of an item."""

    say: Any = staticmethod(lambda item: item.answer)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        items = {item.id: item for item in embedded.test_items("general")}
        return [(float(r.args[1].strip() == self.say(items[r.doc["id"]])), False) for r in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        family = str(requests[0].task_name).rpartition("_")[2]
        items = {item.id: item for item in embedded.test_items(family)}
        return [self.say(items[r.doc["id"]]) for r in requests]


def share_right(
    monkeypatch: pytest.MonkeyPatch, lm: DiffusionLM, family: str, say: Any, items: int = 200
) -> float:
    monkeypatch.setattr(
        embedded_benchmark, "DiffusionAdapter", type("Said", (Oracle,), {"say": staticmethod(say)})
    )
    found = answers(lm, family, items)
    return sum(found.correct) / items


def _another_choice(item: embedded.Item) -> str:
    return item.choices[(item.gold + 1) % len(item.choices)]


@pytest.mark.parametrize(
    ("family", "say", "expected"),
    [
        ("general", lambda item: item.answer, 1.0),
        ("general", _another_choice, 0.0),
        ("general", lambda item: "none of the choices, so that all tie", 0.0),
        ("math", lambda item: item.answer, 1.0),
        ("math", lambda item: "#" + item.answer.rpartition("#")[2], 1.0),
        ("math", lambda item: item.answer.rpartition("#")[2], 0.0),
        ("math", lambda item: item.answer + " <mask>", 0.0),
        ("math", lambda item: "# 1 " + item.answer, 1.0),
        ("code", lambda item: item.answer, 1.0),
        ("code", lambda item: f"( {item.answer} + 0 )", 1.0),
        ("code", lambda item: f"{item.answer} + 1", 0.0),
        ("code", lambda item: f"{item.answer} )", 0.0),
        ("code", lambda item: "x + 99999", 0.0),
    ],
)
def test_right_answers_score_one_and_wrong_ones_zero(
    monkeypatch: pytest.MonkeyPatch, reference: DiffusionLM, family: str, say: Any, expected: float
) -> None:
    assert share_right(monkeypatch, reference, family, say) == expected


def test_a_model_that_prefers_nothing_gets_nothing(reference: DiffusionLM) -> None:
    flat = reference.clone()
    flat.model.get_parameter("lm_head.weight").zero_()
    found = answers(flat, "general", 20)
    assert not any(found.correct)
    assert found.texts[0] == " | ".join(embedded.test_items("general", 1)[0].choices)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_nan_weight_is_an_error_and_never_a_score(family: str, reference: DiffusionLM) -> None:
    broken = reference.clone()
    broken.model.get_parameter("model.layers.0.self_attn.v_proj.weight")[3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=rf"task qbench_embedded_{family}, item "):
        evaluate(broken, reference, family, 4)


def test_errors_name_the_task(reference: DiffusionLM, quantized: DiffusionLM) -> None:
    with pytest.raises(TaskError, match=r"task 'maths' is unknown; tasks: general, math, code"):
        evaluate(quantized, reference, "maths")
    with pytest.raises(TaskError, match=r"task 'math': items must lie in 1\.\.2000, found 2001"):
        evaluate(quantized, reference, "math", 2001)
    for items in (0, -1):
        with pytest.raises(TaskError, match=rf"items must lie in 1\.\.2000, found {items}"):
            evaluate(quantized, reference, "math", items)
    with pytest.raises(TaskError, match="tiny has no tokenizer"):
        evaluate(tiny_llada(), reference, "math", 4)


def test_too_many_items_are_refused_before_the_first_chunk(
    reference: DiffusionLM, quantized: DiffusionLM, chunks_of_5: None
) -> None:
    looks: list[object] = []
    with pytest.raises(TaskError, match=r"items must lie in 1\.\.2000, found 2001"):
        evaluate(quantized, reference, "math", 2001, stop=lambda *_: bool(looks.append(0)))
    assert looks == []


@pytest.mark.parametrize("family", ["math", "code"])
def test_yaml_runs_the_sampler_as_the_items_say(family: str) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    text = (tasks.FOLDER / "embedded" / f"{family}.yaml").read_text(encoding="utf-8")
    config = yaml.load(text, Loader)
    given = config["generation_kwargs"]
    assert (given["gen_length"], given["steps"], given["block_length"]) == embedded.GENERATION[
        family
    ]


def test_nothing_is_written_and_nothing_printed(
    reference: DiffusionLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")} if cache.exists() else {}
    answers(reference, "general", 3)
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*")} if cache.exists() else {}
    assert before == after
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_probe_shows_masked_answers(reference: DiffusionLM) -> None:
    given = canvases(reference, "math")
    ids, real = given.ids, given.attention_mask
    prompt = embedded.test_items("math", 1)[0].prompt.split()
    assert ids.shape == real.shape == (64, 1 + len(prompt) + 18)  # <bos>, prompt, answer
    hidden = (ids == reference.mask_id).sum(1)
    assert int(hidden.min()) >= 1
    assert int(hidden.max()) <= 18
    assert len(set(hidden.tolist())) > 5
    again: tuple[Mask, ...] = tuple(map(tuple, canvases(reference, "math").ids.tolist()))
    assert again == tuple(map(tuple, ids.tolist()))
