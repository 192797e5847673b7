"""What LLaDA and Dream change in the transformers classes that they are built on.

Notable:
- bidirectional by construction. ``config.is_causal = False`` reaches only the whole-model forward,
  so a calibrator that calls decoder layers one by one would run them causally without an error;
  here the attention module itself never applies a causal mask, however it is called;
- a rotation may act on queries and keys after RoPE (``query_key_rotation``): the scores do not change
  if it is orthogonal;
- norms keep float64 where the model runs in it, so that an equivalence can be checked to 1e-9.

Shapes: B batch, T tokens, D hidden, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The mixins stand in front of a transformers class, which is a module; at run time they add no base.
if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class BidirectionalAttention(_Base):
    """Attention without a causal mask, grouped key/value heads allowed: a mixin for Llama's and
    Qwen2's.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    num_key_value_groups: int
    scaling: float

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = False
        self.query_key_rotation: nn.Module | None = None

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
        """Apply rotary position embedding; each architecture has its own precision."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attend over all tokens that ``attention_mask`` admits.

        Args:
            hidden_states: ``[B, T, D]``.
            position_embeddings: cosines and sines, each ``[B or 1, T, E]``.
            attention_mask: ``None`` (all), ``[B, T]`` (1 = a real token) or ``[B, 1, T, T]`` (bool
                or additive).
            past_key_values: must stay ``None``; a bidirectional model has no cache of the past.
        """
        if position_embeddings is None:
            raise ValueError(
                f"{type(self).__name__} needs position_embeddings (cos, sin) from model.rotary_emb"
            )
        if past_key_values is not None:
            raise ValueError(
                "a masked diffusion model re-reads the whole canvas: it has no key/value cache"
            )
        B, T, _ = hidden_states.shape
        split = (B, T, -1, self.head_dim)
        q_BHTE = self.q_proj(hidden_states).view(split).transpose(1, 2)
        k_BKTE = self.k_proj(hidden_states).view(split).transpose(1, 2)
        v_BKTE = self.v_proj(hidden_states).view(split).transpose(1, 2)
        cos, sin = position_embeddings
        q_BHTE, k_BKTE = self.rotate(q_BHTE, cos, sin), self.rotate(k_BKTE, cos, sin)
        if self.query_key_rotation is not None:
            q_BHTE, k_BKTE = self.query_key_rotation(q_BHTE), self.query_key_rotation(k_BKTE)
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :].bool()
        out_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKTE.to(q_BHTE.dtype),
            v_BKTE,
            attn_mask=attention_mask,
            is_causal=False,
            scale=self.scaling,
            enable_gqa=self.num_key_value_groups > 1,
        )
        return self.o_proj(out_BHTE.transpose(1, 2).reshape(B, T, -1)), None


class WideRMSNorm(_Base):
    """RMSNorm with statistics in float32, or in float64 where the model runs in it: a mixin."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of ``[..., D]``."""
        wide = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden_states.dtype)


def turned(x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
    """Rotary position embedding in the dtype of its arguments (Su et al. 2021, eq. 34)."""
    half = x_BHTE.shape[-1] // 2
    swapped = torch.cat((-x_BHTE[..., half:], x_BHTE[..., :half]), dim=-1)
    return x_BHTE * cos_BTE.unsqueeze(1) + swapped * sin_BTE.unsqueeze(1)
