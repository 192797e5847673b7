"""A tiny random LLaDA, for tests that need a model's structure but not its skill."""

from __future__ import annotations

from typing import Any

import torch

from dllm_qbench.models import llada
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
    model = llada.LladaForMaskedDiffusion(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    return DiffusionLM(
        model.to(dtype).eval().requires_grad_(False), None, int(config.mask_token_id or 0), "tiny"
    )
