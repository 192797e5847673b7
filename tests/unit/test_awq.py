"""AWQ on tiny models: what it is for, what it must not fall for, and what it leaves in its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner
from dllm_qbench.quant.grid import find_grid
from dllm_qbench.quant.layer_error import layer_errors, local_errors
from dllm_qbench.quant.layers import QuantLinear, blocks, target_names
from dllm_qbench.quant.methods import awq
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.tiny import tiny_llada

SPIKE = 5  # the token id that sets off the massive activation


def with_channel_outliers(seed: int, **overrides: Any) -> DiffusionLM:
    """A tiny model, four channels of every norm made 30 times louder without their readers' help."""
    lm = tiny_llada(seed, **overrides)
    for layer in lm.model.model.layers:  # type: ignore[union-attr]
        layer.input_layernorm.weight[:4] *= 30
        layer.post_attention_layernorm.weight[8:12] *= 30
        for name in ("self_attn.q_proj", "self_attn.k_proj"):  # keep the attention's softmax soft
            layer.get_submodule(name).weight[:, :4] /= 30
    return lm


def with_massive_token(magnitude: float) -> DiffusionLM:
    """A tiny model in which one neuron of each MLP fires at about ``magnitude`` on SPIKE only."""
    lm = tiny_llada(3)
    inner: Any = lm.model.model
    u = torch.zeros(32)
    u[0] = 1.0
    inner.embed_tokens.weight[:, 0] = 0.0
    inner.embed_tokens.weight[SPIKE] = 20 * u
    for layer in inner.layers:
        layer.self_attn.o_proj.weight[0] = 0.0  # u stays this token's own
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[0] = 1.0
        gain = (magnitude / 32) ** 0.5  # the norm leaves about sqrt(32) of u
        layer.mlp.gate_proj.weight[7] = gain * u
        layer.mlp.up_proj.weight[7] = gain * u
        layer.mlp.down_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0, 7] = 0.1
    return lm


def canvases(lm: DiffusionLM, sequences: int = 16, seed: int = 0) -> Calibration:
    """Random calibration sequences whose first token is SPIKE and that hold it nowhere else."""
    data = qb.calibration(lm, seed=seed, sequences=sequences)
    ids = data.ids.masked_fill(data.ids == SPIKE, SPIKE + 1)
    ids[:, 0] = SPIKE
    return Calibration(ids, data.attention_mask, data.recipe)


def mean(errors: dict[str, float]) -> float:
    return sum(errors.values()) / len(errors)


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W4A16-g16", "W3A16-g20-sym", "W4A16"])
def test_layer_errors_beat_rtns_where_channels_stand_out(scheme: str) -> None:
    gains = []
    for seed in range(3):
        lm = with_channel_outliers(seed)
        data, fresh = qb.calibration(lm, sequences=16), qb.calibration(lm, seed=1, sequences=16)
        ours, floor = qb.quantize(lm, "awq", scheme, data), qb.quantize(lm, "rtn", scheme)
        for errors in (local_errors, layer_errors):
            gains.append(mean(errors(lm, ours, fresh.ids)) - mean(errors(lm, floor, fresh.ids)))
    assert sum(gains) / len(gains) > 1.0, gains  # dB; 3 to 5 when this was written


def relative_error(lm: DiffusionLM, quantized: DiffusionLM, data: Calibration) -> Tensor:
    """Squared error of the logits relative to the token's own, ``[B, T]``."""
    expected = lm.logits(data.ids).double()
    return (quantized.logits(data.ids) - expected).square().sum(-1) / expected.square().sum(-1)


def test_massive_tokens_do_not_take_over_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary tokens gain over RTN beside a spike that outweighs them a million to one; summed
    plainly, the same search serves the spike and loses them.
    """
    lm = with_massive_token(5000.0)
    data, fresh = canvases(lm), canvases(lm, seed=1)
    entering_down = list(BlockRunner(lm.model, data).stages(blocks(lm.model)[0]))[3][1][0].abs()
    assert float(entering_down.amax() / entering_down.median()) > 1e4

    def ordinary(method: str) -> float:
        quantized = qb.quantize(lm, method, "W3A16-g16", data)
        return float(relative_error(lm, quantized, fresh)[:, 1:].mean())

    rtn, robust = ordinary("rtn"), ordinary("awq")
    halves = BlockRunner.halves

    def plain(self: BlockRunner, *which: Any) -> Any:
        # A residual stream of ones: every token's error counts as it is.
        yield from ((1 - y_ND, y_ND) for _, y_ND in halves(self, *which))

    monkeypatch.setattr(BlockRunner, "halves", plain)
    assert robust < 0.9 * rtn
    assert robust < 0.8 * ordinary("awq")


@pytest.mark.parametrize("sequences", [7, 16])
def test_eliminating_nothing_is_searching_everything(
    sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are all sequences, each once, in chunks that 4 does not divide too."""
    lm = with_channel_outliers(0)
    data = qb.calibration(lm, sequences=sequences)
    monkeypatch.setattr("dllm_qbench.quant.capture._CHUNK_TOKENS", 5 * data.ids.shape[1])
    whole = qb.quantize(lm, "awq", "W3A16-g16", data)
    monkeypatch.setattr(awq, "_SPLIT_FROM", 1)
    monkeypatch.setattr(awq, "_LEFT", (20, 20, 20, 20))
    parts = qb.quantize(lm, "awq", "W3A16-g16", data)
    for name in target_names(lm.model):
        assert torch.equal(_layer(parts, name).weight, _layer(whole, name).weight), name


