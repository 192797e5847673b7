"""Native iLLaDA: its own config and names, RoPE in the model's dtype. Parity: test_official_parity.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models import illada, loading
from dllm_qbench.models.synthetic import official_config, write_checkpoint
from dllm_qbench.quant.layers import target_names

IDS = [7, 300, 5, 5, 17, 511]


def config(**overrides: Any) -> dict[str, Any]:
    return official_config("illada", "tiny", **overrides)


def test_the_released_config_names_no_mask_token_and_means_5() -> None:
    raw = config()
    assert "mask_token_id" not in raw
    assert illada.IlladaConfig.from_official(raw).mask_token_id == 5
    assert illada.IlladaConfig.from_official(raw | {"mask_token_id": 9}).mask_token_id == 9


def test_the_head_is_the_embedding_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    # transformers leaves a field out of a saved config that has its default, and tying is one
    folder = write_checkpoint(tmp_path, "illada", size="tiny")
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("tie_word_embeddings") is True
    (folder / "config.json").write_text(json.dumps(raw))
    lm = qb.load(folder)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "vocab_size",
    ],
)
def test_a_missing_field_is_an_error_not_a_default(field: str) -> None:
    raw = config()
    del raw[field]
    with pytest.raises(CheckpointError, match=f"here: field '{field}' is missing"):
        illada.IlladaConfig.from_official(raw, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "field 'attention_bias' is True"),
        ({"layer_norm_eps": 1e-5}, "field 'layer_norm_eps' is 1e-05"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE is scaled"),
        ({"num_key_value_heads": 3}, "not a multiple of n_kv_heads 3"),
        ({"mask_token_id": 512}, "below vocab_size 512, found 512"),
    ],
)
def test_unusable_config_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        illada.IlladaConfig.from_official(config() | change)


def test_rope_s_base_is_read_in_both_spellings() -> None:
    old = config(rope_theta=12345.0)
    new = old | {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}
    del new["rope_theta"]
    for raw in (old, new):
        assert illada.IlladaConfig.from_official(raw).to_official()["rope_theta"] == 12345.0


def test_rope_turns_in_the_model_s_dtype_where_llada_s_turns_in_float32(tmp_path: Path) -> None:
    lms = {
        name: qb.load(
            write_checkpoint(tmp_path / name, name, size="tiny", max_position_embeddings=8192)
            if name == "illada"
            else write_checkpoint(tmp_path / name, name, size="tiny", max_sequence_length=8192),
            dtype=torch.bfloat16,
        )
        for name in ("illada", "llada")
    }
    x_BHTE = torch.randn(1, 4, 4000, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    results = {}
    for name, lm in lms.items():
        cos, sin = lm.model.model.rotary_emb(x_BHTE, torch.arange(4000)[None])
        results[name] = lm.model.model.layers[0].self_attn.rotate(x_BHTE, cos, sin)
        first, second = x_BHTE.chunk(2, -1)
        swapped = torch.cat((-second, first), -1)
        wide = x_BHTE.float() * cos[:, None] + swapped.float() * sin[:, None]
        narrow = x_BHTE * cos.bfloat16()[:, None] + swapped * sin.bfloat16()[:, None]
        expected = narrow if name == "illada" else wide.bfloat16()
        assert results[name].dtype == torch.bfloat16
        assert torch.equal(results[name], expected)
    assert not torch.equal(results["illada"], results["llada"])


def test_saved_checkpoint_loads_bit_equal_and_layers_can_be_quantized(tmp_path: Path) -> None:
    lm = qb.load(write_checkpoint(tmp_path / "one", "illada", size="tiny"))
    loading.save(lm, tmp_path / "two")
    again = qb.load(tmp_path / "two")
    assert torch.equal(lm.logits(IDS), again.logits(IDS))
    assert lm.config.to_official() == again.config.to_official()
    assert len(target_names(lm.model)) == 14
    rounded = qb.quantize(lm, "rtn", "W8A16-g128")
    assert 0 < (rounded.logits(IDS) - lm.logits(IDS)).abs().max() < 0.1 * lm.logits(IDS).std()


def test_last_token_moves_first_position(tmp_path: Path) -> None:
    lm = qb.load(write_checkpoint(tmp_path, "illada", size="tiny"))
    moved = lm.logits([*IDS[:-1], 40])[0] - lm.logits(IDS)[0]
    assert moved.abs().max() > 1e-4
