"""Checkpoints in Dream's official format, written without the package's own saver, and Dream's
forward by hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def official_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw random float32 tensors under the official names, in the order of the files."""
    d, hidden = config["hidden_size"], config["intermediate_size"]
    kv = d * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}."
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            shapes[f"{block}self_attn.{name}_proj.weight"] = (rows, d)
            shapes[f"{block}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{block}self_attn.o_proj.weight"] = (d, d)
        shapes[f"{block}mlp.gate_proj.weight"] = (hidden, d)
        shapes[f"{block}mlp.up_proj.weight"] = (hidden, d)
        shapes[f"{block}mlp.down_proj.weight"] = (d, hidden)
        shapes[f"{block}input_layernorm.weight"] = (d,)
        shapes[f"{block}post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            made[name] = 1 + 0.1 * noise
        elif name.endswith("bias"):
            made[name] = noise  # as large as what the weights give: a lost bias cannot hide
        else:
            made[name] = noise * shape[-1] ** -0.5
    return made


def forward_by_hand(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Dream's logits ``[T, V]`` for one row, row i scoring token i, in plain float64 torch.

    Shares nothing with the package: explicit loops over heads, explicit softmax, RoPE as complex
    rotations. Row 0 is NaN: nothing predicts token 0.
    """
    w = {name: t.double() for name, t in tensors.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    T = len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"])

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    pair = torch.arange(width // 2, dtype=torch.float64)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * config["rope_theta"] ** (
        -2 * pair / width
    )
    turn = torch.polar(torch.ones_like(angle), angle)

    def rope(x: Tensor) -> Tensor:  # channel i turns with channel i + width/2
        turned = torch.complex(x[:, : width // 2], x[:, width // 2 :]) * turn
        return torch.cat((turned.real, turned.imag), dim=1)

    x = w["model.embed_tokens.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}"
        h = norm(x, f"{block}.input_layernorm.weight")
        q, k, v = (linear(h, f"{block}.self_attn.{name}_proj") for name in "qkv")
        out = []
        for head in range(heads):
            mine = slice(head * width, (head + 1) * width)
            shared = head // (heads // kv_heads)
            theirs = slice(shared * width, (shared + 1) * width)
            # every token sees every token
            scores = rope(q[:, mine]) @ rope(k[:, theirs]).T / math.sqrt(width)
            out.append(scores.softmax(-1) @ v[:, theirs])
        x = x + linear(torch.cat(out, dim=1), f"{block}.self_attn.o_proj")
        h = norm(x, f"{block}.post_attention_layernorm.weight")
        gate, up = linear(h, f"{block}.mlp.gate_proj"), linear(h, f"{block}.mlp.up_proj")
        x = x + linear(gate * torch.sigmoid(gate) * up, f"{block}.mlp.down_proj")
    head_name = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    predictions = norm(x, "model.norm.weight") @ w[f"{head_name}.weight"].T
    shifted = torch.full_like(predictions, torch.nan)
    for row in range(T - 1):  # row i of the network is about token i + 1
        shifted[row + 1] = predictions[row]
    return shifted
