"""Fidelity metrics against formulas written out with scipy, on canvases of tiny models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

import dllm_qbench as qb
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation import fidelity
from dllm_qbench.evaluation.fidelity import BINS, measure
from dllm_qbench.evaluation.probe import Canvases, canvases
from dllm_qbench.models.embedded import items as embedded
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.tiny import tiny_dream, tiny_llada
from tests.helpers.worded import worded_llada

BY_CANVAS = ("logit_sqnr", "nll_difference", "log10_kl")
MODELS = {"llada": tiny_llada, "dream": tiny_dream}


def made(lm: DiffusionLM, hidden: list[list[int]], padded: int = 0, length: int = 12) -> Canvases:
    """Canvases with these positions masked; the last one ends in so much padding."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(4, 60, (len(hidden), length), generator=generator)
    mask = torch.ones_like(truth)
    if padded:
        truth[-1, -padded:] = lm.pad_id
        mask[-1, -padded:] = 0
    ids = truth.clone()
    for row, positions in enumerate(hidden):
        ids[row, positions] = lm.mask_id
    ratio = torch.tensor([len(positions) / length for positions in hidden])
    return Canvases(ids, mask, truth, ratio)


HIDDEN = [[3], [1, 4, 5, 8], [2, 3, 4, 5, 6, 7, 9, 10], [1, 2]]


@pytest.fixture(params=list(MODELS))
def lm(request: pytest.FixtureRequest) -> DiffusionLM:
    return MODELS[request.param]()


def test_identical_models_are_as_near_as_can_be(lm: DiffusionLM) -> None:
    found = measure(lm, lm.clone(), made(lm, HIDDEN, padded=3))
    assert found.metrics["logit_sqnr"] == [100.0] * 4
    assert found.metrics["nll_difference"] == [0.0] * 4
    assert found.metrics["log10_kl"] == [-9.0] * 4  # log10 of 0 + 1e-9
    assert found.metrics["agreement"] == 1.0
    assert {row["q75"] for row in found.metrics["kl"].values()} == {0.0}
    assert set(found.layer_sqnr.values()) == set(found.local_sqnr.values()) == {100.0}


def test_metrics_do_not_depend_on_how_many_tokens_are_held(
    lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = qb.quantize(lm, "rtn", "W4A4")
    given = made(lm, HIDDEN, padded=3)
    whole = measure(lm, quantized, given)
    monkeypatch.setattr(fidelity, "_VALUES_AT_ONCE", 1)
    assert measure(lm, quantized, given) == whole


def test_every_metric_follows_its_formula(lm: DiffusionLM) -> None:
    quantized = qb.quantize(lm, "rtn", "W3A16")
    given = made(lm, HIDDEN, padded=3)
    found = measure(lm, quantized, given).metrics
    full, low = (
        model.logits(given.ids, given.attention_mask).double().numpy() for model in (lm, quantized)
    )
    kl: list[list[float]] = []
    same: list[bool] = []
    for row, positions in enumerate(HIDDEN):
        y, q = full[row, positions], low[row, positions]
        p_log, q_log = log_softmax(y, axis=-1), log_softmax(q, axis=-1)
        sqnr = 10 * np.log10((y**2).sum(-1) / ((y - q) ** 2).sum(-1))
        kl.append(rel_entr(np.exp(p_log), np.exp(q_log)).sum(-1).tolist())
        true = given.truth[row, positions].numpy()
        nll = [p_log[n, token] - q_log[n, token] for n, token in enumerate(true)]
        same += (y.argmax(-1) == q.argmax(-1)).tolist()
        assert found["logit_sqnr"][row] == pytest.approx(sqnr.mean(), abs=1e-5)
        assert found["nll_difference"][row] == pytest.approx(np.mean(nll), abs=2e-6)
        assert found["log10_kl"][row] == pytest.approx(
            np.log10(np.array(kl[-1]) + 1e-9).mean(), abs=2e-6
        )
    assert found["agreement"] == pytest.approx(np.mean(same))
    assert 0.0 < found["agreement"] < 1.0  # else the line above says little
    assert (found["canvases"], found["masked_tokens"]) == (4, 15)
    # Mask ratios 1/12 and 2/12 are low, 4/12 is the low bin's upper end, 8/12 the middle one's.
    bins = {"low": kl[0] + kl[1] + kl[3], "middle": kl[2]}
    assert set(found["kl"]) == set(bins)
    for name, values in bins.items():
        row = found["kl"][name]
        assert row["tokens"] == len(values)
        seen = [row["q25"], row["q50"], row["q75"]]
        assert seen == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]), rel=1e-6, abs=1e-9)


