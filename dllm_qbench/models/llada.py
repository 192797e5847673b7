"""LLaDA as a native transformers model: no remote code.

Notable:
- thin subclasses of the Llama classes: LLaDA *is* Llama's block with attention that looks both
  ways;
- bidirectional by construction, however its layers are called (``bidirectional.py``);
- RoPE in float32 whatever the model's dtype (LLaDA's ``rope_full_precision``): bf16 parity needs
  it;
- the official config spelling (``d_model`` ...) and transformers' (``hidden_size`` ...) are both
  read, and a size that neither spells is an error: a silent 4096-wide default would load anything.

Shapes: B batch, T tokens, H heads, E head width.
Source: Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992) and its released
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.bidirectional import BidirectionalAttention, WideRMSNorm, turned

# Official spelling -> transformers' spelling. The sizes come first: they have no safe default.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "mlp_hidden_size": "intermediate_size",
}
_OTHERS = {
    "n_kv_heads": "num_key_value_heads",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "weight_tying": "tie_word_embeddings",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
}
# Switches of the official code that change the arithmetic, and the only value this class computes.
_FIXED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
}


class LladaConfig(LlamaConfig):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Configuration of :class:`LladaForMaskedDiffusion`; build it with :meth:`from_official`."""

    model_type = "llada"
    is_causal: bool = False
    mask_token_id: int | None = None
    synthetic: str | None = None  # how random weights were drawn; a trained checkpoint has none

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], where: str = "config.json") -> LladaConfig:
        """Read a config dict in either spelling.

        Raises:
            CheckpointError: a size is missing or not a positive integer, the mask token is
                missing, or a switch asks for arithmetic that LLaDA does not use; names ``where``
                and the field.
        """
        known = {name for pair in _SIZES.items() for name in pair}
        for field, value in _FIXED.items():
            if raw.get(field, value) not in (value, None):
                raise CheckpointError(
                    f"{where}: field {field!r} is {raw[field]!r};"
                    f" this LLaDA class computes only {value!r}"
                )
        values: dict[str, Any] = {}
        for official, ours in _SIZES.items():
            value = raw.get(official, raw.get(ours))
            if not isinstance(value, int) or value <= 0:
                raise CheckpointError(
                    f"{where}: field {official!r} (or {ours!r}) must be a positive integer,"
                    f" found {value!r};"
                    f" known spellings of the sizes: {', '.join(sorted(known))}"
                )
            values[ours] = value
        for official, ours in _OTHERS.items():
            value = raw.get(official, raw.get(ours))
            if value is not None:
                values[ours] = value
        if not isinstance(values.get("mask_token_id"), int):
            raise CheckpointError(
                f"{where}: field 'mask_token_id' is missing:"
                " a masked diffusion model cannot run without it"
            )
        # The official embedding may be padded beyond the tokenizer's vocabulary.
        values["vocab_size"] = max(values["vocab_size"], int(raw.get("embedding_size") or 0))
        if not 0 <= values["mask_token_id"] < values["vocab_size"]:
            raise CheckpointError(
                f"{where}: field 'mask_token_id' must be a token id below vocab_size"
                f" {values['vocab_size']}, found {values['mask_token_id']}"
            )
        if values["hidden_size"] % values["num_attention_heads"]:
            raise CheckpointError(
                f"{where}: d_model {values['hidden_size']} is not a multiple of n_heads"
                f" {values['num_attention_heads']}"
            )
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        if values["num_attention_heads"] % values["num_key_value_heads"]:
            raise CheckpointError(
                f"{where}: n_heads {values['num_attention_heads']} is not a multiple of n_kv_heads"
                f" {values['num_key_value_heads']}"
            )
        theta = float(
            values.pop("rope_theta", None) or raw.get("rope_parameters", {}).get("rope_theta", 5e5)
        )
        values.setdefault("rms_norm_eps", 1e-5)
        values.setdefault("max_position_embeddings", 4096)
        mask_id = values.pop("mask_token_id")
        config = cls(
            **values,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            attention_bias=False,
            mlp_bias=False,
            use_cache=False,
        )
        config.mask_token_id = mask_id
        config.synthetic = raw.get("synthetic")
        config.is_causal = False
        return config

    def to_official(self) -> dict[str, Any]:
        """Return the config in the official spelling, as a checkpoint's ``config.json`` holds
        it.
        """
        values: dict[str, Any] = {
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            **_FIXED,
        }
        for official, ours in {**_SIZES, **_OTHERS}.items():
            if ours != "rope_theta":
                values[official] = getattr(self, ours, None)
        values["rope_theta"] = (self.rope_parameters or {})["rope_theta"]
        values["rope_full_precision"] = True
        if self.synthetic:
            values["synthetic"] = self.synthetic
        return values


class _FullPrecisionRotary(LlamaRotaryEmbedding):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Cosines and sines stay float32: casting them to bf16 moves long positions visibly."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 cosines and sines ``[B, T, E]``."""
        cos, sin = super().forward(x.float(), position_ids)
        return cos, sin


class LladaRMSNorm(WideRMSNorm, LlamaRMSNorm):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """RMSNorm with statistics in float32, or in float64 where the model runs in it."""


class LladaAttention(BidirectionalAttention, LlamaAttention):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Multi-head attention without a causal mask, grouped key/value heads allowed."""

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
        """Apply RoPE in float32 at least, and return the input's dtype."""
        half_precision = x_BHTE.dtype in (torch.float16, torch.bfloat16)
        wide = x_BHTE.float() if half_precision else x_BHTE
        return turned(wide, cos_BTE, sin_BTE).to(x_BHTE.dtype)


class LladaForMaskedDiffusion(LlamaForCausalLM):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """LLaDA: row i of the logits scores token i (no shift)."""

    config_class = LladaConfig

    def __init__(self, config: LladaConfig) -> None:
        super().__init__(config)
        self.model.rotary_emb = _FullPrecisionRotary(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = LladaAttention(config, index)
            layer.input_layernorm = LladaRMSNorm(config.hidden_size, config.rms_norm_eps)
            layer.post_attention_layernorm = LladaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.model.norm = LladaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]


EMBEDDING, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
_TOP = {
    EMBEDDING: "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
# ``ff_out`` names each block's down projection AND the LM head: the prefix decides, never the bare
# name.
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


def official_names(config: LladaConfig) -> dict[str, str]:
    """Map every official tensor name of this config to the native parameter name.

    LLaDA-8B has 291 of them; a tied model has no ``model.transformer.ff_out.weight``.
    """
    names = dict(_TOP)
    if config.tie_word_embeddings:
        del names[HEAD]
    for index in range(config.num_hidden_layers):
        for official, ours in _BLOCK.items():
            names[f"model.transformer.blocks.{index}.{official}.weight"] = (
                f"model.layers.{index}.{ours}.weight"
            )
    return names


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linears inside the blocks by name, in forward order: what a scheme quantizes."""
    order = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    layers: dict[str, nn.Module] = {}
    for index in range(len(model.model.layers)):  # type: ignore[union-attr, arg-type]
        for name in order:
            full = f"model.layers.{index}.{name}"
            layers[full] = model.get_submodule(full)
    return layers
