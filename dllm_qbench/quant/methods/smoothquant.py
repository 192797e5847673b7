"""SmoothQuant: move the outliers of activations into the weights, then round both to nearest.

Source: Xiao et al., "SmoothQuant" (arXiv 2211.10438), equations 3 and 4:

    Y = (X diag(s)^-1) (diag(s) W),   s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

with j an input channel, X the calibration inputs, W_j all weights that read channel j. Division by s
is folded into whatever writes the channel, so the function is unchanged before rounding. Four places:

    norm -> q, k, v        v -> o        norm -> gate, up        up -> down

What published code leaves open, settled here:
- **one s for q, k, v** (and for gate, up) from the maximum over *all* weights that read the channel;
  q's weights alone are too small wherever k or v has the larger one;
- **v -> o** with grouped heads: a channel of v feeds the same channel of each query head of its
  group, so these share one s, from the maximum over the group;
- **dead channels**, whose inputs or weights are all 0, keep s = 1;
- **how much data**: a maximum grows with the tokens it is taken over and does not settle as a mean
  does, so their number is part of the recipe: the first 128 sequences of whatever is given;
- statistics are those of the full-precision model, all taken before anything is changed, over real
  tokens, masked ones included;
- weights symmetric per output channel (or group, if the scheme has one), activations symmetric per
  token, as in the authors' own code; q, k and v read 4-bit inputs at W4A4 as all other linears do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import channel_maxima
from dllm_qbench.quant.layers import BLOCK_GROUPS, QuantLinear, put, target_names
from dllm_qbench.quant.methods.rtn import round_weight
from dllm_qbench.quant.offload import visited
from dllm_qbench.quant.scheme import Scheme

NAME = "smoothquant"


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return True


def smoothing_factors(act_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """Return s of equation 4 in float64 ``[I]``; 1 where a channel has no inputs or no weights."""
    x, w = act_max.double(), weight_max.double()
    s = x.pow(alpha) / w.pow(1 - alpha)
    return torch.where((x > 0) & (w > 0), s, 1.0)


def smooth(
    model: nn.Module,
    calibration: Calibration,
    alpha: float,
    writers: Collection[str] | None = None,
    device: torch.device | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Apply smoothings to every block of ``model``, in place; its function is unchanged.

    Args:
        model: changed in place.
        calibration: what the channels' maxima are taken over.
        alpha: equation 4's.
        writers: of :data:`WRITERS`, whose channels to smooth; ``None`` means all four.
        device: where to compute; ``None``: where the model lives.

    Returns:
        For each linear by full name, ``"input"``: s ``[I]`` by which its input is now divided, and,
        where its output is now divided too, ``"output"``: s ``[O]``.
    """
    maxima = channel_maxima(model, calibration, device)
    factors: dict[str, dict[str, Tensor]] = {}
    for index, block in visited(model, device):
        act_max = maxima[index]
        for names, writer in zip(BLOCK_GROUPS, WRITERS, strict=True):
            if writers is not None and writer not in writers:
                continue
            linears = [block.get_submodule(name) for name in names]
            weight_max = torch.stack([_weight(m).abs().amax(0) for m in linears]).amax(0)
            x_max = act_max[names[0]]
            source: Any = block.get_submodule(writer)
            written = s = None
            if writer == "self_attn.v_proj":
                attention: Any = block.self_attn
                groups, width = int(attention.num_key_value_groups), int(attention.head_dim)
                written = smoothing_factors(
                    _over_group(x_max, groups, width), _over_group(weight_max, groups, width), alpha
                )
                s = written.view(-1, 1, width).expand(-1, groups, -1).reshape(-1)
            else:
                written = s = smoothing_factors(x_max, weight_max, alpha)
            _divide(source, written)
            if writer in _LINEAR_WRITERS:
                factors.setdefault(f"model.layers.{index}.{writer}", {})["output"] = written
            for name, linear in zip(names, linears, strict=True):
                weight = _weight(linear)
                weight.copy_(weight.double() * s)
                factors.setdefault(f"model.layers.{index}.{name}", {})["input"] = s
    return factors


# What writes the channels that each group of linears reads.
WRITERS = ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")
_LINEAR_WRITERS = ("self_attn.v_proj", "mlp.up_proj")


def quantize_model(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    device: torch.device | None = None,
    *,
    alpha: float = 0.5,
    sequences: int = 128,
) -> None:
    """Smooth ``model`` and replace every targeted linear, in place.

    The first ``sequences`` of the calibration are looked at, or all where there are fewer.
    """
    if sequences < 1:
        raise ValueError(f"smoothquant: sequences must be at least 1, found {sequences}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"smoothquant: alpha must lie in 0..1, found {alpha}")
    target_names(model)  # refuses a model with linears that no group covers
    factors = smooth(model, calibration.first(sequences), alpha, device=device)
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    for index, block in visited(model, device):
        for name in (name for names in BLOCK_GROUPS for name in names):
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight, grid = round_weight(linear.weight, scheme, symmetric)
            layer = QuantLinear(weight, linear.bias, grid, scheme, NAME)
            for side, factor in factors[f"model.layers.{index}.{name}"].items():
                setattr(layer, f"{side}_scale", factor.to(weight.dtype))
            put(block, name, layer)


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight.data


def _over_group(per_channel: Tensor, groups: int, width: int) -> Tensor:
    """Return the maximum over the query heads that share a value head: ``[H * E] -> [K * E]``."""
    return per_channel.view(-1, groups, width).amax(1).reshape(-1)


def _divide(writer: Any, s: Tensor) -> None:
    """Divide what a norm or a linear writes by s, channel by channel."""
    weight = writer.weight.data
    weight.copy_(weight.double() / (s if weight.dim() == 1 else s[:, None]))
    bias = getattr(writer, "bias", None)
    if bias is not None:
        bias.data.copy_(bias.data.double() / s)
