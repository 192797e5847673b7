"""Checkpoints of random weights in the official formats, at any size.

They prove what trained weights are not needed for: that the real sizes load, quantize and run, in how
much time and memory. Their config says that they are random (``synthetic``), so that nobody takes one
for a released model.

Notable:
- weights are drawn and written a piece at a time: an 8B checkpoint needs no memory to speak of;
- a tensor depends on the seed and on its name and shape alone, not on the number of shards;
- scales are those of a trained network at its start: outputs of linears and logits near unit size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import INDEX, MODELS, SINGLE, ModelSpec, find_model
from dllm_qbench.models.loading import architecture_of
from dllm_qbench.models.small_tokenizer import write_tokenizer
from dllm_qbench.seeding import derive

# What the released configs say beside the sizes in ``ModelSpec``.
_COMMON: dict[str, dict[str, Any]] = {
    "llada": {
        "max_sequence_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "eos_token_id": 126081,
        "pad_token_id": 126081,
    },
    "illada": {
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    "Dream": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
    },
}
# Which released model a bare architecture stands for.
_EXAMPLES = {"llada": "llada-8b-base", "illada": "illada-8b", "Dream": "dream-7b-base"}
# The small sizes keep what quantizers meet in the large ones: inputs that are multiples of 128, some of
# them no powers of two. Their vocabulary is small, with the special tokens in it.
_SMALL_IDS = {"mask_token_id": 5, "eos_token_id": 2, "pad_token_id": 2}
_SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("llada", "tiny"): {
        "d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 384,
        "vocab_size": 512, **_SMALL_IDS,
    },
    ("llada", "1b"): {
        "d_model": 2048, "n_layers": 16, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 6144,
        "vocab_size": 32768, **_SMALL_IDS,
    },
    ("illada", "tiny"): {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 384, "vocab_size": 512, **_SMALL_IDS,
    },
    ("illada", "1b"): {
        "hidden_size": 2048, "num_hidden_layers": 17, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 7168, "vocab_size": 32768, **_SMALL_IDS,
    },
    ("Dream", "tiny"): {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 384, "vocab_size": 512, **_SMALL_IDS,
        "bos_token_id": 1,
    },
    ("Dream", "1b"): {
        "hidden_size": 1536, "num_hidden_layers": 21, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8064, "vocab_size": 32768, **_SMALL_IDS,
        "bos_token_id": 1,
    },
}  # fmt: skip
_PIECE = 2**22  # numbers drawn at once: part of what a seed means, as the generator works in blocks
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Shapes = dict[str, tuple[int, ...]]


def official_config(
    model: str | ModelSpec | Mapping[str, Any], size: str | None = None, **overrides: Any
) -> dict[str, Any]:
    """Return a ``config.json`` in the official spelling.

    Args:
        model: a released model (name, hub id or spec), an architecture (``"llada"``, ``"illada"``,
            ``"Dream"``), or a whole config.
        size: ``"tiny"`` (milliseconds a forward pass), ``"1b"`` (about 10^9 parameters), or
            ``"8b"`` (the default): the released size.
        **overrides: fields that replace the config's, in its spelling.

    Raises:
        CheckpointError: an unknown model or size, or a config that cannot be.
    """
    if isinstance(model, Mapping):
        raw = dict(model)
        if size is not None:
            raise CheckpointError("size is for a model by name; a whole config has its own sizes")
    else:
        name = _EXAMPLES.get(model, model) if isinstance(model, str) else model.name
        spec = find_model(name)
        if spec is None:
            known = ", ".join([*MODELS, *_EXAMPLES])
            raise CheckpointError(f"{name!r}: no such model or architecture; known: {known}")
        raw = {"model_type": spec.architecture, **_COMMON[spec.architecture], **spec.sizes}
        if size not in (None, "8b"):
            if (spec.architecture, size) not in _SIZES:
                raise CheckpointError(f"size {size!r} is unknown; sizes are tiny, 1b and 8b")
            raw |= _SIZES[spec.architecture, str(size)]
    raw |= overrides
    return dict(_configured(raw).to_official())


def parameter_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return name and shape of every tensor that a checkpoint of this config holds, in order."""
    architecture = architecture_of(config, "config")
    with torch.device("meta"):
        model = architecture.model(_configured(config))
    own = dict(model.named_parameters())
    names = architecture.names(model.config)
    return {official: tuple(own[ours].shape) for official, ours in names.items()}


