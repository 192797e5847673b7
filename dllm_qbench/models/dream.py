"""Dream as a native transformers model: no remote code.

Notable:
- thin subclasses of the Qwen2 classes: Dream *is* Qwen2.5's block (biases on q, k and v, grouped
  key/value heads) with attention that looks both ways; tensor names are Qwen2's own;
- **shifted logits**: row i of the forward predicts token i + 1, as in the autoregressive model that
  Dream was trained from. ``DiffusionLM.logits`` shifts them back; no row predicts token 0;
- bidirectional by construction, however its layers are called (``bidirectional.py``);
- RoPE in the model's dtype, unlike LLaDA's: its tables are computed in float32 and cast;
- a size that the config does not spell is an error: Qwen2's defaults would load anything.

Source: Ye et al., "Dream 7B: Diffusion Large Language Models" (arXiv 2508.15487) and its released
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RMSNorm

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.bidirectional import BidirectionalAttention, WideRMSNorm, turned

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
# Dream-7B's values where the config may leave a field out.
_OTHERS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
}
_THETA = 1e6
# Switches that change the arithmetic, and the only value this class computes.
_FIXED = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
}


class DreamConfig(Qwen2Config):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Configuration of :class:`DreamForMaskedDiffusion`; build it with :meth:`from_official`."""

    model_type = "Dream"
    is_causal: bool = False
    mask_token_id: int | None = None
    synthetic: str | None = None  # how random weights were drawn; a trained checkpoint has none

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], where: str = "config.json") -> DreamConfig:
        """Read a config dict: Qwen2's spelling and ``mask_token_id``.

        Raises:
            CheckpointError: a size is missing or not a positive integer, the mask token is missing
                or outside the vocabulary, or a switch asks for arithmetic that Dream does not use;
                names ``where`` and the field.
        """
        for field, value in _FIXED.items():
            if raw.get(field, value) not in (value, None):
                raise CheckpointError(
                    f"{where}: field {field!r} is {raw[field]!r};"
                    f" this Dream class computes only {value!r}"
                )
        values: dict[str, Any] = {field: raw.get(field) for field in _SIZES}
        for field, value in values.items():
            if not isinstance(value, int) or value <= 0:
                raise CheckpointError(
                    f"{where}: field {field!r} must be a positive integer, found {value!r}"
                )
        for size, heads in (
            ("hidden_size", "num_attention_heads"),
            ("num_attention_heads", "num_key_value_heads"),
        ):
            if values[size] % values[heads]:
                raise CheckpointError(
                    f"{where}: {size} {values[size]} is not a multiple of {heads} {values[heads]}"
                )
        mask_id = raw.get("mask_token_id")
        if not isinstance(mask_id, int) or not 0 <= mask_id < values["vocab_size"]:
            raise CheckpointError(
                f"{where}: field 'mask_token_id' must be a token id below vocab_size"
                f" {values['vocab_size']}, found {mask_id!r}:"
                " a masked diffusion model cannot run without it"
            )
        values |= {
            field: default if raw.get(field) is None else raw[field]
            for field, default in _OTHERS.items()
        }
        rope = raw.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(
                f"{where}: field 'rope_parameters' asks for rope_type {rope['rope_type']!r};"
                " this Dream class computes only 'default'"
            )
        theta = float(raw.get("rope_theta") or rope.get("rope_theta") or _THETA)
        config = cls(
            **values,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            use_sliding_window=False,
            use_cache=False,
        )
        config.mask_token_id = mask_id
        config.synthetic = raw.get("synthetic")
        config.is_causal = False
        return config

    def to_official(self) -> dict[str, Any]:
        """Return the config as a checkpoint's ``config.json`` holds it."""
        values: dict[str, Any] = {
            "architectures": ["DreamModel"],
            "model_type": "Dream",
            "mask_token_id": self.mask_token_id,
            "rope_theta": (self.rope_parameters or {})["rope_theta"],
            **_FIXED,
        }
        if self.synthetic:
            values["synthetic"] = self.synthetic
        return values | {field: getattr(self, field) for field in (*_SIZES, *_OTHERS)}


class DreamRMSNorm(WideRMSNorm, Qwen2RMSNorm):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """RMSNorm with statistics in float32, or in float64 where the model runs in it."""


class DreamAttention(BidirectionalAttention, Qwen2Attention):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Grouped-query attention with q/k/v biases, without a causal mask."""

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
        """Apply RoPE in the model's dtype, as the released model does."""
        return turned(x_BHTE, cos_BTE.to(x_BHTE.dtype), sin_BTE.to(x_BHTE.dtype))


class DreamForMaskedDiffusion(Qwen2ForCausalLM):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Dream: row i of this module's logits predicts token i + 1."""

    config_class = DreamConfig
    shifted_logits = True
    closed_targets = True  # its likelihood puts an end of text behind a target

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = DreamAttention(config, index)
            layer.input_layernorm = DreamRMSNorm(config.hidden_size, config.rms_norm_eps)
            layer.post_attention_layernorm = DreamRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.model.norm = DreamRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


def official_names(config: DreamConfig) -> dict[str, str]:
    """Map every official tensor name of this config to the native parameter name: they are equal.

    Dream-7B has 339 of them; a tied model has no ``lm_head.weight``.
    """
    names = [EMBEDDING, "model.norm.weight"]
    if not config.tie_word_embeddings:
        names.append(HEAD)
    for index in range(config.num_hidden_layers):
        names += [f"model.layers.{index}.{leaf}" for leaf in _BLOCK]
    return {name: name for name in names}
