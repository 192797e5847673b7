"""Rounding to nearest, with each group's range shrunk to where the squared error is least.

Knows nothing of dllm-qbench: it takes a model, a scheme and calibration data, and returns the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def quantize(lm: Any, scheme: Any, calibration: Any) -> nn.Module:
    """Round every linear inside the blocks of ``lm.model``, in place.

    ``scheme`` has ``weight_bits`` and ``group``; this method needs no calibration data.
    """
    for name, module in lm.model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model.layers."):
            module.weight.data = round_groups(module.weight.data, scheme.weight_bits, scheme.group)
    return lm.model


def round_groups(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """Return ``weight [O, I]`` with every group of inputs on the best of a few grids.

    Codes are -2^(b-1) .. 2^(b-1) - 1, times a scale for each group.
    """
    w = weight.unflatten(1, (-1, group or weight.shape[1]))
    most = 2 ** (bits - 1)
    best, least = w, torch.full_like(w[..., :1], torch.inf)
    for shrink in SHRINK:
        scale = shrink * w.abs().amax(-1, keepdim=True) / (most - 0.5)
        rounded = (w / scale.clamp(min=1e-12)).round().clamp(-most, most - 1) * scale
        error = (w - rounded).square().sum(-1, keepdim=True)
        best = torch.where(error < least, rounded, best)
        least = torch.minimum(error, least)
    return best.flatten(1)
