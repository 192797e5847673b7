"""iLLaDA's forward by hand: it is LLaDA's, under other names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.helpers import official

_FIELDS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "weight_tying": "tie_word_embeddings",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_TOP = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
}


def forward_by_hand(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Return the logits ``[T, V]`` of one row in plain float64 torch."""
    names = dict(_TOP)
    if not config["tie_word_embeddings"]:
        names["model.transformer.ff_out.weight"] = "lm_head.weight"
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in _BLOCK.items():
            names[f"model.transformer.blocks.{layer}.{theirs}.weight"] = (
                f"model.layers.{layer}.{ours}.weight"
            )
    assert sorted(names.values()) == sorted(tensors)
    return official.forward_by_hand(
        {theirs: config[ours] for theirs, ours in _FIELDS.items()},
        {theirs: tensors[ours] for theirs, ours in names.items()},
        ids,
    )
