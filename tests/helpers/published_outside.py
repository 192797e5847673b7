"""Writes the checkpoints under tests/data/published with the libraries that people publish with.

Not part of any test run: a test reads what this wrote. Each library needs an environment of its own:

    pip install llmcompressor==0.14.0.1 auto-round==0.15.1
    python -m tests.helpers.published_outside all tests/data/published

Beside each checkpoint lie the logits (``logits.safetensors``) that the library's own dequantization
gives: llm-compressor's model as it stands in memory, with its quantized forward; for auto-round the
functions that its own layers unpack with.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load, save
from dllm_qbench.quant.layers import target_names
from tests.helpers.tiny import tiny_dream, tiny_llada

REFERENCES = {"llada": "reference-llada", "dream": "reference-dream"}
CALIBRATION = (16, 32)  # sequences and their length

_GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
_LLM_COMPRESSOR: Mapping[str, dict[str, Any]] = {
    "llmcompressor-rtn-w4a16": {"model": "llada", "weights": {**_GROUPS, "symmetric": True}},
    "llmcompressor-rtn-w4a16-asym": {"model": "dream", "weights": {**_GROUPS, "symmetric": False}},
    "llmcompressor-rtn-w3a16": {
        "model": "llada",
        "weights": {"num_bits": 3, "type": "int", "strategy": "channel", "symmetric": False},
    },
    "llmcompressor-gptq-w4a16": {
        "model": "llada",
        "gptq": True,
        "weights": {**_GROUPS, "symmetric": True},
    },
    "llmcompressor-gptq-w8a8": {
        "model": "dream",
        "gptq": True,
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        "input_activations": {
            "num_bits": 8,
            "type": "int",
            "strategy": "token",
            "symmetric": True,
            "dynamic": True,
        },
    },
}
_AUTO_ROUND: Mapping[str, dict[str, Any]] = {
    "autoround-gptq-w4-sym": {"model": "llada", "format": "auto_gptq", "bits": 4, "sym": True},
    "autoround-gptq-w3-asym": {"model": "dream", "format": "auto_gptq", "bits": 3, "sym": False},
    "autoround-awq-w4-asym": {"model": "llada", "format": "auto_awq", "bits": 4, "sym": False},
    "autoround-w4-sym": {"model": "dream", "format": "auto_round", "bits": 4, "sym": True},
}
NAMES = (*_LLM_COMPRESSOR, *_AUTO_ROUND)


def write_references(folder: Path) -> None:
    """Write the two full-precision models, of weights that half precision holds exactly."""
    sizes = {"d_model": 64, "mlp_hidden_size": 96}
    dream = {"hidden_size": 64, "intermediate_size": 96}
    for kind, lm in (("llada", tiny_llada(7, **sizes)), ("dream", tiny_dream(7, **dream))):
        place = folder / REFERENCES[kind]
        shutil.rmtree(place, ignore_errors=True)
        save(lm, place, torch.float16)


def canvases(seed: int, rows: int, tokens: int) -> Tensor:
    """Random ids, none of them special."""
    return torch.randint(4, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def write_llm_compressor(name: str, folder: Path) -> None:
    """Quantize and save with llm-compressor."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    what = _LLM_COMPRESSOR[name]
    lm = load(folder / REFERENCES[what["model"]])
    group = {"targets": ["Linear"], "weights": what["weights"]}
    group["input_activations"] = what.get("input_activations")
    modifier = GPTQModifier if what.get("gptq") else QuantizationModifier
    recipe = modifier(ignore=["lm_head"], config_groups={"group_0": group})
    data: dict[str, Any] = {"pipeline": "datafree"}
    if what.get("gptq"):
        ids = canvases(0, *CALIBRATION)
        rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        data = {
            "dataset": Dataset.from_dict(rows),
            "num_calibration_samples": len(ids),
            "max_seq_length": ids.shape[1],
            "shuffle_calibration_samples": False,
            "pipeline": "basic",
        }
    plain = (folder / "plain").resolve()
    plain.mkdir(exist_ok=True)
    (plain / "config.json").write_text('{"model_type": "llama"}')  # it wants some model on disk
    lm.model.config._name_or_path = str(plain)
    processor = load("llada-embedded").tokenizer
    oneshot(model=lm.model, processor=processor, recipe=recipe, **data)
    logits = _logits(lm)
    lm.model.save_pretrained(folder / name, save_compressed=True)
    shutil.rmtree(plain)
    _keep(folder / name, logits)


def write_auto_round(name: str, folder: Path) -> None:
    """Quantize and save with auto-round, without its tuning."""
    from auto_round import AutoRound

    what = _AUTO_ROUND[name]
    lm = load(folder / REFERENCES[what["model"]])
    AutoRound(
        lm.model,
        load("llada-embedded").tokenizer,
        bits=what["bits"],
        group_size=32,
        sym=what["sym"],
        iters=0,
        disable_opt_rtn=True,
        device_map="cpu",
        amp=False,
    ).quantize_and_save(str(folder / "made"), format=what["format"])
    made = next((folder / "made").glob("**/config.json")).parent
    shutil.rmtree(folder / name, ignore_errors=True)
    made.rename(folder / name)
    shutil.rmtree(folder / "made")
    _keep(folder / name, _logits(_auto_round_own(name, folder)))


def _auto_round_own(name: str, folder: Path) -> DiffusionLM:
    """The full-precision model with the weights that auto-round's own layers unpack."""
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    lm = load(folder / REFERENCES[_AUTO_ROUND[name]["model"]])
    tensors = load_file(folder / name / "model.safetensors")
    stated = json.loads((folder / name / "config.json").read_text())["quantization_config"]
    awq = "awq" in stated["quant_method"] + stated.get("packing_format", "")
    names = target_names(lm.model)
    for layer in names:
        linear: Any = lm.model.get_submodule(layer)
        parts = {part: tensors.get(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales")}
        if awq:
            weight = dequantize_gemm(*parts.values(), 4, 32).float().T
        else:
            own = QuantLinear(stated["bits"], 32, linear.in_features, linear.out_features, False)
            for part, tensor in parts.items():
                setattr(own, part, tensor)
            weight = own(torch.eye(linear.in_features)).T
        linear.weight.copy_(weight)
        if linear.bias is not None:
            linear.bias.copy_(tensors[f"{layer}.bias"].float())
    for parameter, tensor in lm.model.named_parameters():
        if parameter in tensors and parameter.rpartition(".")[0] not in names:
            tensor.copy_(tensors[parameter].float())
    return lm


def _logits(lm: DiffusionLM) -> dict[str, Tensor]:
    ids = canvases(1, 3, 24)
    return {"ids": ids, "logits": lm.logits(ids).float().contiguous()}


def _keep(folder: Path, logits: Mapping[str, Tensor]) -> None:
    """Write the logits, and remove what a checkpoint does not need."""
    save_file(dict(logits), folder / "logits.safetensors.expected")
    kept = {"config.json", "model.safetensors", "logits.safetensors.expected"}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def main(which: str, folder: Path) -> None:
    """Write one checkpoint, or the references and all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    if which == "references":
        write_references(folder)
    elif which in _LLM_COMPRESSOR:
        write_llm_compressor(which, folder)
    else:
        write_auto_round(which, folder)


if __name__ == "__main__":
    target = Path(sys.argv[2])
    for given in ("references", *NAMES) if sys.argv[1] == "all" else sys.argv[1:2]:
        with torch.no_grad():
            main(given, target)
