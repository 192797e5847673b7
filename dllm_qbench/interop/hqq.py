"""HQQ: weights of few bits, scale and zero point fitted without calibration data.

Its zero points are real numbers, moved so that a robust norm of the weight's error falls: 0 is no level
then. That, and not a smaller step, is where it gains over min-max.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dllm_qbench.interop.library import foreign, group_of, need, replace_linears
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.scheme import Scheme

LIBRARY = "hqq"


@foreign("hqq", LIBRARY, ("W4A16-g64",), grid="levels")
def hqq(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights in groups along the inputs."""

    def make(_name: str, linear: nn.Linear) -> nn.Module:
        return layer_of(linear, scheme.weight_bits, group_of(scheme, linear))

    return replace_linears(lm, make)


def layer_of(linear: nn.Linear, bits: int, group: int) -> nn.Module:
    """Return HQQ's layer for a linear."""
    core: Any = need("hqq.core.quantize", LIBRARY)
    config = core.BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
    made: nn.Module = core.HQQLinear(
        linear,
        quant_config=config,
        compute_dtype=linear.weight.dtype,
        device=str(linear.weight.device),
        del_orig=False,
    )
    return made
