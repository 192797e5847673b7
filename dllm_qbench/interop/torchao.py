"""torchao: weight-only int8 and int4, and int8 with activations rounded per token.

Weights are tensor subclasses in plain ``nn.Linear``s; products are torchao's own. Its symmetric grids
have all 2^b codes, -2^(b-1) among them, with scale absmax / (2^(b-1) - 0.5), where ours leave out the
lowest code: one step more a row, and the largest magnitude is half a step off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dllm_qbench.interop.library import foreign, group_for_all, need
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import target_names
from dllm_qbench.quant.scheme import Scheme

LIBRARY = "torchao"


@foreign("torchao-int8", LIBRARY, ("W8A16",))
def int8_weight_only(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights to 8 bits, a scale for each output channel."""
    return apply(lm, need("torchao.quantization", LIBRARY).Int8WeightOnlyConfig())


@foreign("torchao-int8-dynamic", LIBRARY, ("W8A8",))
def int8_dynamic(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights to 8 bits by channel, activations to 8 bits by token."""
    return apply(lm, need("torchao.quantization", LIBRARY).Int8DynamicActivationInt8WeightConfig())


@foreign("torchao-intx", LIBRARY, ("W4A16-g64", "W4A16-g64-asym"))
def intx_weight_only(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights to 4 bits in groups; symmetric unless the scheme says otherwise."""
    quantization = need("torchao.quantization", LIBRARY)
    kinds = need("torchao.quantization.quant_primitives", LIBRARY).MappingType
    group = group_for_all(scheme, lm)
    config = quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{scheme.weight_bits}"),
        granularity=quantization.PerGroup(group),
        mapping_type=kinds.SYMMETRIC if scheme.is_symmetric(default=True) else kinds.ASYMMETRIC,
    )
    return apply(lm, config)


def apply(lm: DiffusionLM, config: Any) -> nn.Module:
    """Quantize the linears inside the blocks as one of torchao's configurations says."""
    wanted = set(target_names(lm.model))
    need("torchao.quantization", LIBRARY).quantize_(
        lm.model, config, filter_fn=lambda _module, name: name in wanted
    )
    return lm.model
