"""Layer errors: a known error gives a known number of decibels, at the layer where it was made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant import layer_error
from dllm_qbench.quant.layer_error import (
    HEAD,
    MOST_DB,
    layer_errors,
    local_errors,
    profile,
    token_sqnr,
    weight_error,
)
from dllm_qbench.quant.layers import target_names
from tests.helpers.tiny import tiny_llada

IDS = torch.arange(4, 64).view(6, 10)
BROKEN = "model.layers.1.mlp.gate_proj"


def damaged(lm: DiffusionLM, factor: float) -> DiffusionLM:
    copy = lm.clone()
    copy.model.get_submodule(BROKEN).weight.mul_(factor)
    return copy


def test_identical_models_reach_the_top_everywhere() -> None:
    lm = tiny_llada()
    for measure in (layer_errors, local_errors):
        found = measure(lm, lm.clone(), IDS)
        assert list(found) == target_names(lm.model)
        assert set(found.values()) == {MOST_DB}


def test_ten_percent_too_large_is_twenty_decibels_there_and_nothing_before() -> None:
    lm = tiny_llada(dtype=torch.float64)
    other = damaged(lm, 1.1)
    names = target_names(lm.model)
    accumulated, local = layer_errors(lm, other, IDS), local_errors(lm, other, IDS)
    assert accumulated[BROKEN] == pytest.approx(20.0)
    assert local[BROKEN] == pytest.approx(20.0)
    assert all(accumulated[name] == MOST_DB for name in names[: names.index(BROKEN)])
    after = names[names.index(BROKEN) + 2 :]  # up_proj stands beside it, not behind it
    assert after
    assert all(accumulated[name] < 60 for name in after)
    assert all(local[name] == MOST_DB for name in names if name != BROKEN)


def test_taps_stand_between_the_linears_and_the_logits_come_last() -> None:
    lm = tiny_llada()
    found = profile(lm, lm.clone(), IDS)
    linears = target_names(lm.model)
    assert list(found.local_sqnr) == linears
    names = list(found.layer_sqnr)
    block = [name.removeprefix("model.layers.0.") for name in names[:11]]
    assert (
        block
        == (
            "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn "
            "self_attn.o_proj post_attention_layernorm mlp.gate_proj mlp.up_proj mlp mlp.down_proj"
        ).split()
    )
    assert len(names) == 2 * 11 + 1
    assert names[-1] == HEAD
    assert found.reference_logits.equal(lm.logits(IDS))


def test_logits_of_some_positions_are_those_of_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the canvases go through in several parts, as those of a large model do."""
    lm = tiny_llada()
    other = qb.quantize(lm, "rtn", "W4A16")
    wanted = torch.arange(IDS.numel()).reshape(IDS.shape) % 3 == 0
    whole = profile(lm, other, IDS)
    monkeypatch.setattr(layer_error, "_RECORDED_BYTES", 1)
    some = profile(lm, other, IDS, wanted=wanted)
    assert some.reference_logits.equal(whole.reference_logits[wanted])
    assert some.quantized_logits.equal(whole.quantized_logits[wanted])
    assert some.layer_sqnr == pytest.approx(whole.layer_sqnr, abs=1e-9)


@pytest.mark.parametrize("norm", ["input_layernorm", "post_attention_layernorm"])
def test_fault_of_a_norm_shows_at_its_tap_and_in_no_linear_alone(norm: str) -> None:
    lm = tiny_llada(dtype=torch.float64)
    other = lm.clone()
    other.model.get_parameter(f"model.layers.1.{norm}.weight").mul_(1.1)
    found = profile(lm, other, IDS)
    names = list(found.layer_sqnr)
    place = names.index(f"model.layers.1.{norm}")
    assert found.layer_sqnr[names[place]] == pytest.approx(20.0)
    assert {found.layer_sqnr[name] for name in names[:place]} == {MOST_DB}
    assert all(found.layer_sqnr[name] < 60 for name in names[place + 1 :])
    assert set(found.local_sqnr.values()) == {MOST_DB}


