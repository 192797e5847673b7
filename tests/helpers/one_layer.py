"""Faults that sit in one linear: what is done to a layer that was quantized soundly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.evaluation.own_basis import OwnBasis
from dllm_qbench.quant.grid import Grid, find_grid
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.rotation import hadamard_transform

# What a fault changes: the layer, and full precision's weight as the layer should round it.
Plant = Callable[[QuantLinear, Tensor, Grid], None]


@dataclass(frozen=True)
class Fault:
    """One way to break a linear.

    Attributes:
        kind: what ``symptom`` should call it.
        plant: breaks the layer, in place.
        fits: whether a layer can have it.
    """

    kind: str
    plant: Plant
    fits: Callable[[QuantLinear], bool] = lambda _: True


def _hold(layer: QuantLinear, weight: Tensor) -> None:
    layer.weight.data = weight.to(layer.weight.dtype).contiguous()


def _spread(grid: Grid, weight: Tensor) -> Tensor:
    return grid.values(torch.ones_like(weight)) - grid.values(torch.zeros_like(weight))


def _rounded(how: Callable[[Tensor], Tensor]) -> Plant:
    """Round with another rounding than to nearest."""

    def plant(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
        step = _spread(grid, W)
        _hold(layer, how(W / step) * step)

    return plant


def _changed(how: Callable[[Tensor, Tensor, Grid], Tensor]) -> Plant:
    """Hold ``how(quantized weight, full-precision weight, grid)``."""

    def plant(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
        _hold(layer, how(layer.weight.double(), W, grid))

    return plant


def _regridded(bits: int, group: str = "own", clip: float = 1.0, across: bool = False) -> Plant:
    """Round on another min-max grid; ``bits`` are added to the scheme's."""

    def plant(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
        W = W.T.contiguous() if across else W
        size = grid.group if group == "own" else None
        made = find_grid(W * clip, grid.bits + bits, grid.symmetric, size)
        found = made.nearest(W)
        _hold(layer, found.T if across else found)

    return plant


def _power_of_two(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    return replace(grid, scale=torch.exp2(grid.scale.log2().ceil())).nearest(W)


def _one_scale(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    return replace(grid, scale=grid.scale.amax().expand_as(grid.scale)).nearest(W)


def _by_output(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    """Every output channel with the scale of the one above."""
    return Q * (grid.scale.roll(1, 0) / grid.scale).mean(1, keepdim=True)


def _by_input(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    """Scales of outputs spread along inputs, where they are multiplied back."""
    scale_O = grid.scale.mean(1)
    scale_I = scale_O.repeat(-(-Q.shape[1] // len(scale_O)))[: Q.shape[1]]
    return Q / scale_O[:, None] * scale_I


def _next_group(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    rolled = grid.scale.roll(1, 1) / grid.scale
    return Q * rolled.repeat_interleave(grid.group, 1)[:, : Q.shape[1]]


def _wrapped(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    """Codes in a range that lies a quarter too high: those below it come back at its other end."""
    step = _spread(grid, W)
    quarter = 2 ** (grid.bits - 2)
    codes = (Q / step).round() + quarter
    held: Tensor = codes.remainder(4 * quarter).sub(quarter).mul(step)
    return held


def _hadamard(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    width = max(w for w in (64, 32, 16, 8) if Q.shape[1] % w == 0)
    turned: Tensor = hadamard_transform(Q.unflatten(1, (-1, width))).flatten(1)
    return turned


def _noisy(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return Q + _spread(grid, W) * torch.randn(Q.shape, generator=generator, dtype=Q.dtype)


def _holes(Q: Tensor, W: Tensor, grid: Grid) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return Q * (torch.rand(Q.shape, generator=generator) > 0.02)


def _acts(**changes: Any) -> Plant:
    def plant(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
        layer.scheme = replace(layer.scheme, **changes)

    return plant


def _act_clip(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
    layer.act_clip = 0.3


class _OneTokenScale(QuantLinear):
    """Rounds all tokens with the scale of the largest."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(x)
        step = x.abs().amax() / (2 ** (self.scheme.act_bits - 1) - 1)
        return nn.functional.linear((x / step).round() * step, self.weight, self.bias)


def _one_token_scale(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
    layer.__class__ = _OneTokenScale


def _unsmoothed(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
    assert layer.input_scale is not None
    s = layer.input_scale.double()
    _hold(layer, layer.weight.double() / s)


def _no_bias(layer: QuantLinear, W: Tensor, grid: Grid) -> None:
    layer.bias = None


def _rounds_inputs(layer: QuantLinear) -> bool:
    return layer.scheme.quantizes_activations


def _rounds_inputs_to_8(layer: QuantLinear) -> bool:
    return layer.scheme.act_bits == 8


def _grouped(layer: QuantLinear) -> bool:
    return layer.scale is not None and layer.scale.shape[1] > 1


def _smoothed_only(layer: QuantLinear) -> bool:
    turned = layer.input_rotation is not None or layer.transform is not None
    return layer.input_scale is not None and not turned


def _biased(layer: QuantLinear) -> bool:
    return layer.bias is not None


FAULTS: dict[str, Fault] = {
    "weight doubled": Fault("scale", _changed(lambda Q, W, g: 2 * Q)),
    "weight 25 % too large": Fault("scale", _changed(lambda Q, W, g: 1.25 * Q)),
    "scale of the output channel above": Fault("scale", _changed(_by_output)),
    "grid along outputs": Fault("axis", _regridded(0, across=True)),
    "scales multiplied along inputs": Fault("axis", _changed(_by_input)),
    "scale of the group before": Fault("scale", _changed(_next_group), _grouped),
    "range halved": Fault("saturation", _regridded(0, clip=0.5)),
    "codes wrap around": Fault("saturation", _changed(_wrapped)),
    "input cut at 0.3": Fault("saturation", _act_clip, _rounds_inputs),
    "inputs permuted": Fault("missing inverse", _changed(lambda Q, W, g: Q.roll(1, 1))),
    "outputs permuted": Fault("missing inverse", _changed(lambda Q, W, g: Q.roll(1, 0))),
    "inputs rotated": Fault("missing inverse", _changed(_hadamard)),
    "weight not multiplied by s": Fault(
        "missing inverse",
        _unsmoothed,
        _smoothed_only,
    ),
    "left at 16 bits": Fault("not quantized", _changed(lambda Q, W, g: W)),
    "three bits more": Fault("not quantized", _regridded(3)),
    "input left at 16 bits": Fault("not quantized", _acts(act_bits=16), _rounds_inputs),
    "floor instead of round": Fault("offset", _rounded(torch.floor)),
    "truncated": Fault("offset", _rounded(torch.trunc)),
    "zero point off by one": Fault("offset", _changed(lambda Q, W, g: Q + _spread(g, W))),
    "bias lost": Fault("offset", _no_bias, _biased),
    "a bit fewer": Fault("noise", _regridded(-1)),
    "one scale for all": Fault("axis", _changed(_one_scale)),
    "scales rounded up to powers of two": Fault("noise", _changed(_power_of_two)),
    "noise of a step": Fault("noise", _changed(_noisy)),
    "2 % of the weights are 0": Fault("noise", _changed(_holes)),
    "all tokens with one scale": Fault("axis", _one_token_scale, _rounds_inputs),
    "input at 4 bits": Fault("noise", _acts(act_bits=4), _rounds_inputs_to_8),
}


def broken_copy(layer: QuantLinear, fault: Fault, own: OwnBasis) -> QuantLinear:
    """Return a layer with a weight of its own, broken; ``own`` is the sound layer's."""
    made = QuantLinear.__new__(QuantLinear)
    nn.Module.__init__(made)
    made.__dict__.update({k: v for k, v in layer.__dict__.items() if not k.startswith("_")})
    for kind in ("_parameters", "_buffers", "_modules"):
        getattr(made, kind).update(getattr(layer, kind))
    made.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    break_layer(made, fault, own)
    return made


def break_layer(layer: QuantLinear, fault: Fault, own: OwnBasis) -> None:
    """Plant a fault in place; ``own`` is the sound layer's."""
    bits = min(own.scheme.weight_bits, 12)
    fault.plant(layer, own.W, find_grid(own.W, bits, bool(layer.symmetric), own.scheme.group))