def write_checkpoint(
    folder: Path,
    model: str | ModelSpec | Mapping[str, Any],
    *,
    size: str | None = None,
    seed: int = 0,
    shards: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: Path | None = None,
    **overrides: Any,
) -> Path:
    """Write a checkpoint of random weights: config.json last, so that a folder without it is unfinished.

    Args:
        folder: made if it is not there.
        model, size, **overrides: see :func:`official_config`.
        seed: of the weights.
        shards: files; 1 writes ``model.safetensors``, more write an index, too.
        dtype: float32, float16 or bfloat16.
        tokenizer: a folder whose tokenizer files are copied.

    Returns:
        The folder.
    """
    if dtype not in _NAMES:
        raise CheckpointError(f"dtype {dtype}: weights are written as {', '.join(_NAMES.values())}")
    config = official_config(model, size, synthetic=f"seed {seed}", **overrides)
    shapes = parameter_shapes(config)
    if not 1 <= shards <= len(shapes):
        raise CheckpointError(f"shards must lie in 1..{len(shapes)}, the tensors; found {shards}")
    folder.mkdir(parents=True, exist_ok=True)
    depth = 2 * sum(
        name.endswith("q_proj.weight") for name in shapes
    )  # branches of the residual stream
    parts = _split(shapes, shards)
    files = [
        SINGLE if shards == 1 else f"model-{at:05d}-of-{shards:05d}.safetensors"
        for at in range(1, shards + 1)
    ]
    for file, part in zip(files, parts, strict=True):
        _write(folder / file, part, dtype, seed, depth)
    if shards > 1:
        width = torch.empty(0, dtype=dtype).element_size()
        total = sum(prod(shape) for shape in shapes.values()) * width
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        for path in sorted(tokenizer.iterdir()):
            if path.name not in ("config.json", INDEX) and path.suffix in (
                ".json",
                ".txt",
                ".jinja",
            ):
                (folder / path.name).write_bytes(path.read_bytes())
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def write_stand_ins(
    models_dir: Path, texts: Iterable[str] = (), seed: int = 0, vocabulary: int = 512
) -> dict[str, Path]:
    """Write a tiny stand-in for every released model, where :func:`dllm_qbench.models.hub.locate` finds it.

    Each has its model's architecture, format and special tokens, and weights of its own.

    Args:
        models_dir: gets one folder a model.
        texts: their tokenizers learn from these; without any they read bytes.
        seed: of all weights.
        vocabulary: tokens of each tokenizer, at most; more make shorter prompts.

    Returns:
        The folder of each model, by name.
    """
    texts = list(texts)
    made = {}
    for spec in MODELS.values():
        folder = models_dir / spec.hub_id.split("/")[-1]
        ids = write_tokenizer(
            folder, spec.architecture, texts, chat=spec.chat, vocabulary=vocabulary
        )
        # As in the released ones, the embedding has rows that no token uses.
        rows = -(-(max(ids.values()) + 1) // 64) * 64 + 64
        tokens: dict[str, Any] = {
            f"{role}_token_id": ids[role] for role in ("mask", "eos", "pad", "bos")
        }
        made[spec.name] = write_checkpoint(
            folder,
            spec,
            size="tiny",
            seed=derive(seed, "stand-in", spec.name),
            vocab_size=rows,
            **tokens,
        )
    return made


def draw(name: str, shape: tuple[int, ...], seed: int, depth: int) -> Iterator[Tensor]:
    """Yield a tensor's float32 values in pieces, flat.

    Args:
        name: its official name, which also says what it is.
        shape: ``[out, in]``, or ``[channels]`` of a norm or a bias.
        seed: the checkpoint's.
        depth: branches that add up in the residual stream.
    """
    generator = torch.Generator().manual_seed(derive(seed, "synthetic", name))
    mean, scale = _statistics(name, shape, depth)
    left = prod(shape)
    while left:
        yield torch.randn(min(left, _PIECE), generator=generator) * scale + mean
        left -= min(left, _PIECE)


def _statistics(name: str, shape: tuple[int, ...], depth: int) -> tuple[float, float]:
    """Return mean and standard deviation of a tensor's values."""
    if len(shape) == 1:
        return (0.0, 0.2) if name.endswith("bias") else (1.0, 0.1)
    spread = shape[-1] ** -0.5
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if leaf in ("embed_tokens", "wte", "lm_head") or name == "model.transformer.ff_out.weight":
        return 0.0, 2 * spread  # logits of size 2, from a head that may be the embedding
    if leaf in ("o_proj", "attn_out", "down_proj", "ff_out"):
        return 0.0, spread / depth**0.5  # so that the residual stream stays near unit size
    return 0.0, spread


def _configured(raw: Mapping[str, Any]) -> Any:
    return architecture_of(raw, "config").config(raw, "config")


def _split(shapes: Shapes, shards: int) -> list[Shapes]:
    """Cut the tensors, in order, into files of about equal size, none of them empty."""
    total = sum(prod(shape) for shape in shapes.values())
    parts: list[Shapes] = [{}]
    done = 0
    for at, (name, shape) in enumerate(shapes.items()):
        needed = len(shapes) - at  # each file still to come takes one tensor at least
        full = done >= total * len(parts) / shards
        if parts[-1] and len(parts) < shards and (full or needed <= shards - len(parts)):
            parts.append({})
        parts[-1][name] = shape
        done += prod(shape)
    return parts


def _write(path: Path, part: Shapes, dtype: torch.dtype, seed: int, depth: int) -> None:
    """Write a safetensors file piece by piece: the header's length, the header, all bytes in order."""
    width = torch.empty(0, dtype=dtype).element_size()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in part.items():
        end = at + prod(shape) * width
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in part.items():
            for piece_N in draw(name, shape, seed, depth):
                file.write(piece_N.to(dtype).view(torch.uint8).numpy().data)
    unfinished.replace(path)
