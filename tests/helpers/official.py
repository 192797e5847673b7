"""Checkpoints in LLaDA's official format, written without the package's own saver, and LLaDA's
forward by hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# One block's tensors, as the official LLaDA-8B checkpoint spells them.
BLOCK = (
    "attn_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "attn_out",
    "ff_norm",
    "ff_proj",
    "up_proj",
    "ff_out",
)


def official_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw random float32 tensors under the official names."""
    d, hidden, vocabulary = config["d_model"], config["mlp_hidden_size"], config["vocab_size"]
    kv = d * config["n_kv_heads"] // config["n_heads"]
    shapes = {
        "attn_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d),
        "attn_out": (d, d), "ff_norm": (d,), "ff_proj": (hidden, d), "up_proj": (hidden, d),
        "ff_out": (d, hidden),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    names: dict[str, tuple[int, ...]] = {"model.transformer.wte.weight": (vocabulary, d)}
    for index in range(config["n_layers"]):
        for name in BLOCK:
            names[f"model.transformer.blocks.{index}.{name}.weight"] = shapes[name]
    names["model.transformer.ln_f.weight"] = (d,)
    if not config["weight_tying"]:
        names["model.transformer.ff_out.weight"] = (vocabulary, d)
    made = {}
    for name, shape in names.items():
        noise = torch.randn(shape, generator=generator)
        made[name] = 1 + 0.1 * noise if len(shape) == 1 else noise * shape[-1] ** -0.5
    return made


def write_official(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1
) -> Path:
    """Write config.json and the tensors, in one file or sharded with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: t for i, (name, t) in enumerate(tensors.items()) if i % shards == shard}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def forward_by_hand(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """LLaDA's logits ``[T, V]`` for one row, written out in plain float64 torch from the paper's
    description.

    Shares nothing with the package: explicit loops over heads, explicit softmax, RoPE as complex
    rotations.
    """
    w = {name: t.double() for name, t in tensors.items()}
    heads, kv_heads = config["n_heads"], config["n_kv_heads"]
    width = config["d_model"] // heads
    T = len(ids)

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"])

    pair = torch.arange(width // 2, dtype=torch.float64)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * config["rope_theta"] ** (
        -2 * pair / width
    )
    turn = torch.polar(torch.ones_like(angle), angle)

    def rope(x: Tensor) -> Tensor:  # channel i turns with channel i + width/2
        turned = torch.complex(x[:, : width // 2], x[:, width // 2 :]) * turn
        return torch.cat((turned.real, turned.imag), dim=1)

    x = w["model.transformer.wte.weight"][ids]
    for index in range(config["n_layers"]):
        b = {name: w[f"model.transformer.blocks.{index}.{name}.weight"] for name in BLOCK}
        h = norm(x, b["attn_norm"])
        q, k, v = h @ b["q_proj"].T, h @ b["k_proj"].T, h @ b["v_proj"].T
        out = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            q_h = rope(q[:, head * width : (head + 1) * width])
            k_h = rope(k[:, shared * width : (shared + 1) * width])
            scores = q_h @ k_h.T / math.sqrt(width)  # every token sees every token
            out.append(scores.softmax(-1) @ v[:, shared * width : (shared + 1) * width])
        x = x + torch.cat(out, dim=1) @ b["attn_out"].T
        h = norm(x, b["ff_norm"])
        gate, up = h @ b["ff_proj"].T, h @ b["up_proj"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ b["ff_out"].T
    head_name = (
        "model.transformer.wte.weight"
        if config["weight_tying"]
        else "model.transformer.ff_out.weight"
    )
    return norm(x, w["model.transformer.ln_f.weight"]) @ w[head_name].T