def test_profile_is_the_mean_of_tokens_decibels() -> None:
    """And not the decibels of summed energies, which one loud token decides."""
    expected = torch.tensor([[1000.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    found = torch.tensor([[990.0, 0.0], [1.0, 0.1], [3.0, 4.0], [0.0, 0.0]])
    # A hundredth of the amplitude is 40 dB, a tenth 20; equal, and nothing against nothing, 100.
    assert token_sqnr(expected, found).tolist() == pytest.approx(
        [40.0, 20.0, 100.0, 100.0], abs=1e-5
    )
    nothing, something = torch.zeros(1, 2), torch.ones(1, 2)
    assert token_sqnr(nothing, something).tolist() == [-100.0]
    assert token_sqnr(something, nothing).tolist() == [0.0]


def test_sign_flip_is_minus_six_decibels() -> None:
    lm = tiny_llada(dtype=torch.float64)
    assert local_errors(lm, damaged(lm, -1.0), IDS)[BROKEN] == pytest.approx(-20 * math.log10(2))


@pytest.mark.parametrize("variant", [{}, {"n_kv_heads": 2}])
def test_smoothing_alone_is_no_error(variant: dict[str, Any]) -> None:
    lm = tiny_llada(dtype=torch.float64, **variant)
    calibration = qb.calibration(lm, sequences=8, length=12)
    smoothed = qb.quantize(lm, "smoothquant", "W16A16", calibration)
    for measure in (layer_errors, local_errors):
        assert set(measure(lm, smoothed, IDS).values()) == {MOST_DB}


def test_padding_is_left_out() -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "rtn", "W4A16")
    mask = torch.ones_like(IDS)
    mask[:, 7:] = 0
    padded = layer_errors(lm, quantized, IDS, mask)
    for name, value in layer_errors(lm, quantized, IDS[:, :7]).items():
        assert padded[name] == pytest.approx(value, abs=1e-3)


def test_one_row_and_chunks_are_means_of_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "rtn", "W4A16")
    assert layer_errors(lm, quantized, IDS[0]) == layer_errors(lm, quantized, IDS[:1])
    whole = layer_errors(lm, quantized, IDS)
    monkeypatch.setattr("dllm_qbench.quant.layer_error._CHUNK_TOKENS", 25)
    for name, value in layer_errors(lm, quantized, IDS).items():
        assert value == pytest.approx(whole[name], abs=1e-3)


def test_wide_models_are_recorded_fewer_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_llada()
    other = damaged(lm, 1.1)
    whole = profile(lm, other, IDS)
    held: list[int] = []
    logits = DiffusionLM.logits

    def counted(self: DiffusionLM, ids: Any, *args: Any) -> Any:
        held.append(ids.numel())
        return logits(self, ids, *args)

    monkeypatch.setattr(DiffusionLM, "logits", counted)
    # Two blocks, of four linears 32 -> 32, two 32 -> 48 and one 48 -> 32, in 4 bytes, of two models.
    a_token = 2 * 4 * 2 * (4 * 64 + 3 * 80)
    monkeypatch.setattr("dllm_qbench.quant.layer_error._RECORDED_BYTES", 25 * a_token)
    parts = profile(lm, other, IDS)
    assert held == [20] * 6  # two rows of ten tokens at a time, by both models
    assert parts.layer_sqnr == pytest.approx(whole.layer_sqnr, abs=1e-3)
    assert parts.local_sqnr == pytest.approx(whole.local_sqnr, abs=1e-3)


def test_every_bit_is_worth_about_six_decibels_locally() -> None:
    lm = tiny_llada()
    mean = []
    for bits in (4, 5, 6):
        found = local_errors(lm, qb.quantize(lm, "rtn", f"W{bits}A16"), IDS)
        mean.append(sum(found.values()) / len(found))
    assert mean[1] - mean[0] == pytest.approx(6.0, abs=1.0)
    assert mean[2] - mean[1] == pytest.approx(6.0, abs=1.0)


def test_nan_output_is_an_error_that_names_the_module() -> None:
    lm = tiny_llada()
    with pytest.raises(NonFiniteError, match=f"quantized output of {BROKEN} is NaN"):
        layer_errors(lm, damaged(lm, math.nan), IDS)
    with pytest.raises(NonFiniteError, match=f"full-precision output of {BROKEN} is NaN"):
        layer_errors(damaged(lm, math.nan), lm, IDS)


def test_models_of_different_depth_are_an_error() -> None:
    with pytest.raises(QBenchError, match="do not have the same linears"):
        layer_errors(tiny_llada(), tiny_llada(n_layers=1), IDS)


def test_weight_error_is_the_norm_of_the_outputs_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, q = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((20, 6), (4, 6), (4, 6))
    )
    assert weight_error(w, q, x.T @ x) == pytest.approx(float((x @ w.T - x @ q.T).norm()))
