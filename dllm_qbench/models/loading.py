"""Load official-format checkpoints: config.json, safetensors (one file or sharded), tokenizer
files.

Notable:
- nothing is unpickled and no remote code runs; every error names file and tensor;
- names, shapes, dtypes and counts are checked against the config before a weight is copied;
- weights are streamed: one tensor at a time is mapped, converted, put on the device and unmapped, so
  that loading takes the model and one tensor more, and a model never depends on its files afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.models import dream, illada, llada
from dllm_qbench.models.hub import EMBEDDED, INDEX, SINGLE, find_model, locate, read_json
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.tokenizer_files import load_tokenizer

__all__ = [
    "ARCHITECTURES",
    "EMBEDDED",
    "Architecture",
    "architecture_of",
    "load",
    "save",
    "usable_device",
]


@dataclass(frozen=True)
class Architecture:
    """What loading needs to know of a ``model_type``.

    Attributes:
        config: reads ``config.json`` (the dict, and where it is).
        model: the native class.
        names: config -> official tensor name -> native parameter name.
        embedding, head: official names of the two tensors that tying makes one.
    """

    config: Callable[[Mapping[str, Any], str], Any]
    model: Callable[[Any], Any]
    names: Callable[[Any], dict[str, str]]
    embedding: str
    head: str


ARCHITECTURES = {
    "llada": Architecture(
        llada.LladaConfig.from_official,
        llada.LladaForMaskedDiffusion,
        llada.official_names,
        llada.EMBEDDING,
        llada.HEAD,
    ),
    "illada": Architecture(
        illada.IlladaConfig.from_official,
        illada.IlladaForMaskedDiffusion,
        illada.official_names,
        illada.EMBEDDING,
        illada.HEAD,
    ),
    "Dream": Architecture(
        dream.DreamConfig.from_official,
        dream.DreamForMaskedDiffusion,
        dream.official_names,
        dream.EMBEDDING,
        dream.HEAD,
    ),
}
# safetensors' names of what may be a full-precision weight.
_FLOATS = ("F64", "F32", "F16", "BF16")


def load(
    name_or_folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    models_dir: Path | None = None,
) -> DiffusionLM:
    """Load a model by name or from a checkpoint folder.

    Args:
        name_or_folder: ``"llada-embedded"``, ``"dream-embedded"``, the name or hub id of a released model
            whose weights are on this machine, or a folder in the official format.
        dtype: the weights are converted to it, one at a time.
        device: where the model goes.
        models_dir: where released models are looked for first; see
            :func:`dllm_qbench.models.hub.locate`.

    Raises:
        MissingWeights: a released model that is not on this machine; says how to download it.
        CheckpointError: missing, truncated, inconsistent or unknown; names file and field or
            tensor.
        QBenchError: a device that torch does not know, or does not find on this machine.
    """
    place = usable_device(device)
    name = str(name_or_folder)
    folder = locate(name_or_folder, models_dir)
    raw = read_json(folder / "config.json")
    architecture = architecture_of(raw, str(folder / "config.json"))
    config = architecture.config(raw, str(folder / "config.json"))
    with torch.device("meta"):
        model = architecture.model(config)
    _fill(model, architecture, folder, dtype, place)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(place)
    spec = find_model(name)
    lm = DiffusionLM(
        model.train(False).requires_grad_(False),
        load_tokenizer(folder),
        int(config.mask_token_id),
        name if name in EMBEDDED else spec.name if spec is not None else folder.resolve().name,
    )
    lm.check_finite(str(folder))
    return lm


def architecture_of(raw: Mapping[str, Any], where: str) -> Architecture:
    """Return how a checkpoint of this config is read, or say which kinds there are."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{where}: field 'model_type' is {kind!r};"
            f" supported: {', '.join(map(repr, ARCHITECTURES))}"
        )
    return ARCHITECTURES[kind]


