"""Native LLaDA: the official format, parity with the forward written by hand, both directions of
attention.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models import llada, loading
from tests.helpers.official import forward_by_hand, official_tensors, write_official
from tests.helpers.tiny import tiny_config, tiny_llada

VARIANTS = {
    "plain": {},
    "grouped": {"n_kv_heads": 2},
    "grouped and tied": {"n_kv_heads": 1, "weight_tying": True},
}
IDS = [5, 9, 3, 3, 17, 60, 2]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_official_checkpoint_equals_forward_by_hand(
    tmp_path: Path, variant: str, shards: int
) -> None:
    config = tiny_config(**VARIANTS[variant])
    tensors = official_tensors(config)
    lm = qb.load(write_official(tmp_path / "ck", config, tensors, shards))
    expected = forward_by_hand(config, tensors, IDS)
    assert (lm.logits(IDS) - expected).abs().max() < 1e-5
    double = qb.load(tmp_path / "ck", dtype=torch.float64)
    # the cosines and sines of RoPE are float32 by LLaDA's own definition
    assert (double.logits(IDS) - expected).abs().max() < 2e-6


def test_llada_8b_has_291_official_tensors() -> None:
    config = llada.LladaConfig.from_official(
        tiny_config(
            d_model=4096,
            n_layers=32,
            n_heads=32,
            n_kv_heads=32,
            mlp_hidden_size=12288,
            vocab_size=126464,
        )
    )
    names = llada.official_names(config)
    assert len(names) == 291
    with torch.device("meta"):
        model = llada.LladaForMaskedDiffusion(config)
    assert sum(p.numel() for p in model.parameters()) == 8_015_581_184
    assert set(names.values()) == {name for name, _ in model.named_parameters()}


def test_saved_checkpoint_loads_bit_equal(tmp_path: Path) -> None:
    lm = tiny_llada(n_kv_heads=2)
    loading.save(lm, tmp_path)
    again = qb.load(tmp_path)
    assert torch.equal(lm.logits(IDS), again.logits(IDS))
    assert lm.fingerprint() == again.fingerprint()


def test_config_in_transformers_spelling_is_read() -> None:
    official = tiny_config(n_kv_heads=2)
    ours = {llada._SIZES.get(k, llada._OTHERS.get(k, k)): v for k, v in official.items()}
    assert "hidden_size" in ours
    assert "d_model" not in ours
    a, b = llada.LladaConfig.from_official(official), llada.LladaConfig.from_official(ours)
    assert a.to_official() == b.to_official()


@pytest.mark.parametrize(
    "field", ["d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size"]
)
def test_missing_size_is_an_error_not_a_default(field: str) -> None:
    raw = tiny_config()
    del raw[field]
    with pytest.raises(CheckpointError, match=f"config.json: field '{field}'"):
        llada.LladaConfig.from_official(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": None}, "mask_token_id"),
        ({"n_heads": 5}, "not a multiple"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"alibi": True}, "field 'alibi' is True"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type"),
    ],
)
def test_unusable_config_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llada.LladaConfig.from_official(tiny_config(**change))


def test_last_token_moves_first_position() -> None:
    lm = tiny_llada()
    moved = lm.logits([*IDS[:-1], 40])[0] - lm.logits(IDS)[0]
    assert moved.abs().max() > 1e-4


def test_layers_called_one_by_one_are_bidirectional_too() -> None:
    lm = tiny_llada(n_kv_heads=2)
    x = lm.model.model.embed_tokens(torch.tensor([IDS]))
    position = lm.model.model.rotary_emb(x, torch.arange(len(IDS))[None])
    for layer in lm.model.model.layers:
        assert layer.self_attn.is_causal is False
        x = layer(x, position_embeddings=position)
    alone = lm.model.lm_head(lm.model.model.norm(x))[0]
    assert torch.allclose(alone, lm.logits(IDS), atol=1e-6)


def test_padding_on_the_right_changes_nothing() -> None:
    lm = tiny_llada()
    padded = torch.tensor([[*IDS, 1, 1]])
    mask = torch.tensor([[1] * len(IDS) + [0, 0]])
    assert torch.allclose(lm.logits(padded, mask)[0, : len(IDS)], lm.logits(IDS), atol=1e-5)


def test_bf16_keeps_rope_in_float32() -> None:
    lm = tiny_llada(dtype=torch.bfloat16)
    cos, sin = lm.model.model.rotary_emb(
        torch.zeros(1, 4, 32, dtype=torch.bfloat16), torch.arange(4)[None]
    )
    assert cos.dtype == sin.dtype == torch.float32
    assert lm.logits(IDS).dtype == torch.float32


def test_cross_entropy_gradients_reach_every_parameter() -> None:
    model = llada.LladaForMaskedDiffusion(llada.LladaConfig.from_official(tiny_config()))
    F.cross_entropy(model(input_ids=torch.tensor([IDS])).logits[0], torch.tensor(IDS)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
