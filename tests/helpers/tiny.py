"""A tiny random LLaDA and Dream, for tests that need a model's structure but not its skill."""

from __future__ import annotations

from typing import Any

import torch

from dllm_qbench.models import dream, llada
from dllm_qbench.models.lm import DiffusionLM


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """Return a config in the official spelling: 2 layers, width 32, 4 heads, 64 tokens."""
    raw: dict[str, Any] = {
        "model_type": "llada",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 48,
        "vocab_size": 64,
        "max_sequence_length": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "weight_tying": False,
        "mask_token_id": 3,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return raw | overrides


def tiny_llada(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> DiffusionLM:
    """Return a random model; weights are drawn wide enough that its logits differ clearly."""
    config = llada.LladaConfig.from_official(tiny_config(**overrides))
    return _randomised(llada.LladaForMaskedDiffusion(config), seed, dtype)


def tiny_dream_config(**overrides: Any) -> dict[str, Any]:
    """Return a config as Dream's checkpoints spell it: 2 layers, width 32, 4 heads on 2, 64
    tokens.
    """
    raw: dict[str, Any] = {
        "model_type": "Dream",
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "mask_token_id": 3,
        "max_position_embeddings": 64,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 64,
    }
    return raw | overrides


def tiny_dream(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> DiffusionLM:
    """Return a random model with biases that matter; its logits are shifted."""
    config = dream.DreamConfig.from_official(tiny_dream_config(**overrides))
    return _randomised(dream.DreamForMaskedDiffusion(config), seed, dtype)


def _randomised(model: Any, seed: int, dtype: torch.dtype) -> DiffusionLM:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                noise = 1 + 0.1 * noise
            elif not name.endswith("bias"):
                noise = 0.15 * noise
            parameter.copy_(noise)
    mask_id = int(model.config.mask_token_id)
    return DiffusionLM(model.to(dtype).eval().requires_grad_(False), None, mask_id, "tiny")
