"""``read_checkpoint``: a quantized checkpoint on disk as a quantized model beside its full precision.

Notable:
- the format is what the configuration says (``quant_method``), and our own where there is a
  ``recipe.json`` that says so;
- everything is read from the checkpoint, norms and embeddings too: methods move scales into them;
- what the files leave at 16 bits stays a plain linear, for the coverage audit to name it;
- the model must be the reference's: sizes, positions and epsilon by the config, embeddings by value;
- what a method moved into norms and neighbours is found again (``quant/folded.py``), so that each layer's own
  error can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.checkpoints import awq, compressed_tensors, gptq
from dllm_qbench.checkpoints.codes import Published
from dllm_qbench.checkpoints.files import TensorFiles
from dllm_qbench.checkpoints.stated import FIELD, Stated
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import read_json
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import architecture_of
from dllm_qbench.quant.checkpoint import FORMAT, RECIPE, load_quantized
from dllm_qbench.quant.folded import follow_folding
from dllm_qbench.quant.layers import put, target_names

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Fields of the configuration that must be the reference's, by transformers' names.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "mask_token_id",
)
# Embeddings may have been rounded to half precision on the way: 2^-8 of their largest value at most.
_SAME_EMBEDDING = 2.0**-7


@dataclass(frozen=True)
class Format:
    """How a kind of checkpoint is read.

    Attributes:
        name: for the recipe.
        method: what its cells are called, other than any method that this package runs itself.
        layers: yields every quantized layer.
        symmetric: whether it says that its grids are symmetric.
    """

    name: str
    method: str
    layers: Callable[
        [Stated, TensorFiles, Mapping[str, tuple[int, int]]], Iterator[tuple[str, Published]]
    ]
    symmetric: Callable[[Stated], bool]


def _all_symmetric(stated: Stated) -> bool:
    return all(group.symmetric for group in compressed_tensors.groups(stated))


_COMPRESSED = Format("compressed-tensors", "ct-file", compressed_tensors.layers, _all_symmetric)
_GPTQ = Format("gptq", "gptq-file", gptq.layers, gptq.symmetric)
_AWQ = Format("awq", "awq-file", awq.layers, awq.symmetric)
FORMATS: Mapping[str, Format] = {
    "compressed-tensors": _COMPRESSED,
    "gptq": _GPTQ,
    "awq": _AWQ,
    "auto-round:auto_gptq": _GPTQ,
    "auto-round:auto_awq": _AWQ,
}


def read_checkpoint(
    folder: str | Path, reference: DiffusionLM, method: str | None = None
) -> DiffusionLM:
    """Read a quantized checkpoint.

    Args:
        folder: config.json, safetensors files, and what says how it is quantized.
        reference: the full-precision model that it was made from; what is read has its data type and
            device, its name and its tokenizer. Not changed.
        method: what to call the quantizer in cells; ``None`` takes what the checkpoint says, such as
            ``"gptq-file"``.

    Returns:
        A model whose quantized linears are ``QuantLinear`` with the file's own grid.

    Raises:
        CheckpointError: a format, or a part of one, that is not supported; a file that is missing,
            truncated or corrupt; a tensor that is missing or of the wrong shape; another model than the
            reference. Names file and field or tensor.
        QBenchError: compressed-tensors is needed and is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of a quantized checkpoint")
    if method is not None and (not method or "/" in method):
        raise CheckpointError(f"method {method!r}: expected a name without slashes")
    if (folder / RECIPE).is_file() and read_json(folder / RECIPE).get("format") == FORMAT:
        return _own(folder, reference, method)
    where = folder / "config.json"
    raw = read_json(where)
    architecture = architecture_of(raw, str(where))
    config = architecture.config(raw, str(where))
    _check_config(config, reference.config, str(where))
    stated, kind = _format(folder, raw)
    files = TensorFiles.of(folder, architecture.names(config))
    with torch.device("meta"):
        model = architecture.model(config)
    named = method or kind.method
    found, turned = _put_layers(model, kind, stated, files, named, reference)
    _fill(model, files, reference)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(reference.device)
    _require_same_embeddings(model, reference.model, files)
    scheme, counted = Counter(found.values()).most_common(1)[0]
    follow_folding(model, reference.model)
    recipe = {
        "method": named,
        "scheme": scheme,
        "symmetric": kind.symmetric(stated) and not turned,
        "parameters": {"format": kind.name, "layers": counted, **stated.parameters()},
        "calibration": None,
    }
    model = model.train(False).requires_grad_(False)
    return replace(reference, model=model, recipe=recipe, _fingerprint=None)


