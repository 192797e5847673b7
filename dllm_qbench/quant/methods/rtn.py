"""RTN: every weight to the nearest level of its group's min-max grid. The floor to beat.

No calibration. The weight grid is asymmetric where only weights are quantized, and symmetric where
activations are too (integer kernels multiply codes: a weight zero point would cost them a pass over
the activations), unless the scheme says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dllm_qbench.quant.grid import Grid, find_grid
from dllm_qbench.quant.layers import BLOCK_GROUPS, QuantLinear, put, target_names
from dllm_qbench.quant.offload import visited
from dllm_qbench.quant.scheme import Scheme

NAME = "rtn"
_VALUES_AT_ONCE = 2**22


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return scheme.quantizes_activations


def round_weight(weight: Tensor, scheme: Scheme, symmetric: bool) -> tuple[Tensor, Grid | None]:
    """Return the dequantized weight ``[out, in]`` and its grid; untouched at 16 bits.

    Rows do not interact: a large weight is rounded some rows at a time, which bounds the copies in
    float64.
    """
    if not scheme.quantizes_weights:
        return weight, None
    rows = max(1, _VALUES_AT_ONCE // max(1, weight.shape[1]))
    grids, values = [], []
    for part in weight.split(rows):
        grids.append(find_grid(part, scheme.weight_bits, symmetric, scheme.group))
        values.append(grids[-1].nearest(part))
    if len(grids) == 1:
        return values[0], grids[0]
    scale, zero = (torch.cat([getattr(g, name) for g in grids]) for name in ("scale", "zero"))
    return torch.cat(values), replace(grids[0], scale=scale, zero=zero)


def quantize_model(model: nn.Module, scheme: Scheme, device: torch.device | None = None) -> None:
    """Replace every targeted linear of ``model``, in place."""
    target_names(model)  # refuses a model with linears that no group covers
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    for _, block in visited(model, device):
        for name in (name for names in BLOCK_GROUPS for name in names):
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight, grid = round_weight(linear.weight, scheme, symmetric)
            put(block, name, QuantLinear(weight, linear.bias, grid, scheme, NAME))
