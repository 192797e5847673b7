"""Quantized models on disk: packed codes, everything that they need, and how they were made.

::

    config.json                 the model's, in the official spelling
    recipe.json                 format, name, recipe, layers, rotations, files with size and sha256
    top.safetensors             embeddings, last norm, LM head, rotations
    block-00000.safetensors     one file a block: codes, scales, norms, biases
    tokenizer files             where the model has any

Notable:
- what is loaded is what was saved, bit by bit, or saving is an error that names the layer
  (``quant/stored_grid.py``); 16-bit weights are stored as they are;
- a model is loaded to run either way, however it ran when it was saved: packed, no float weight is made
  on the way;
- written into a folder beside, which then takes its name: there is the whole checkpoint or none;
- block by block in both directions: memory is the model's and one block's;
- safetensors and JSON only. A truncated, corrupt or foreign file is an error that names file and field.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import read_json
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import architecture_of, usable_device
from dllm_qbench.models.tokenizer_files import load_tokenizer
from dllm_qbench.quant.layers import QuantLinear, blocks
from dllm_qbench.quant.packed import PackedLinear, checked_execution
from dllm_qbench.quant.stored_layers import Rotations, layer_from, layer_record

FORMAT = "dllm_qbench quantized checkpoint, 1"
RECIPE, CONFIG, TOP = "recipe.json", "config.json", "top.safetensors"
_BLOCK = "block-{:05d}.safetensors"


def save_quantized(lm: DiffusionLM, folder: Path, source: str | None = None) -> None:
    """Write a quantized model.

    Args:
        lm: what ``quantize`` returned, fake or packed.
        folder: where to; made, with its parents. It must not be there yet, or be empty.
        source: the fingerprint of the full-precision model that it was made from, to be told later.

    Raises:
        CheckpointError: full precision, a folder that holds something, or a layer that cannot be
            given back bit by bit; names it.
    """
    folder = Path(folder)
    if lm.recipe is None:
        raise CheckpointError(
            f"{lm.name} is not quantized: nothing to pack; dllm_qbench.models.loading.save writes"
            " full precision"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already there; name a new folder, or remove this one")
    beside = folder.parent / f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
    beside.mkdir(parents=True)
    try:
        _write(lm, beside, source)
        os.replace(beside, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone, if it became the folder


def load_quantized(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    source: str | None = None,
    execution: str = "fake",
) -> DiffusionLM:
    """Read what :func:`save_quantized` wrote, bit by bit.

    Args:
        folder: the checkpoint.
        device: where the model goes, block by block.
        dtype: convert weights, biases and norms to it; then bits are others than those saved.
        source: the fingerprint that the full-precision model should have.
        execution: ``"packed"`` holds and multiplies the codes, see :func:`dllm_qbench.quantize`.

    Raises:
        CheckpointError: missing, truncated, corrupt or foreign, or made from another model; names
            file and field.
        QBenchError: a device that cannot be used, or an unknown execution.
    """
    packed = checked_execution(execution) == "packed"
    folder, place = Path(folder), usable_device(device)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of a quantized checkpoint")
    head = _Head(folder)
    if source is not None and head.raw.get("source") != source:
        raise CheckpointError(
            f"{head.path}: field 'source' is {head.raw.get('source')!r}; expected {source!r}: it was"
            " made from another full-precision model, quantize this one anew"
        )
    config_raw = read_json(folder / CONFIG)
    architecture = architecture_of(config_raw, str(folder / CONFIG))
    config = architecture.config(config_raw, str(folder / CONFIG))
    with torch.device("meta"):
        model = architecture.model(config)
    count = len(blocks(model))
    files = head.files(count)
    top = _read(folder / TOP, files[TOP], place)
    rotations = Rotations.read(head.list("rotations"), top, str(head.path))
    layers = head.mapping("layers")
    _fill(model, top, str(folder / TOP), inside="")
    for index in range(count):
        path = folder / _BLOCK.format(index)
        tensors = _read(path, files[path.name], place)
        where = f"model.layers.{index}."
        for name in [name for name in layers if name.startswith(where)]:
            place_of = f"{path}: layer {name}"
            layer = layer_from(layers[name], name, tensors, rotations, place_of, packed)
            _put(model, name, layer, str(head.path))
        _fill(model, tensors, str(path), inside=where)
    for name, number in head.mapping("query_key_rotations").items():
        attention = _module(model, name, str(head.path))
        attention.query_key_rotation = rotations.get(number, f"{head.path}: {name}")
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    left = [name for name, p in model.named_parameters() if p.is_meta]
    if left:
        raise CheckpointError(
            f"{folder}: no file holds {left[0]} ({len(left)} tensors are missing)"
        )
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(place)
    if dtype is not None:
        _convert(model, dtype)
    return DiffusionLM(
        model.train(False).requires_grad_(False),
        load_tokenizer(folder),
        int(config.mask_token_id),
        head.text("name"),
        head.mapping("recipe"),
    )


def _write(lm: DiffusionLM, folder: Path, source: str | None) -> None:
    _require_plain_rotary(lm.model)
    rotations, layers = Rotations(), {}
    quantized = {n: m for n, m in lm.model.named_modules() if isinstance(m, QuantLinear)}
    own = dict(lm.model.named_parameters())  # a tied head is named once
    files: dict[str, dict[str, Any]] = {}
    spent = weights = 0
    for index in range(len(blocks(lm.model))):
        where = f"model.layers.{index}."
        tensors: dict[str, Tensor] = {}
        for name, layer in quantized.items():
            if name.startswith(where):
                try:
                    layers[name], made = layer_record(layer, name, rotations)
                except CheckpointError as error:
                    raise CheckpointError(f"{name}: cannot be saved exactly: {error}") from error
                tensors |= made
                spent += layers[name]["weight_bytes"]
                weights += layer.in_features * layer.out_features
        tensors |= _plain(own, quantized, where)
        files[_BLOCK.format(index)] = _save(tensors, folder / _BLOCK.format(index))
    turns = {
        name: rotations.number(module.query_key_rotation)
        for name, module in lm.model.named_modules()
        if getattr(module, "query_key_rotation", None) is not None
    }
    outside = [name for name in quantized if not name.startswith("model.layers.")]
    if outside:
        raise CheckpointError(f"{outside[0]} is quantized, and no block holds it")
    top = _plain(own, quantized, "") | rotations.tensors
    files[TOP] = _save(top, folder / TOP)
    head = {
        "format": FORMAT,
        "name": lm.name,
        "source": source,
        "recipe": dict(lm.recipe or {}),
        "bits_per_weight": round(8 * spent / max(1, weights), 4),
        "layers": layers,
        "rotations": rotations.records,
        "query_key_rotations": turns,
        "files": files,
    }
    _json(lm.config.to_official(), folder / CONFIG)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(str(folder))
    _json(head, folder / RECIPE)


def _require_plain_rotary(model: Any) -> None:
    """Position frequencies are not stored: they have to be those that the config gives."""
    found = model.model.rotary_emb.inv_freq
    expected = type(model.model.rotary_emb)(model.config).inv_freq
    if found.dtype != expected.dtype or not torch.equal(found.cpu(), expected.cpu()):
        raise CheckpointError(
            f"model.rotary_emb: its frequencies ({found.dtype}) are not those of the config; do not"
            " cast the whole model (model.to(dtype)), load it with dtype="
        )


def _plain(
    parameters: Mapping[str, Tensor], quantized: Mapping[str, QuantLinear], where: str
) -> dict[str, Tensor]:
    """Return what is stored as it is: of one block, or of no block (``where`` empty)."""
    inside = "model.layers."
    return {
        name: p
        for name, p in parameters.items()
        if (name.startswith(where) if where else not name.startswith(inside))
        and name.rpartition(".")[0] not in quantized
    }


def _save(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write a file and return what tells it from a damaged one."""
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _read(path: Path, known: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing; the checkpoint is incomplete")
    size = path.stat().st_size
    if size != known.get("bytes"):
        raise CheckpointError(
            f"{path}: {size} bytes; {RECIPE} says {known.get('bytes')}: it is truncated or replaced"
        )
    if _digest(path) != known.get("sha256"):
        raise CheckpointError(f"{path}: its sha256 is not the one in {RECIPE}: it is corrupt")
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name).to(device, copy=True) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _json(value: Mapping[str, Any], path: Path) -> None:
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be written as JSON ({error})") from error
    path.write_text(text + "\n", encoding="utf-8")


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str, inside: str) -> None:
    """Put the plain tensors of a file in place."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith(("rotations.", "layer:")):  # read by those who know what they are
            continue
        if name not in parameters or (bool(inside) != name.startswith("model.layers.")):
            raise CheckpointError(f"{where}: tensor {name} belongs to no part of this model")
        if tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, the config asks for"
                f" {list(parameters[name].shape)}"
            )
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _put(model: nn.Module, name: str, layer: QuantLinear, where: str) -> None:
    linear = _module(model, name, where)
    found = [layer.out_features, layer.in_features]
    expected = list(linear.weight.shape) if isinstance(linear, nn.Linear) else "no linear there"
    if found != expected:
        raise CheckpointError(
            f"{where}: layer {name} has shape {found}, the config asks for {expected}"
        )
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)


def _module(model: nn.Module, name: str, where: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(f"{where}: {name} is no part of this model") from error


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert what computes; grids and rotations stay as exact as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.read_in(dtype)
        if isinstance(module, QuantLinear):
            for side in ("input_scale", "output_scale"):
                factor = getattr(module, side)
                setattr(module, side, None if factor is None else factor.to(dtype))


class _Head:
    """``recipe.json``, field by field."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECIPE
        self.raw = read_json(self.path)
        if self.raw.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: field 'format' is {self.raw.get('format')!r}; expected {FORMAT!r}: not"
                " a checkpoint that this version wrote"
            )

    def text(self, field: str) -> str:
        value = self._typed(field, str)
        assert isinstance(value, str)
        return value

    def mapping(self, field: str) -> dict[str, Any]:
        value = self._typed(field, dict)
        assert isinstance(value, dict)
        return value

    def list(self, field: str) -> list[Any]:
        value = self._typed(field, list)
        assert isinstance(value, list)
        return value

    def files(self, count: int) -> dict[str, Mapping[str, Any]]:
        """Return what is known of each file, of which there must be one a block and one more."""
        found = self.mapping("files")
        expected = {TOP, *(_BLOCK.format(index) for index in range(count))}
        if set(found) != expected or not all(isinstance(v, dict) for v in found.values()):
            raise CheckpointError(
                f"{self.path}: field 'files' names {len(found)} files; a model of {count} blocks has"
                f" {TOP} and {_BLOCK.format(0)} to {_BLOCK.format(count - 1)}"
            )
        return found

    def _typed(self, field: str, kind: type) -> Any:
        value = self.raw.get(field)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{self.path}: field {field!r} must be a JSON {kind.__name__}, found {value!r:.60}"
            )
        return value