def test_sign_of_the_nll_difference_says_who_is_worse(lm: DiffusionLM) -> None:
    """A model without an opinion pays log V for a token; one that is sure of it pays nothing."""
    flat, given = lm.clone(), made(lm, HIDDEN)
    flat.model.get_parameter("lm_head.weight").zero_()
    sure = replace(given, truth=lm.logits(given.ids, given.attention_mask).argmax(-1))
    assert min(measure(lm, flat, sure).metrics["nll_difference"]) > 0
    assert max(measure(flat, lm, sure).metrics["nll_difference"]) < 0


def test_neither_padding_nor_unmasked_tokens_count(lm: DiffusionLM) -> None:
    quantized = qb.quantize(lm, "rtn", "W3A16")
    given = made(lm, HIDDEN, padded=3)
    expected = measure(lm, quantized, given)
    other = replace(given, ids=given.ids.clone(), truth=given.truth.clone())
    other.ids[-1, -3:] = lm.mask_id  # masked, but padding
    unmasked = given.ids != lm.mask_id
    other.truth[unmasked] = 7
    assert measure(lm, quantized, other) == expected
    shown = replace(given, truth=given.truth.clone())
    shown.truth[0, HIDDEN[0]] += 1
    changed = measure(lm, quantized, shown).metrics["nll_difference"]
    assert changed[0] != expected.metrics["nll_difference"][0]
    assert changed[1:] == expected.metrics["nll_difference"][1:]


def test_a_canvas_does_not_depend_on_how_many_there_are(
    lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = qb.quantize(lm, "rtn", "W4A4")
    given = made(lm, HIDDEN, padded=3)
    whole = measure(lm, quantized, given)
    for row in range(4):
        part = slice(row, row + 1)
        alone = Canvases(
            given.ids[part], given.attention_mask[part], given.truth[part], given.mask_ratio[part]
        )
        found = measure(lm, quantized, alone).metrics
        for name in BY_CANVAS:
            assert found[name] == pytest.approx(whole.metrics[name][part], abs=1e-4)
    monkeypatch.setattr("dllm_qbench.quant.layer_error._CHUNK_TOKENS", 12)  # a canvas at a time
    chunked = measure(lm, quantized, given)
    for name in BY_CANVAS:
        assert chunked.metrics[name] == pytest.approx(whole.metrics[name], abs=1e-4)
    assert chunked.layer_sqnr == pytest.approx(whole.layer_sqnr, abs=1e-3)


def test_finer_schemes_are_nearer_to_full_precision(lm: DiffusionLM) -> None:
    given = made(lm, HIDDEN)
    found = [measure(lm, qb.quantize(lm, "rtn", f"W{bits}A16"), given) for bits in (3, 4, 8)]
    sqnr = [np.mean(one.metrics["logit_sqnr"]) for one in found]
    kl = [np.mean(one.metrics["log10_kl"]) for one in found]
    assert sqnr == sorted(sqnr)
    assert kl == sorted(kl, reverse=True)


@pytest.mark.parametrize("family", ["general", "math", "code"])
def test_canvases_hide_answers_only_and_do_not_depend_on_their_number(family: str) -> None:
    lm = worded_llada()
    assert lm.tokenizer is not None
    few, many = canvases(lm, family, items=3), canvases(lm, family, items=9)
    width = few.ids.shape[1]
    assert many.ids[:3, :width].equal(few.ids)
    assert many.truth[:3, :width].equal(few.truth)
    assert many.mask_ratio[:3].equal(few.mask_ratio)
    hidden = (many.ids == lm.mask_id) & many.attention_mask.bool()
    assert torch.where(hidden, many.truth, many.ids).equal(many.truth)
    length = embedded.answer_length(family, lm.closed_targets)
    assert (hidden.sum(1) / length).tolist() == pytest.approx(many.mask_ratio.tolist())
    for row, item in enumerate(embedded.test_items(family, 9)):
        prompt = len(lm.tokenizer(item.prompt)["input_ids"])
        assert not hidden[row, :prompt].any()
        assert int(many.attention_mask[row].sum()) == prompt + length
    assert not canvases(lm, family, seed=1, items=3).truth.equal(few.truth)


def test_mask_ratios_reach_all_three_bins() -> None:
    ratio = canvases(worded_llada(), "math").mask_ratio
    for low, high in BINS.values():
        assert int(((ratio > low) & (ratio <= high)).sum()) >= 10
    assert float(ratio.min()) > 0.0
    assert float(ratio.max()) <= 1.0


def test_canvases_need_a_tokenizer() -> None:
    with pytest.raises(TaskError, match="tiny has no tokenizer; the probe of a task needs one"):
        canvases(tiny_llada(), "math")
