"""iLLaDA as a native transformers model: no remote code.

Notable:
- LLaDA's block with fewer key/value heads and one matrix for embedding and head, but a checkpoint
  format of its own: ``model_type illada``, sizes and tensor names in transformers' spelling;
- RoPE in the model's dtype, unlike LLaDA's float32: its tables are computed in float32 and cast;
- the released config names no mask token. It is 5, ``<[MASK]>``, as the release's README says;
- a size, a norm's epsilon or RoPE's base that the config does not spell is an error, never a default.

Source: Nie et al., "Improved Large Language Diffusion Models" (arXiv 2606.25331), its model card and
its released modelling code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.bidirectional import turned
from dllm_qbench.models.llada import LladaAttention, LladaConfig, LladaForMaskedDiffusion

MASK_ID = 5
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "vocab_size",
)
_OTHERS = ("tie_word_embeddings", "eos_token_id", "pad_token_id", "bos_token_id")
# Switches that change the arithmetic, and the only value this class computes.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "layer_norm_eps": None,  # a number would ask for LayerNorm instead of RMSNorm
    "mlp_bias": False,
}


class IlladaConfig(LladaConfig):
    """Configuration of :class:`IlladaForMaskedDiffusion`; build it with :meth:`from_official`."""

    model_type = "illada"

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], where: str = "config.json") -> IlladaConfig:
        """Read a config dict in transformers' spelling.

        Raises:
            CheckpointError: a field is missing or unusable; names ``where`` and the field.
        """
        for field, value in _FIXED.items():
            if raw.get(field, value) not in (value, None):
                raise CheckpointError(
                    f"{where}: field {field!r} is {raw[field]!r};"
                    f" this iLLaDA class computes only {value!r}"
                )
        rope = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(
                f"{where}: RoPE is scaled ({rope}); this iLLaDA class computes only 'default'"
            )
        found = {field: raw.get(field, rope.get(field)) for field in _REQUIRED}
        missing = [field for field, value in found.items() if value is None]
        if missing:
            raise CheckpointError(f"{where}: field {missing[0]!r} is missing")
        found |= {field: raw[field] for field in _OTHERS if raw.get(field) is not None}
        # transformers leaves the field out of a saved config where it is True.
        found.setdefault("tie_word_embeddings", True)
        mask_id = raw.get("mask_token_id")
        found["mask_token_id"] = MASK_ID if mask_id is None else mask_id
        found["synthetic"] = raw.get("synthetic")
        config = super().from_official(found, where)
        assert isinstance(config, cls)
        return config

    def to_official(self) -> dict[str, Any]:
        """Return the config as a checkpoint's ``config.json`` holds it."""
        values: dict[str, Any] = {
            "architectures": ["ILLaDAForCausalLM"],
            "model_type": "illada",
            "rope_scaling": None,
            **_FIXED,
        }
        for field in (*_REQUIRED, *_OTHERS):
            if field != "rope_theta":
                values[field] = getattr(self, field, None)
        values["rope_theta"] = (self.rope_parameters or {})["rope_theta"]
        if self.mask_token_id != MASK_ID:
            values["mask_token_id"] = self.mask_token_id
        if self.synthetic:
            values["synthetic"] = self.synthetic
        return values


class IlladaAttention(LladaAttention):
    """Grouped-query attention without a causal mask or biases."""

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
        """Apply RoPE in the model's dtype, as the released model does."""
        return turned(x_BHTE, cos_BTE.to(x_BHTE.dtype), sin_BTE.to(x_BHTE.dtype))


class IlladaForMaskedDiffusion(LladaForMaskedDiffusion):
    """iLLaDA: row i of the logits scores token i (no shift)."""

    config_class = IlladaConfig

    def __init__(self, config: IlladaConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = IlladaAttention(config, index)
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


def official_names(config: IlladaConfig) -> dict[str, str]:
    """Map every official tensor name of this config to the native parameter name: they are equal.

    iLLaDA-8B has 290 of them: its head is the embedding.
    """
    names = [EMBEDDING, "model.norm.weight"]
    if not config.tie_word_embeddings:
        names.append(HEAD)
    for index in range(config.num_hidden_layers):
        names += [f"model.layers.{index}.{leaf}" for leaf in _BLOCK]
    return {name: name for name in names}
