"""Native Dream: the official format, parity with the forward written by hand, shifted logits,
both directions of attention, and what the quantizers make of its biases.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models import dream, loading
from dllm_qbench.quant.layers import QuantLinear, target_names
from tests.helpers.official import write_official
from tests.helpers.official_dream import forward_by_hand, official_tensors
from tests.helpers.tiny import tiny_dream, tiny_dream_config

VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "one key/value head": {"num_key_value_heads": 1},
    "ungrouped and tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
}
IDS = [5, 9, 3, 3, 17, 60, 2]
V_BIAS = "model.layers.1.self_attn.v_proj.bias"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_official_checkpoint_equals_forward_by_hand(
    tmp_path: Path, variant: str, shards: int
) -> None:
    config = tiny_dream_config(**VARIANTS[variant])
    tensors = official_tensors(config)
    lm = qb.load(write_official(tmp_path / "ck", config, tensors, shards))
    expected = forward_by_hand(config, tensors, IDS)
    assert (lm.logits(IDS) - expected)[1:].abs().max() < 1e-5
    double = qb.load(tmp_path / "ck", dtype=torch.float64)
    # the cosines and sines of RoPE are computed in float32 whatever the model's dtype
    assert (double.logits(IDS) - expected)[1:].abs().max() < 2e-6


def test_logits_are_those_of_the_module_moved_by_one_row() -> None:
    lm = tiny_dream()
    own = lm.model(input_ids=torch.tensor([IDS])).logits[0]
    assert torch.equal(lm.logits(IDS)[1:], own[:-1])
    assert torch.equal(lm.logits(IDS)[0], own[0])
    pair = lm.logits([IDS, IDS])
    assert torch.equal(pair[0], pair[1])
    assert torch.allclose(pair[0], lm.logits(IDS), atol=1e-6)


@pytest.mark.parametrize("ids", [[3, 5, 6], [[5, 6], [3, 5]]])
def test_masked_position_0_is_an_error(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tiny: position 0 is \[MASK\] \(3\)"):
        tiny_dream().logits(ids)


def test_dream_7b_has_339_official_tensors_and_7_615_616_512_parameters() -> None:
    config = dream.DreamConfig.from_official(
        tiny_dream_config(
            hidden_size=3584,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            intermediate_size=18944,
            vocab_size=152064,
            mask_token_id=151666,
        )
    )
    names = dream.official_names(config)
    assert len(names) == 339  # 12 a layer, embedding, last norm, head
    with torch.device("meta"):
        model = dream.DreamForMaskedDiffusion(config)
    parameters = dict(model.named_parameters())
    assert set(names.values()) == set(parameters)
    # Qwen2.5-7B's published size
    assert sum(p.numel() for p in parameters.values()) == 7_615_616_512
    assert sum("bias" in name for name in names) == 3 * 28
    assert len(target_names(model)) == 7 * 28


@pytest.mark.parametrize("tied", [False, True])
def test_saved_checkpoint_loads_bit_equal(tmp_path: Path, tied: bool) -> None:
    lm = tiny_dream(tie_word_embeddings=tied)
    loading.save(lm, tmp_path)
    again = qb.load(tmp_path)
    assert torch.equal(lm.logits(IDS), again.logits(IDS))
    assert lm.config.to_official() == again.config.to_official()
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied


def test_missing_bias_is_named(tmp_path: Path) -> None:
    config = tiny_dream_config()
    tensors = official_tensors(config)
    del tensors[V_BIAS]
    with pytest.raises(CheckpointError, match=f"missing 1: {V_BIAS}; unexpected 0: none"):
        qb.load(write_official(tmp_path, config, tensors))


def test_bias_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    config = tiny_dream_config()
    tensors = official_tensors(config) | {V_BIAS: torch.zeros(32)}
    with pytest.raises(
        CheckpointError, match=rf"tensor {V_BIAS} has shape \[32\], the config asks for \[16\]"
    ):
        qb.load(write_official(tmp_path, config, tensors))


def test_tied_head_may_repeat_the_embedding_but_not_differ_from_it(tmp_path: Path) -> None:
    config = tiny_dream_config(tie_word_embeddings=True)
    tensors = official_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    qb.load(write_official(tmp_path / "again", config, tensors))
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(CheckpointError, match=r"unexpected 1: lm_head\.weight"):
        qb.load(write_official(tmp_path / "other", config, tensors))


@pytest.mark.parametrize("field", dream._SIZES)
def test_missing_size_is_an_error_not_a_default(field: str) -> None:
    raw = tiny_dream_config()
    del raw[field]
    with pytest.raises(CheckpointError, match=f"config.json: field '{field}'"):
        dream.DreamConfig.from_official(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": None}, "mask_token_id"),
        ({"mask_token_id": 64}, "below vocab_size 64, found 64"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"use_sliding_window": True}, "field 'use_sliding_window' is True"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
    ],
)
def test_unusable_config_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dream.DreamConfig.from_official(tiny_dream_config(**change))


def test_rope_theta_is_read_in_both_spellings() -> None:
    new = tiny_dream_config(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    del new["rope_theta"]
    for raw in (new, tiny_dream_config(rope_theta=5e5)):
        assert dream.DreamConfig.from_official(raw).to_official()["rope_theta"] == 5e5


def test_what_a_config_leaves_out_is_as_in_dream_7b() -> None:
    raw = tiny_dream_config()
    for field in ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "max_position_embeddings"):
        del raw[field]
    found = dream.DreamConfig.from_official(raw).to_official()
    assert (found["rms_norm_eps"], found["rope_theta"]) == (1e-6, 1e6)
    assert (found["tie_word_embeddings"], found["max_position_embeddings"]) == (False, 131072)


def test_last_token_moves_first_scored_position() -> None:
    lm = tiny_dream()
    moved = lm.logits([*IDS[:-1], 40])[1] - lm.logits(IDS)[1]
    assert moved.abs().max() > 1e-4


def test_layers_called_one_by_one_are_bidirectional_too() -> None:
    lm = tiny_dream()
    x = lm.model.model.embed_tokens(torch.tensor([IDS]))
    position = lm.model.model.rotary_emb(x, torch.arange(len(IDS))[None])
    for layer in lm.model.model.layers:
        assert layer.self_attn.is_causal is False
        x = layer(x, position_embeddings=position)
    alone = lm.model.lm_head(lm.model.model.norm(x))[0]
    assert torch.allclose(alone[:-1], lm.logits(IDS)[1:], atol=1e-6)


def test_padding_on_the_right_changes_nothing() -> None:
    lm = tiny_dream()
    padded = torch.tensor([[*IDS, 1, 1]])
    mask = torch.tensor([[1] * len(IDS) + [0, 0]])
    assert torch.allclose(lm.logits(padded, mask)[0, : len(IDS)], lm.logits(IDS), atol=1e-5)


def test_cross_entropy_gradients_reach_every_parameter() -> None:
    model = dream.DreamForMaskedDiffusion(dream.DreamConfig.from_official(tiny_dream_config()))
    F.cross_entropy(
        model(input_ids=torch.tensor([IDS])).logits[0, :-1], torch.tensor(IDS[1:])
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("method", ["rtn", "gptq", "smoothquant"])
def test_methods_keep_the_biases(method: str) -> None:
    lm = tiny_dream()
    data = qb.calibration(lm, sequences=10, length=16)
    quantized = qb.quantize(lm, method, "W8A8", calibration=data)
    layers = {name: quantized.model.get_submodule(name) for name in target_names(quantized.model)}
    assert all(isinstance(layer, QuantLinear) for layer in layers.values())
    for name, layer in layers.items():
        before = lm.model.get_submodule(name)
        assert isinstance(before, nn.Linear)
        assert isinstance(layer, QuantLinear)
        assert (layer.bias is None) == (before.bias is None)
        if before.bias is not None and layer.bias is not None:
            scale = 1.0 if layer.output_scale is None else layer.output_scale
            assert torch.allclose(layer.bias * scale, before.bias, rtol=1e-5)
    # 8 bits: the logits are close, where a lost bias of size 1 would show
    assert (quantized.logits(IDS) - lm.logits(IDS)).abs().max() < 0.3 * lm.logits(IDS).std()


def test_smoothquant_at_16_bits_leaves_the_logits_unchanged() -> None:
    lm = tiny_dream(dtype=torch.float64)
    data = qb.calibration(lm, sequences=10, length=16)
    smoothed = qb.quantize(lm, "smoothquant", "W16A16", calibration=data)
    assert (smoothed.logits(IDS) - lm.logits(IDS)).abs().max() < 1e-9


def test_calibration_never_masks_position_0() -> None:
    data = qb.calibration(tiny_dream(), sequences=10, length=16, mask_ratios=(1.0,))
    assert bool((data.ids[:, 0] != 3).all())
    assert bool((data.ids[:, 1:] == 3).all())
