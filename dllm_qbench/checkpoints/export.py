"""Our quantized models in compressed-tensors format, for the libraries that read it.

Notable:
- scales are float32, as is usual. Of a model in half precision compressed-tensors dequantizes our weights
  bit by bit (after rounding to its data type); of one in float32 within a unit in the last place, since
  ours were made with scales in float64;
- codes are packed by compressed-tensors itself. 16-bit activations give ``pack-quantized``, 8 or 4 bits
  ``int-quantized``;
- tensors and ``config.json`` are named as the official checkpoints name them;
- activations: ours are rounded by absmax / q, the format does not say how. A field of our own does, which
  others do not look at (compressed-tensors' own modules take absmax / (q + 1/2), vLLM's kernels absmax / q);
- models that turn activations as they run (QuaRot, DuQuant) cannot be said in this format.

Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_qbench import __version__
from dllm_qbench.checkpoints.compressed_tensors import (
    INT,
    OWN_ACTIVATIONS,
    OWN_FIELD,
    PACKED,
    library,
)
from dllm_qbench.errors import CheckpointError
from dllm_qbench.kernels.packing import unpack_codes
from dllm_qbench.models.hub import SINGLE
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import ARCHITECTURES
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.scheme import Scheme


def export_compressed_tensors(lm: DiffusionLM, folder: Path) -> None:
    """Write a quantized model as one safetensors file, config.json and tokenizer files.

    Args:
        lm: quantized by a method that leaves activations' directions alone, under one scheme.
        folder: where to; made, with its parents. It must not be there yet, or be empty.

    Raises:
        CheckpointError: full precision, a layer that the format cannot hold (names it and says why), or a
            folder that holds something.
        QBenchError: compressed-tensors is not installed.
    """
    folder = Path(folder)
    if lm.recipe is None:
        raise CheckpointError(f"{lm.name} is not quantized: nothing to export")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already there; name a new folder, or remove this one")
    scheme = Scheme.parse(str(lm.recipe["scheme"]))
    tensors, symmetric = _tensors(lm, scheme)
    config = {
        **lm.config.to_official(),
        "torch_dtype": str(lm.dtype).removeprefix("torch."),
        "quantization_config": _config(lm, scheme, symmetric),
    }
    beside = folder.parent / f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
    beside.mkdir(parents=True)
    try:
        save_file(tensors, beside / SINGLE, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
        (beside / "config.json").write_text(text + "\n", encoding="utf-8")
        if lm.tokenizer is not None:
            lm.tokenizer.save_pretrained(str(beside))
        os.replace(beside, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone, if it became the folder


def _tensors(lm: DiffusionLM, scheme: Scheme) -> tuple[dict[str, Tensor], bool]:
    """Return all tensors by official names, and whether the weights' grids are symmetric."""
    for name, module in lm.model.named_modules():
        if getattr(module, "query_key_rotation", None) is not None:
            raise CheckpointError(
                f"{name}: queries and keys are rotated as the model runs, which {_NOT}"
            )
    quantized = {n: m for n, m in lm.model.named_modules() if isinstance(m, QuantLinear)}
    own = dict(lm.model.named_parameters())
    tensors: dict[str, Tensor] = {}
    kinds: set[bool] = set()
    for official, ours in ARCHITECTURES[lm.config.model_type].names(lm.config).items():
        module, _, part = ours.rpartition(".")
        layer = quantized.get(module)
        if layer is not None and part == "weight":
            prefix = official.rpartition(".")[0]
            try:
                made = layer_tensors(layer, scheme)
            except CheckpointError as error:
                raise CheckpointError(f"{module}: {error}") from error
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in made.items()}
            kinds.add(bool(layer.symmetric))
        elif layer is not None:
            assert layer.bias is not None
            tensors[official] = layer.bias
        else:
            tensors[official] = own[ours]
    if len(kinds) != 1:
        raise CheckpointError(
            f"{lm.name}: symmetric and asymmetric grids side by side, which {_NOT}"
            if kinds
            else f"{lm.name}: no linear is quantized"
        )
    return {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, kinds.pop()


_NOT = "compressed-tensors' integer formats cannot say"


def layer_tensors(layer: QuantLinear, scheme: Scheme) -> dict[str, Tensor]:
    """Return a layer's tensors by the names that the format gives them.

    Raises:
        CheckpointError: the format cannot hold the layer.
    """
    if layer.scheme != scheme:
        raise CheckpointError(f"it is quantized under {layer.scheme}, the recipe says {scheme}")
    for what, given in (
        ("a transform of its inputs", layer.transform is not None),
        ("a rotation of its outputs", layer.output_rotation is not None),
        ("activations that are clipped", layer.act_clip != 1),
        ("weights of 16 bits", not scheme.quantizes_weights),
    ):
        if given:
            raise CheckpointError(f"it has {what}, which {_NOT}")
    if scheme.group is not None and layer.in_features % scheme.group:
        raise CheckpointError(
            f"its {layer.in_features} inputs are no whole groups of {scheme.group}, which {_NOT}"
        )
    stored, bits = layer.stored(), scheme.weight_bits
    codes_OI = unpack_codes(stored.codes, bits, stored.size, stored.symmetric).cpu()
    zero_OG = None
    if not stored.symmetric:
        assert layer.zero is not None
        middle = 2 ** (bits - 1)
        codes_OI = codes_OI - middle
        zero_OG = (layer.zero.cpu().round().to(torch.int32) - middle).to(torch.int8)
    signed_OI = codes_OI.to(torch.int8)
    made = {"weight_scale": stored.scale.float()}
    if scheme.quantizes_activations:
        made["weight"] = signed_OI
    else:
        made["weight_packed"] = library().pack_to_int32(signed_OI, bits)
        made["weight_shape"] = torch.tensor(signed_OI.shape)
        if zero_OG is not None:
            zero_OG = library().pack_to_int32(zero_OG, bits, packed_dim=0)
    if zero_OG is not None:
        made["weight_zero_point"] = zero_OG
    return made


def _config(lm: DiffusionLM, scheme: Scheme, symmetric: bool) -> dict[str, Any]:
    """Return what config.json says of the quantization."""
    kind = INT if scheme.quantizes_activations else PACKED
    weights = {
        "num_bits": scheme.weight_bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    inputs = None
    if scheme.quantizes_activations:
        inputs = {
            "num_bits": scheme.act_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "group_size": None,
            "dynamic": True,
        }
    recipe = dict(lm.recipe or {})
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
                "format": kind,
            }
        },
        "ignore": _not_quantized(lm),
        "kv_cache_scheme": None,
        OWN_FIELD: {
            "version": __version__,
            "method": recipe["method"],
            "scheme": str(scheme),
            "activations": OWN_ACTIVATIONS,
        },
    }


def _not_quantized(lm: DiffusionLM) -> list[str]:
    """Return every other module by its official name, norms too: converters that see names only would
    take them for linears.
    """
    quantized = {n for n, m in lm.model.named_modules() if isinstance(m, QuantLinear)}
    names = ARCHITECTURES[lm.config.model_type].names(lm.config)
    modules = {theirs.rpartition(".")[0]: ours.rpartition(".")[0] for theirs, ours in names.items()}
    return [theirs for theirs, ours in modules.items() if ours not in quantized]
