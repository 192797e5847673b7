"""The lm-eval adapter: text to ids and back, seeds per document, errors that name task and item."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from dllm_qbench.diffusion.likelihood import log_likelihoods
from dllm_qbench.errors import NonFiniteError, TaskError
from dllm_qbench.evaluation.adapter import DiffusionAdapter
from dllm_qbench.seeding import derive
from tests.helpers.tiny import tiny_llada
from tests.helpers.worded import worded_llada

SAMPLER = {"gen_length": 6, "steps": 3, "block_length": 6, "until": []}


def score(context: str, continuation: str, doc: dict[str, Any], doc_id: int = 0) -> Instance:
    return Instance("loglikelihood", doc, (context, continuation), 0, ("a-task", doc_id, 1))


def write(context: str, doc: dict[str, Any], **settings: Any) -> Instance:
    return Instance("generate_until", doc, (context, SAMPLER | settings), 0, ("a-task", 0, 1))


def test_likelihood_is_that_of_the_continuation_after_bos_and_context() -> None:
    lm = worded_llada()
    assert lm.tokenizer is not None
    ids = lm.tokenizer.convert_tokens_to_ids
    context = [ids("<bos>"), ids("tom"), ids("has")]
    request = (context, [ids("3"), ids("apples")], derive(7, "masks", "a-task", "i1"))
    expected = log_likelihoods(lm, [request], 5)
    adapter = DiffusionAdapter(lm, samples=5, seed=7)
    for context_text, continuation in (("tom has", " 3 apples"), ("tom has ", "3 apples")):
        found = adapter.loglikelihood([score(context_text, continuation, {"id": "i1"})])
        assert found == [(expected[0], False)]


def test_answers_do_not_depend_on_other_documents_or_on_batch_size() -> None:
    lm = worded_llada()
    scores = [score("tom has", f" {i} {j} .", {"id": f"i{i}"}) for i in range(6) for j in (3, 4)]
    texts = [write(f"tom has {i} ?", {"id": f"i{i}"}, temperature=0.9) for i in range(8)]
    whole = DiffusionAdapter(lm, samples=2)
    expected_scores, expected_texts = whole.loglikelihood(scores), whole.generate_until(texts)
    for batch_size in (1, 5, 64):
        adapter = DiffusionAdapter(lm, samples=2, batch_size=batch_size)
        assert adapter.loglikelihood(scores) == expected_scores
        assert adapter.generate_until(texts) == expected_texts
    assert whole.loglikelihood(scores[5:7]) == expected_scores[5:7]
    assert whole.generate_until(texts[::-1])[::-1] == expected_texts


def test_a_document_without_an_id_is_seeded_by_its_place() -> None:
    adapter = DiffusionAdapter(worded_llada(), samples=1)
    a, b = (
        adapter.loglikelihood([score("tom has", " 3 4 5 6", {}, doc_id)])[0] for doc_id in (0, 4)
    )
    assert a != b


def test_answer_ends_before_eos_and_at_the_stop_string() -> None:
    lm = worded_llada()
    assert lm.tokenizer is not None
    adapter = DiffusionAdapter(lm)
    ids = lm.tokenizer("7 + 5 = 12 # 12", add_special_tokens=False)["input_ids"]
    assert adapter._text([*ids, lm.eos_id, ids[0]], []) == "7 + 5 = 12 # 12"
    assert adapter._text(ids, ["#"]) == "7 + 5 = 12 "


def test_requests_with_different_settings_come_back_in_order() -> None:
    lm = worded_llada()
    requests = [
        write("tom has", {"id": str(i)}, gen_length=6 * (1 + i % 2), steps=6) for i in range(4)
    ]
    seen: list[tuple[int, int]] = []
    adapter = DiffusionAdapter(lm, progress=lambda done, total: seen.append((done, total)))
    together = adapter.generate_until(requests)
    assert together == [adapter.generate_until([request])[0] for request in requests]
    assert seen[:2] == [(2, 4), (4, 4)]


def test_nan_weight_names_task_and_item() -> None:
    lm = worded_llada()
    lm.model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = torch.nan
    adapter = DiffusionAdapter(lm)
    with pytest.raises(NonFiniteError, match=r"task a-task, item i7: log p .* is nan"):
        adapter.loglikelihood([score("tom has", " 3", {"id": "i7"})])
    with pytest.raises(NonFiniteError, match=r"task a-task, item i8: the logits hold a NaN"):
        adapter.generate_until([write("tom has", {"id": "i8"})])


def test_what_is_not_available_says_so() -> None:
    adapter = DiffusionAdapter(worded_llada())
    rolling = Instance("loglikelihood_rolling", {}, ("tom has",), 0, ("a-task", 0, 1))
    with pytest.raises(TaskError, match=r"task a-task: rolling log-likelihood .* is not available"):
        adapter.loglikelihood_rolling([rolling])
    lacking = Instance("generate_until", {"id": "1"}, ("tom", {"until": []}), 0, ("a-task", 0, 1))
    with pytest.raises(TaskError, match=r"task a-task: generation_kwargs lacks gen_length, steps"):
        adapter.generate_until([lacking])
    with pytest.raises(TaskError, match="tiny has no tokenizer"):
        DiffusionAdapter(tiny_llada())