def test_the_last_one_left_is_not_worse_than_rtn(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = with_channel_outliers(0)
    data = qb.calibration(lm, sequences=16)
    monkeypatch.setattr(awq, "_SPLIT_FROM", 1)
    monkeypatch.setattr(awq, "_LEFT", (1, 1, 1, 1))
    found: list[awq.Choice] = []
    search = awq._Place.search

    def kept(self: Any, *given: Any) -> awq.Choice:
        found.append(search(self, *given))
        return found[-1]

    monkeypatch.setattr(awq._Place, "search", kept)
    qb.quantize(lm, "awq", "W3A16-g16", data)
    assert all(choice.error <= choice.rtn_error for choice in found)
    assert any(choice.error < choice.rtn_error for choice in found)


def test_without_ratios_and_clips_it_is_rtn() -> None:
    lm = tiny_llada(n_kv_heads=2)
    data = qb.calibration(lm, sequences=4)
    ours = qb.quantize(lm, "awq", "W3A16-g20", data, ratios=1, clip_steps=0)
    floor = qb.quantize(lm, "rtn", "W3A16-g20")
    for name in target_names(lm.model):
        assert torch.equal(_layer(ours, name).weight, _layer(floor, name).weight), name


def test_layers_keep_the_way_back_to_full_precision() -> None:
    lm = tiny_llada(n_kv_heads=2)
    quantized = qb.quantize(lm, "awq", "W8A16", qb.calibration(lm, sequences=8))
    errors = local_errors(lm, quantized, qb.calibration(lm, seed=1, sequences=4).ids)
    assert min(errors.values()) > 35  # dB; a factor left out or misplaced leaves less than 10
    for name in target_names(lm.model):
        layer, leaf = _layer(quantized, name), name.rpartition(".")[2]
        assert layer.input_scale is not None
        assert (layer.output_scale is not None) == (leaf in ("v_proj", "up_proj")), name


def test_query_heads_of_a_group_share_their_value_channels_factor() -> None:
    lm = tiny_llada(n_kv_heads=2)
    quantized = qb.quantize(lm, "awq", "W3A16-g16", qb.calibration(lm, sequences=8))
    for index in range(2):
        o = _layer(quantized, f"model.layers.{index}.self_attn.o_proj").input_scale
        v = _layer(quantized, f"model.layers.{index}.self_attn.v_proj").output_scale
        assert o is not None
        assert v is not None
        heads, values = o.view(4, 8), v.view(2, 8)  # heads 0 and 1 read value head 0
        assert torch.equal(heads, values[[0, 0, 1, 1]])


@pytest.mark.parametrize("unclipped", ["q_proj k_proj", "q_proj k_proj gate_proj up_proj"])
def test_all_but_the_linears_named_clip(unclipped: str) -> None:
    lm = tiny_llada(seed=2)
    data = qb.calibration(lm, sequences=8)
    quantized = qb.quantize(lm, "awq", "W3A16-g16", data, unclipped=unclipped)
    clipped = set()
    for name in target_names(lm.model):
        layer, linear = _layer(quantized, name), lm.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert layer.input_scale is not None
        assert layer.scale is not None
        scaled = linear.weight.double() * layer.input_scale
        if layer.output_scale is not None:
            scaled /= layer.output_scale[:, None]
        whole = find_grid(scaled, 3, False, 16).scale.float()
        if not torch.allclose(layer.scale, whole, rtol=1e-5):
            assert bool((layer.scale <= whole * (1 + 1e-5)).all()), name
            clipped.add(name.rpartition(".")[2])
    every = {name.rpartition(".")[2] for name in target_names(lm.model)}
    assert clipped == every - set(unclipped.split())


def test_unknown_linear_is_refused() -> None:
    lm = tiny_llada(n_layers=1)
    with pytest.raises(ValueError, match=r"unclipped must list linears of a block .*'gate'"):
        qb.quantize(lm, "awq", "W4A16", qb.calibration(lm, sequences=2), unclipped="gate")


def test_biases_are_folded_with_their_rows() -> None:
    lm = tiny_llada(dtype=torch.float64)
    for name in target_names(lm.model):
        linear: Any = lm.model.get_submodule(name)
        generator = torch.Generator().manual_seed(len(name))
        bias = torch.randn(linear.out_features, generator=generator, dtype=torch.float64)
        linear.bias = nn.Parameter(bias, requires_grad=False)
    data = qb.calibration(lm, sequences=4)
    folded = qb.quantize(lm, "awq", "W16A16", data)
    expected = lm.logits(data.ids)
    torch.testing.assert_close(folded.logits(data.ids), expected, rtol=1e-9, atol=1e-9)
    assert not torch.equal(folded.logits(data.ids), expected)  # something was folded


@pytest.mark.parametrize(
    ("magnitude", "ratio", "expected"),
    [
        ([1.0, 4.0, 16.0], 0.0, [1.0, 1.0, 1.0]),
        ([1.0, 4.0, 16.0], 1.0, [0.25, 1.0, 4.0]),
        ([1.0, 4.0, 16.0], 0.5, [0.5, 1.0, 2.0]),
        ([0.0, 1.0], 0.5, [0.1, 10.0]),  # a dead channel counts as 1e-4 of the loudest
        ([0.0, 0.0], 0.5, [1.0, 1.0]),
    ],
)
def test_scaling_factors(magnitude: list[float], ratio: float, expected: list[float]) -> None:
    found = awq.scaling_factors(torch.tensor(magnitude), ratio)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_clip_search_finds_the_weight_not_worth_its_range() -> None:
    """One weight is twice the others and its input almost silent: the grid should leave it out."""
    weight = torch.tensor([[1.0, 0.9, -0.35, 0.6, -0.8, -1.0, 0.15, 2.0]], dtype=torch.float64)
    second_moment = torch.diag(torch.tensor([1.0] * 7 + [1e-6], dtype=torch.float64))
    scheme, s = Scheme.parse("W3A16-g8-sym"), torch.ones(8)
    share = awq.clip_shares(weight, s, second_moment, scheme, True, 20)
    assert share.tolist() == [[0.5]]  # one or the other end of a step of 0.025
    loud = torch.eye(8, dtype=torch.float64) * torch.tensor([1.0] * 7 + [1e6])
    assert awq.clip_shares(weight, s, loud, scheme, True, 20).tolist() == [[1.0]]


def test_recipe_names_the_parameters() -> None:
    lm = tiny_llada(n_layers=1)
    quantized = qb.quantize(lm, "awq", "W4A16-g16", qb.calibration(lm, sequences=2), ratios=4)
    assert quantized.recipe is not None
    assert quantized.recipe["parameters"] == {
        "ratios": 4,
        "clip_steps": 20,
        "unclipped": "q_proj k_proj",
    }
    assert quantized.recipe["symmetric"] is False


@pytest.mark.parametrize("parameters", [{"ratios": 0}, {"clip_steps": -1}])
def test_impossible_searches_are_refused(parameters: dict[str, int]) -> None:
    lm = tiny_llada(n_layers=1)
    with pytest.raises(ValueError, match=r"ratios must be at least 1 and clip_steps at least 0"):
        qb.quantize(lm, "awq", "W4A16", qb.calibration(lm, sequences=2), **parameters)


def test_overflow_names_the_linear() -> None:
    lm = tiny_llada()
    layer: Any = lm.model.model.layers[1]  # type: ignore[union-attr, index]
    layer.self_attn.v_proj.weight *= 1e30
    layer.self_attn.o_proj.weight *= 1e30
    with pytest.raises(NonFiniteError, match=r"awq: model\.layers\.1\.self_attn\.q_proj"):
        qb.quantize(lm, "awq", "W4A16", qb.calibration(lm, sequences=2))


def test_folded_weight_that_overflows_names_the_linear() -> None:
    """A clamp would hide it, an infinity would be stored: neither is the model that was asked for."""
    lm = tiny_llada(n_layers=1, dtype=torch.float16)
    mlp: Any = lm.model.get_submodule("model.layers.0.mlp")
    mlp.up_proj.weight[0] *= 30
    mlp.down_proj.weight[0, 0] = 65504.0
    with pytest.raises(NonFiniteError, match=r"awq: model\.layers\.0\.mlp\.down_proj: .*float16"):
        qb.quantize(lm, "awq", "W16A16", qb.calibration(lm, sequences=2))


def _layer(lm: DiffusionLM, name: str) -> QuantLinear:
    layer = lm.model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer
