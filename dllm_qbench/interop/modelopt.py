"""NVIDIA ModelOpt: INT8 with static activations, INT8 SmoothQuant, INT4 AWQ.

Its INT8 is static: one activation scale a linear, the largest magnitude seen in calibration. A masked
diffusion model's massive tokens set that scale, and the other tokens are left with a few steps; ours
(and most others here) take a scale for each token as it comes.
Weights are quantized on the fly in its layers; here they are read off by its own weight quantizer.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.interop.library import WithWeight, batches, foreign, group_for_all, need
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import put, target_names
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme

LIBRARY = "nvidia-modelopt"


@foreign("modelopt-int8", LIBRARY, ("W8A8",))
def int8(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights by channel, and inputs on one grid for all tokens."""
    return apply(lm, "INT8_DEFAULT_CFG", scheme, calibration)


@foreign("modelopt-smoothquant", LIBRARY, ("W8A8",), transforms=True)
def smoothquant(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Move outlier channels into the weights first."""
    return apply(lm, "INT8_SMOOTHQUANT_CFG", scheme, calibration)


@foreign("modelopt-awq", LIBRARY, ("W4A16-g64",), transforms=True)
def awq(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Search a scale for each input channel that keeps the layer's outputs."""
    return apply(lm, "INT4_AWQ_CFG", scheme, calibration)


def apply(lm: DiffusionLM, config: str, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Quantize the linears inside the blocks by one of ModelOpt's configurations, named ``config``.

    W16A16 keeps its scales and rounds nothing.
    """
    mtq: Any = need("modelopt.torch.quantization", LIBRARY)
    chosen = copy.deepcopy(getattr(mtq, config))
    names = target_names(lm.model)
    for rule in chosen["quant_cfg"]:
        if "block_sizes" in (rule.get("cfg") or {}):
            rule["cfg"]["block_sizes"][-1] = group_for_all(scheme, lm)

    def run(model: nn.Module) -> None:
        for ids_BT, mask_BT in batches(calibration):
            model(input_ids=ids_BT.to(lm.device), attention_mask=mask_BT.to(lm.device))

    with torch.no_grad(), redirect_stdout(io.StringIO()):
        model: nn.Module = mtq.quantize(lm.model, chosen, run)
        for name in names:
            layer: Any = model.get_submodule(name)
            if scheme.weight_bits == UNTOUCHED:
                layer.weight_quantizer.disable()
                layer.input_quantizer.disable()
            put(model, name, _with_weight(layer))
    return model


def _with_weight(layer: Any) -> WithWeight:
    rounded: Tensor = layer.weight_quantizer(layer.weight)
    scale_I = getattr(layer.input_quantizer, "pre_quant_scale", None)
    if scale_I is None:
        return WithWeight(layer, rounded)
    return WithWeight(layer, rounded * scale_I, rounded)
