"""optimum-quanto: weights of 8 and of 4 bits.

qint8 is symmetric with scale absmax / 127, as ours is. qint4 is asymmetric over [min, max] with a
shift that is no whole number of steps, so 0 is not a level; its own group size is the largest of 128,
96, 64, 32 that divides the inputs, here it is the scheme's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.interop.library import WithWeight, each_linear, foreign, group_of, need
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import put
from dllm_qbench.quant.scheme import Scheme

LIBRARY = "optimum-quanto"


@foreign("quanto-qint8", LIBRARY, ("W8A16",))
def qint8(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights to 8 bits, a scale for each output channel."""
    return apply(lm, scheme, "qint8")


@foreign("quanto-qint4", LIBRARY, ("W4A16-g64",), grid="levels")
def qint4(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights to 4 bits in groups."""
    return apply(lm, scheme, "qint4")


def apply(lm: DiffusionLM, scheme: Scheme, kind: str) -> nn.Module:
    """Quantize and freeze the linears inside the blocks; ``kind`` is one of quanto's types."""
    quanto: Any = need("optimum.quanto", LIBRARY)
    groups = {name: group_of(scheme, linear) for name, linear in each_linear(lm)}
    quanto.quantize(lm.model, weights=getattr(quanto, kind), include=list(groups))
    for name, group in groups.items():
        layer: Any = lm.model.get_submodule(name)
        if layer.weight_group_size is not None:
            layer.weight_group_size = group
    quanto.freeze(lm.model)
    lm.model.requires_grad_(False)
    for name in groups:
        made: Any = lm.model.get_submodule(name)
        put(lm.model, name, _OutOfInferenceMode(made, made.weight.dequantize()))
    return lm.model


class _OutOfInferenceMode(WithWeight):
    """quanto transposes its packed tensors in ``forward``, which fails in inference mode.

    Nor can torch copy them (0.2.7 beside torch 2.13), so a copy shares the layer: nothing changes it.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _OutOfInferenceMode:
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Run quanto's layer where gradients are off and views are allowed."""
        with torch.inference_mode(False), torch.no_grad():
            return super().forward(x)