def _own(folder: Path, reference: DiffusionLM, method: str | None) -> DiffusionLM:
    """Read our own format."""
    lm = load_quantized(folder, reference.device, reference.dtype)
    _check_config(lm.config, reference.config, str(folder / "config.json"))
    recipe = dict(lm.recipe or {})
    if method is not None:
        recipe["method"] = method
    return replace(
        lm, name=reference.name, tokenizer=reference.tokenizer, recipe=recipe, _fingerprint=None
    )


def _check_config(found: Any, expected: Any, where: str) -> None:
    for field in _SAME:
        ours, theirs = getattr(found, field, None), getattr(expected, field, None)
        if ours != theirs:
            raise CheckpointError(
                f"{where}: field {field!r} is {ours!r}; the reference has {theirs!r}: not a checkpoint of"
                " this model"
            )


def _format(folder: Path, raw: Mapping[str, Any]) -> tuple[Stated, Format]:
    stated = Stated.of(folder, raw)
    if stated is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: field {FIELD!r} is missing, and so are quantize_config.json and"
            " quant_config.json: nothing says how the checkpoint is quantized"
        )
    # AutoGPTQ's and AutoAWQ's own files came before there was a quant_method.
    default = "awq" if "w_bit" in stated.raw else "gptq" if "desc_act" in stated.raw else None
    name = stated.get("quant_method", str, default)
    if name in ("auto-round", "intel/auto-round"):
        packing = stated.get("packing_format", str).removeprefix("auto_round:")
        name = f"auto-round:{packing}"
    if name not in FORMATS:
        raise CheckpointError(
            f"{stated.at('quant_method')} is {name!r}; read are {', '.join(FORMATS)}, and our own"
        )
    return stated, FORMATS[name]


def _put_layers(
    model: nn.Module,
    kind: Format,
    stated: Stated,
    files: TensorFiles,
    method: str,
    reference: DiffusionLM,
) -> tuple[dict[str, str], bool]:
    """Put every layer that the files hold quantized in its place.

    Return their schemes, and whether symmetric grids of some are turned around.
    """
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    found, turned = {}, False
    for name, published in kind.layers(stated, files, shapes):
        bias = _bias(model, files, name, shapes[name][0])
        try:
            layer = published.layer(bias, method, reference.dtype)
        except ValueError as error:
            raise CheckpointError(f"{files.place(name, 'g_idx')}: {error}") from error
        put(model, name, layer.to(reference.device))
        found[name] = str(published.scheme)
        turned |= published.turned
    if not found:
        raise CheckpointError(
            f"{files.folder}: no linear is quantized, and {stated.at('quant_method')} is"
            f" {stated.raw.get('quant_method')!r}; the tensors of {target_names(model)[0]} are"
            f" {', '.join(sorted(files.modules.get(target_names(model)[0], {}))) or 'missing'}"
        )
    return found, turned


def _bias(model: nn.Module, files: TensorFiles, name: str, outputs: int) -> Tensor | None:
    """Return a layer's bias; some writers give every layer one, of zeros where the model has none."""
    expected = model.get_submodule(name).bias is not None
    if not expected and not files.has(name, "bias"):
        return None
    bias = files.get(name, "bias", (outputs,), _FLOATS)
    if expected:
        return bias
    if bool(bias.any()):
        raise CheckpointError(
            f"{files.place(name, 'bias')} is not zero; the model's architecture has no bias there"
        )
    return None


def _fill(model: nn.Module, files: TensorFiles, reference: DiffusionLM) -> None:
    """Read what is not quantized; every parameter must be in the files, and nothing else."""
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    wanted: dict[str, set[str]] = {}
    for name, parameter in list(model.named_parameters()):
        module, _, part = name.rpartition(".")
        if not parameter.is_meta:
            wanted.setdefault(module, set())
            continue
        wanted.setdefault(module, set()).add(part)
        tensor = files.get(module, part, tuple(parameter.shape), _FLOATS)
        moved = tensor.to(device=reference.device, dtype=reference.dtype)
        setattr(model.get_submodule(module), part, nn.Parameter(moved, requires_grad=False))
    for module, parts in files.modules.items():
        if module not in wanted and not (tied and module == "lm_head"):
            part = sorted(parts)[0]
            raise CheckpointError(f"{files.place(module, part)} belongs to no part of this model")


def _require_same_embeddings(model: Any, reference: Any, files: TensorFiles) -> None:
    """Embeddings are quantized by none of these formats: others mean another, or a rotated, model."""
    found: Tensor = model.model.embed_tokens.weight
    expected: Tensor = reference.model.embed_tokens.weight
    most = float(expected.abs().max())
    apart = float((found.to(expected.device).float() - expected.float()).abs().max())
    if not apart <= _SAME_EMBEDDING * most:
        raise CheckpointError(
            f"{files.place('model.embed_tokens', 'weight')} is not the reference's (a value differs by"
            f" {apart:.3g}, the largest is {most:.3g}): the checkpoint was made from another model, or"
            " rotated, which cannot be compared layer by layer"
        )