def save(lm: DiffusionLM, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a full-precision model in the official format: config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(lm.model.named_parameters())
    names = ARCHITECTURES[lm.config.model_type].names(lm.config)
    tensors = {
        official: parameters[ours].detach().to(dtype or lm.dtype).contiguous().cpu()
        for official, ours in names.items()
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    text = json.dumps(lm.config.to_official(), indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(str(folder))


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device on which a tensor can be made."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        why = str(error).strip().splitlines()[0]
        raise QBenchError(
            f"device {str(device)!r} cannot be used: {why}; this machine has"
            f" {torch.cuda.device_count()} CUDA device(s); 'cpu' always works"
        ) from error
    return place


def _shards(folder: Path) -> dict[str, Path]:
    """Return which file holds each tensor, read from the files' own headers."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: field 'weight_map' is missing or empty")
        if any(not isinstance(f, str) or Path(f).name != f for f in weight_map.values()):
            raise CheckpointError(f"{index}: field 'weight_map' must name files inside the folder")
        files = sorted(set(weight_map.values()))
    else:
        weight_map, files = None, [SINGLE]
    where: dict[str, Path] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise CheckpointError(
                f"{path}: file is missing; the checkpoint is incomplete, download it again"
            )
        with _open(path) as handle:
            for tensor in handle.keys():  # noqa: SIM118 (a safetensors handle is not a dict)
                if tensor in where:
                    raise CheckpointError(
                        f"{path}: tensor {tensor} is also in {where[tensor].name}"
                    )
                where[tensor] = path
    for tensor, file in (weight_map or {}).items():
        if where.get(tensor, Path()).name != file:
            raise CheckpointError(f"{index}: says that {tensor} is in {file}, but it is not there")
    return where


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error});"
            " it is truncated or corrupt, download it again"
        ) from error


def _fill(
    model: nn.Module,
    architecture: Architecture,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Copy every tensor into the meta-device model, after checking names, shapes and count."""
    names = architecture.names(model.config)
    where = _shards(folder)
    missing = [name for name in names if name not in where]
    unexpected = [name for name in where if name not in names]
    if architecture.head in unexpected and _repeats_embedding(architecture, where):
        unexpected.remove(architecture.head)  # a tied file may hold the shared matrix twice
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: the config asks for {len(names)} tensors, the files hold {len(where)};"
            f" missing {len(missing)}: {_some(missing)};"
            f" unexpected {len(unexpected)}: {_some(unexpected)}"
        )
    parameters = dict(model.named_parameters())
    files = {
        path: [name for name in names if where[name] == path]
        for path in sorted(set(where.values()))
    }
    for path, found in files.items():
        with _open(path) as handle:
            for official in found:
                _check(handle.get_slice(official), parameters[names[official]], path, official)
    for path, found in files.items():
        for official in found:
            # A handle maps its whole file, and what was read of it counts as this process's memory until the
            # map goes: hence one for each tensor. The copy is on purpose, too: without it a tensor that needs
            # no conversion would stay a view of the file, and change with it.
            with _open(path) as handle:
                tensor = handle.get_tensor(official).to(device=device, dtype=dtype, copy=True)
            owner, _, leaf = names[official].rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _check(header: Any, parameter: Tensor, path: Path, official: str) -> None:
    """Compare what a file says about a tensor with what the config asks for."""
    expected, found = list(parameter.shape), list(header.get_shape())
    if expected != found:
        raise CheckpointError(
            f"{path}: tensor {official} has shape {found}, the config asks for {expected}"
        )
    if header.get_dtype() not in _FLOATS:
        raise CheckpointError(
            f"{path}: tensor {official} holds {header.get_dtype()}, expected one of"
            f" {', '.join(_FLOATS)}: full-precision weights are loaded here, not quantized ones"
        )


def _repeats_embedding(architecture: Architecture, where: Mapping[str, Path]) -> bool:
    one, other = architecture.head, architecture.embedding
    if other not in where:
        return False
    with _open(where[one]) as head, _open(where[other]) as embedding:
        return torch.equal(head.get_tensor(one), embedding.get_tensor(other))


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown + (", ..." if len(names) > most else "")
