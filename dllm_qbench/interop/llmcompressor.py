"""llm-compressor: rounding to nearest, GPTQ and SmoothQuant.

Calibration runs in its sequential pipeline, which traces the model and calls its parts one after
another; the attention of this package's models looks both ways however it is called, and the audit
``calibration_contract`` watches that it did. Its AWQ asks for pinned memory, which torch has only beside
an accelerator. Its GPTQ takes columns in falling order of the Hessian's diagonal and counts every token
alike, where ours goes from left to right and caps massive tokens. Its default SmoothQuant smooths behind
the norms only; ours smooths before o_proj and down_proj as well.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm_qbench.interop.library import WithWeight, batches, foreign, group_for_all, need
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import put, target_names
from dllm_qbench.quant.scheme import Scheme

LIBRARY = "llmcompressor"
IGNORED = ["lm_head"]


@foreign("llmcompressor-rtn", LIBRARY, ("W4A16-g64",))
def rtn(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round to nearest."""
    kinds: Any = need("llmcompressor.modifiers.quantization", LIBRARY)
    recipe = [kinds.QuantizationModifier(config_groups=_groups(lm, scheme), ignore=IGNORED)]
    return apply(lm, recipe, None)


@foreign("llmcompressor-gptq", LIBRARY, ("W4A16-g64",))
def gptq(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round column by column, later columns making up for earlier ones' errors."""
    kinds: Any = need("llmcompressor.modifiers.quantization", LIBRARY)
    recipe = [kinds.GPTQModifier(config_groups=_groups(lm, scheme), ignore=IGNORED)]
    return apply(lm, recipe, calibration)


@foreign("llmcompressor-smoothquant", LIBRARY, ("W8A8",), transforms=True, smoothing_strength=0.5)
def smoothquant(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Divide norms' gains by outlier channels' scales, multiply the linears behind by them, round."""
    smooth: Any = need("llmcompressor.modifiers.smoothquant", LIBRARY)
    kinds: Any = need("llmcompressor.modifiers.quantization", LIBRARY)
    recipe = [smooth.SmoothQuantModifier(smoothing_strength=0.5)]
    if scheme.quantizes_weights:
        groups = _groups(lm, scheme)
        recipe.append(kinds.QuantizationModifier(config_groups=groups, ignore=IGNORED))
    return apply(lm, recipe, calibration)


def apply(lm: DiffusionLM, recipe: list[Any], calibration: Calibration | None) -> nn.Module:
    """Run llm-compressor's ``oneshot`` on ``lm.model`` with modifiers of its own.

    ``None`` for the calibration where none of the modifiers looks at any.
    """
    oneshot = need("llmcompressor", LIBRARY).oneshot
    _hush()
    config: Any = lm.model.config
    name: str = config._name_or_path
    data: dict[str, Any] = {}
    if calibration is not None:
        rows = [{"input_ids": i, "attention_mask": m} for i, m in batches(calibration)]
        data["dataset"] = torch.utils.data.DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        # It reads the config of the folder that a model says it is from, to see whether it is quantized
        # already; the embedded model is from none.
        Path(folder, "config.json").write_text(json.dumps({"model_type": "llama"}))
        config._name_or_path = folder
        try:
            # Any object passes for a processor: the batches are token ids already.
            oneshot(model=lm.model, recipe=recipe, processor=lm.tokenizer or object(), **data)
        finally:
            config._name_or_path = name
    return _with_weights(lm.model)


def _with_weights(model: nn.Module) -> nn.Module:
    """Put weights as the library rounds them beside its layers."""
    forward: Any = need("compressed_tensors.quantization.lifecycle.forward", "compressed-tensors")
    for name in target_names(model):
        layer: Any = model.get_submodule(name)
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None:
            layer.__dict__.pop(
                "forward", None
            )  # ignored: its wrapper hands through, and hides that
            continue
        with torch.no_grad():
            weight = forward.fake_quantize(
                layer.weight, layer.weight_scale, layer.weight_zero_point, scheme.weights
            )
        put(model, name, WithWeight(layer, weight))
    return model


def _groups(lm: DiffusionLM, scheme: Scheme) -> dict[str, Any]:
    """Return a scheme in the words of compressed-tensors."""
    weights: dict[str, Any] = {
        "num_bits": scheme.weight_bits,
        "type": "int",
        "symmetric": scheme.is_symmetric(default=scheme.quantizes_activations),
        "strategy": "channel",
    }
    if scheme.group is not None:
        weights |= {"strategy": "group", "group_size": group_for_all(scheme, lm)}
    made: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if scheme.quantizes_activations:
        made["input_activations"] = {
            "num_bits": scheme.act_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {"all linears": made}


def _hush() -> None:
    """Leave errors of its log, nothing below."""
    logger: Any = need("loguru", LIBRARY).logger
    logger.remove()
    logging.getLogger("llmcompressor").setLevel(logging.ERROR)
