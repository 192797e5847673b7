"""QuaRot: exact at 16 bits wherever it rotates, and what it buys at 4 bits when outliers are
massive.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.outliers import outliers
from dllm_qbench.quant.layer_error import MOST_DB, layer_errors, local_errors
from dllm_qbench.quant.layers import HadamardRotation, QuantLinear, quantize_tokens
from dllm_qbench.quant.methods import quarot
from dllm_qbench.quant.rotation import random_signs
from tests.helpers.rotated import (
    IDS,
    TOLERANCE,
    VARIANTS,
    data,
    logit_sqnr,
    massive_llada,
    max_to_rms,
    relative,
)
from tests.helpers.tiny import tiny_llada


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_unchanged_at_16_bits(variant: str, dtype: torch.dtype) -> None:
    lm = VARIANTS[variant](dtype=dtype)
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    before, after = lm.model.state_dict(), rotated.model.state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight"):
        assert not torch.allclose(before[name], after[name], atol=0.05)  # it did rotate


def test_biases_rotate_with_their_outputs() -> None:
    lm = tiny_llada(dtype=torch.float64, n_kv_heads=2)
    generator = torch.Generator().manual_seed(5)
    for block in lm.model.model.layers:
        linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
        for linear in linears:
            bias = torch.randn(linear.out_features, generator=generator, dtype=torch.float64)
            linear.bias = nn.Parameter(bias, requires_grad=False)
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < 1e-9


def test_a_norm_gain_of_zero_is_folded() -> None:
    lm = tiny_llada(dtype=torch.float64)
    with torch.no_grad():
        lm.model.model.layers[0].input_layernorm.weight[3] = 0.0
        lm.model.model.norm.weight[7] = 0.0
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < 1e-9
    assert min(local_errors(lm, rotated, IDS).values()) == MOST_DB


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_becomes_its_own_and_the_input_stays_tied(tied: bool) -> None:
    lm = tiny_llada(weight_tying=tied)
    before = lm.fingerprint()
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    assert rotated.config.tie_word_embeddings is False
    assert rotated.model.lm_head.weight is not rotated.model.model.embed_tokens.weight
    assert lm.config.tie_word_embeddings is tied
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) is tied
    assert lm.clone().fingerprint() == before


def test_gains_are_folded_and_become_one() -> None:
    rotated = qb.quantize(lm := tiny_llada(), "quarot", "W16A16", data(lm))
    for name, tensor in rotated.model.named_parameters():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name


def test_subtracting_the_embedding_mean_would_change_the_function() -> None:
    """The released code does so; RMSNorm, unlike LayerNorm, does not take the mean out anyway."""
    lm = tiny_llada(dtype=torch.float64)
    centred = lm.clone()
    with torch.no_grad():
        weight = centred.model.model.embed_tokens.weight
        weight -= weight.mean(-1, keepdim=True)
    assert relative(centred.logits(IDS), lm.logits(IDS)) > 1e-3


def test_rotating_queries_and_keys_leaves_logits_and_rotating_one_does_not() -> None:
    lm = tiny_llada(dtype=torch.float64, n_kv_heads=2)
    both = lm.clone()
    for block in both.model.model.layers:
        block.self_attn.query_key_rotation = HadamardRotation(8)
    assert relative(both.logits(IDS), lm.logits(IDS)) < 1e-12

    class OnlyQueries(nn.Module):
        def forward(self, x_BHTE: Tensor) -> Tensor:
            return HadamardRotation(8)(x_BHTE) if x_BHTE.shape[1] == 4 else x_BHTE

    one = lm.clone()
    for block in one.model.model.layers:
        block.self_attn.query_key_rotation = OnlyQueries()
    assert relative(one.logits(IDS), lm.logits(IDS)) > 1e-3


def test_query_heads_of_a_group_share_the_rotation_of_their_value_head() -> None:
    lm = tiny_llada(n_kv_heads=2)
    block = qb.quantize(lm, "quarot", "W16A16", data(lm)).model.model.layers[0]
    value_signs = block.self_attn.v_proj.output_rotation.signs.view(2, 8)
    head_signs = block.self_attn.o_proj.input_rotation.signs.view(4, 8)
    assert torch.equal(head_signs, value_signs[[0, 0, 1, 1]])


@pytest.mark.parametrize("width", [1, 8, 12, 20])
def test_a_rotation_is_orthogonal_and_its_inverse_undoes_it(width: int) -> None:
    size = 3 * width
    rotation = HadamardRotation(width, random_signs(size, 4))
    R = rotation(torch.eye(size, dtype=torch.float64))
    assert torch.allclose(R @ R.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(rotation(x), x @ R, atol=1e-12)
    assert torch.allclose(rotation.inverse(rotation(x)), x, atol=1e-12)


def test_max_to_rms_at_down_proj_falls() -> None:
    lm = massive_llada()
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    for index in range(2):
        name = f"model.layers.{index}.mlp.down_proj"
        plain = max_to_rms(lm, name)
        spread = max_to_rms(rotated, name)
        # Two equal spikes among 48 channels are sqrt(48 / 2) = 4.9 times the token's RMS; normal
        # values reach about 3 over the 48 tokens here.
        assert plain > 4.8
        assert spread < 3.5


@pytest.mark.parametrize("weights", ["gptq", "rtn"])
def test_w4a4_is_closer_to_full_precision_than_smoothquant_where_outliers_are_massive(
    weights: str,
) -> None:
    lm = massive_llada()
    smooth = logit_sqnr(lm, qb.quantize(lm, "smoothquant", "W4A4", data(lm)))
    ours = logit_sqnr(lm, qb.quantize(lm, "quarot", "W4A4", data(lm), weights=weights))
    assert ours > smooth + 4, (ours, smooth)  # measured: 8.3 to 8.9 dB against 0.4


def test_outlier_statistics_see_what_is_rounded() -> None:
    lm = massive_llada()
    rotated = qb.quantize(lm, "quarot", "W16A16", data(lm))
    plain, spread = (
        table[table.input == "down_proj"]["max"].max()
        for table in (outliers(model, IDS, mask_ratios=(0.0,)) for model in (lm, rotated))
    )
    assert spread < 0.5 * plain  # two equal spikes over 48 channels: 2 / sqrt(48) = 0.29 at most


def test_without_r4_the_gain_at_down_proj_is_lost() -> None:
    lm = massive_llada()
    rotated = qb.quantize(lm, "quarot", "W4A4", data(lm), weights="rtn")
    broken = rotated.clone()
    for block in broken.model.model.layers:
        block.mlp.down_proj.transform = None
    assert logit_sqnr(lm, broken) < logit_sqnr(lm, rotated) - 3


def test_layer_errors_are_those_of_the_full_precision_outputs() -> None:
    lm = tiny_llada(dtype=torch.float64, n_kv_heads=2)
    exact = qb.quantize(lm, "quarot", "W16A16", data(lm))
    for profile in (layer_errors(lm, exact, IDS), local_errors(lm, exact, IDS)):
        assert len(profile) == 14
        assert min(profile.values()) >= MOST_DB  # capped: rounding alone is some 300 dB down
    coarse = qb.quantize(lm, "quarot", "W4A4", data(lm))
    local = local_errors(lm, coarse, IDS)
    assert all(8 < value < 40 for value in local.values()), local


def test_grids_are_symmetric_and_hold_at_most_16_levels_per_channel() -> None:
    rotated = qb.quantize(lm := tiny_llada(), "quarot", "W4A4", data(lm))
    layers = [m for m in rotated.model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 14
    for layer in layers:
        assert layer.symmetric is True
        assert layer.scale is not None
        assert layer.scale.shape == (layer.out_features, 1)
        assert max(len(row.unique()) for row in layer.weight) <= 15  # codes -7..7


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    lm = tiny_llada()
    made = [qb.quantize(lm, "quarot", "W4A4", data(lm), seed=seed) for seed in (0, 0, 1)]
    assert made[0].fingerprint() == made[1].fingerprint() != made[2].fingerprint()
    assert made[2].recipe is not None
    assert made[2].recipe["parameters"]["seed"] == 1


def test_act_clip_reaches_every_layer_and_is_off_by_default() -> None:
    lm = tiny_llada()
    for clip, given in ((1.0, {}), (0.9, {"act_clip": 0.9})):
        rotated = qb.quantize(lm, "quarot", "W4A4", data(lm), weights="rtn", **given)  # type: ignore[arg-type]
        clips = {m.act_clip for m in rotated.model.modules() if isinstance(m, QuantLinear)}
        assert clips == {clip}


def test_clipped_tokens_stop_at_their_share_of_the_maximum() -> None:
    x = torch.tensor([[10.0, -9.5, 4.0, 0.0]])
    assert quantize_tokens(x, 8).abs().max() == pytest.approx(10.0)
    found = quantize_tokens(x, 8, clip=0.9)
    assert found[0, 0].item() == pytest.approx(9.0)
    assert found[0, 1].item() == pytest.approx(-9.0)
    assert found[0, 2].item() == pytest.approx(4.0, abs=9 / 127 / 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"weights": "awq"}, "weights must be one of gptq, rtn"), ({"act_clip": 0.0}, "act_clip")],
)
def test_bad_parameters_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qb.quantize(lm := tiny_llada(), "quarot", "W4A4", data(lm), **given)


def test_a_norm_that_a_rotation_does_not_commute_with_is_refused() -> None:
    lm = tiny_llada()
    lm.model.model.layers[1].input_layernorm = nn.LayerNorm(32)
    with pytest.raises(QBenchError, match=r"model\.layers\.1\.input_layernorm \(LayerNorm\)"):
        quarot.rotate(lm.model, seed=0)


def test_attention_without_room_for_r3_is_refused() -> None:
    lm = tiny_llada()
    del lm.model.model.layers[0].self_attn.query_key_rotation
    with pytest.raises(QBenchError, match=r"model\.layers\.0\.self_attn .* query_key_rotation"):
        quarot.rotate(lm.model, seed=0)
