"""The same kinds of fault in one given linear, each with the name that a diagnosis should find.

The method runs soundly; what it made of the one linear is then replaced by what the fault would
have given. So every linear before it is as it should be, and in the methods that calibrate block
by block those after it do not make up for it either.

At 16 bits only those act that do not need rounding: they are what the equivalence audit can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.quant.grid import find_grid
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from dllm_qbench.seeding import derive
from tests.meta.faults.fault import LLADA, Fault, Kind
from tests.meta.faults.patches import after_method, quant_linear

# edit(layer, the 16-bit weight that it should stand for, scheme), where the scheme rounds
Change = Callable[[QuantLinear, Tensor, Scheme], None]


def target_weight(layer: QuantLinear, weight_OI: Tensor) -> Tensor:
    """Return the full-precision weight as ``layer`` reads and writes: scaled, rotated, unrounded.

    From y = x W^T follow, with x' = turned(x / s R) and y' = y / t S, the rows of W s R and the
    columns of S^T (W / t).
    """
    weight = weight_OI.double()
    if layer.output_scale is not None:
        weight = weight / layer.output_scale.double()[:, None]
    if layer.output_rotation is not None:
        weight = layer.output_rotation(weight.T).T
    if layer.input_scale is not None:
        weight = weight * layer.input_scale.double()
    if layer.input_rotation is not None:
        weight = layer.input_rotation(weight)
    return layer.turned(weight).contiguous()


def _rounded(layer: QuantLinear, target: Tensor, scheme: Scheme) -> Tensor:
    found = find_grid(target, scheme.weight_bits, bool(layer.symmetric), scheme.group)
    return found.nearest(target)


def _write(layer: QuantLinear, weight: Tensor) -> None:
    """Write a weight behind the layer's back: its grid stays what the sound method found."""
    layer.weight.data.copy_(weight)


def not_quantized(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    layer.requantize(target.to(layer.weight.dtype), None, Scheme(UNTOUCHED, UNTOUCHED))


def weight_not_written(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    _write(layer, target)


def wrong_axis(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    _write(layer, _rounded(layer, target.T.contiguous(), scheme).T)


def per_tensor(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    flat = target.reshape(1, -1)
    grid = find_grid(flat, scheme.weight_bits, bool(layer.symmetric))
    _write(layer, grid.nearest(flat).reshape(target.shape))


def zero_point_off_by_one(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    _write(layer, layer.weight.double() - _steps(layer))


def floored(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    step = _steps(layer)
    _write(layer, torch.floor(target / step) * step)


def nearest(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    grid = find_grid(target, scheme.weight_bits, bool(layer.symmetric), scheme.group)
    layer.requantize(grid.nearest(target).to(layer.weight.dtype), grid, scheme)


def clipped(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    grid = find_grid(0.7 * target, scheme.weight_bits, bool(layer.symmetric), scheme.group)
    layer.requantize(grid.nearest(target).to(layer.weight.dtype), grid, scheme)


def doubled(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    _write(layer, 2 * layer.weight)


def first_group_doubled(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    group = scheme.group or layer.in_features
    layer.weight.data[:, :group] *= 2


def scales_a_row_off(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    step = _steps(layer)
    _write(layer, (layer.weight.double() / step).round() * step.roll(1, 0))


def columns_reversed(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    _write(layer, layer.weight.flip(1))


def not_turned(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    """The weight reads inputs as they are without the layer's rotation of them."""
    for turn in (layer.transform, layer.input_rotation):
        if turn is not None:
            target = turn.inverse(target)
    _write(layer, _rounded(layer, target, scheme) if scheme.quantizes_weights else target)


def not_folded(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    """What writes the input is divided by s, the weight is not multiplied by it."""
    assert layer.input_scale is not None
    target = target / layer.input_scale.double()
    _write(layer, _rounded(layer, target, scheme) if scheme.quantizes_weights else target)


def two_bits(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    grid = find_grid(target, 2, bool(layer.symmetric), scheme.group)
    _write(layer, grid.nearest(target))


def noisy(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
    generator = torch.Generator().manual_seed(derive(0, "fault", "noise"))
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    strength = target.square().mean().sqrt() * 10 ** (-10 / 20)
    _write(layer, layer.weight.double() + strength * noise)


class WithOwnActivations(QuantLinear):
    """A :class:`QuantLinear` with activation rounding of its own.

    Attributes:
        one_scale: whether all tokens share a scale.
        most: share of the largest magnitude at which activations are clipped.
    """

    one_scale: bool
    most: float

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(x)
        if self.scheme.act_bits != UNTOUCHED:
            last = 2 ** (self.scheme.act_bits - 1) - 1
            absmax = x.abs().amax() if self.one_scale else x.abs().amax(-1, keepdim=True)
            scale = (absmax * self.most / last).clamp(min=torch.finfo(x.dtype).tiny)
            x = (x / scale).round().clamp(-last, last) * scale
        return F.linear(x, self.weight, self.bias)


def with_activations(one_scale: bool, most: float) -> Change:
    def edit(layer: QuantLinear, target: Tensor, scheme: Scheme) -> None:
        layer.__class__ = WithOwnActivations  # weight, grid and rotations stay as they are
        assert isinstance(layer, WithOwnActivations)
        layer.one_scale, layer.most = one_scale, most

    return edit


def _steps(layer: QuantLinear) -> Tensor:
    assert layer.scale is not None
    group = layer.scheme.group or layer.in_features
    return layer.scale.double().repeat_interleave(group, dim=-1)[:, : layer.in_features]


# name, method, scheme, task, change, kind, whether it acts without rounding, what
_ONE: tuple[tuple[str, str, str, str, Change, Kind, bool, str], ...] = (
    ("not-quantized", "gptq", "W3A16-g64", "math", not_quantized, "not quantized", False,
     "keeps 16 bits"),
    ("weight-not-written", "awq", "W3A16-g64", "math", weight_not_written, "not quantized", False,
     "has a grid and still holds its 16-bit weight"),
    ("activations-and-weight-left", "rtn", "W4A4", "general", not_quantized, "not quantized", False,
     "keeps 16 bits, inputs included"),
    ("scales-on-the-wrong-axis", "rtn", "W8A8", "math", wrong_axis, "axis", False,
     "has one weight scale for each input channel instead of each output channel"),
    ("one-scale-for-the-tensor", "rtn", "W3A16-g64", "math", per_tensor, "axis", False,
     "has one weight scale for the whole tensor"),
    ("activations-per-tensor", "smoothquant", "W8A8", "math", with_activations(True, 1.0), "axis",
     False, "has one activation scale for all tokens of a batch"),
    ("zero-point-off-by-one", "rtn", "W4A16-g64", "math", zero_point_off_by_one, "offset", False,
     "is dequantized with a zero point that is one too high"),
    ("floor-instead-of-round", "rtn", "W4A16-g64", "math", floored, "offset", False,
     "is truncated to the level below"),
    ("no-error-feedback", "gptq", "W3A16-g64", "math", nearest, "noise", False,
     "is rounded to nearest where the method is GPTQ"),
    ("two-bits", "quarot", "W4A4", "math", two_bits, "noise", False,
     "has 2-bit weights"),
    ("noise-at-10-dB", "gptq", "W4A16-g64", "math", noisy, "noise", False,
     "has Gaussian noise of a tenth of its energy on its weight"),
    ("weights-clipped-at-0.7", "smoothquant", "W8A8", "math", clipped, "saturation", False,
     "has a weight grid that covers 0.7 of its range"),
    ("activations-saturated", "quarot", "W8A8", "math", with_activations(False, 0.3), "saturation",
     False, "clips its inputs at 0.3 of a token's largest magnitude"),
    ("output-doubled", "rtn", "W4A16-g64", "general", doubled, "scale", True,
     "has weights, and so outputs, of twice their size"),
    ("first-group-doubled", "gptq", "W4A16-g64", "general", first_group_doubled, "scale", True,
     "has twice the scale in the first group of each row"),
    ("scales-a-row-off", "awq", "W4A16-g64", "general", scales_a_row_off, "scale", False,
     "has each row's scales in the row below"),
    ("columns-permuted", "gptq", "W3A16-g64", "general", columns_reversed, "missing inverse", True,
     "has its columns in another order than its inputs"),
    ("quarot-rotation-not-undone", "quarot", "W4A4", "general", not_turned, "missing inverse", True,
     "reads rotated inputs with a weight that is not rotated"),
    ("duquant-rotation-not-undone", "duquant", "W8A8", "general", not_turned, "missing inverse",
     True, "reads turned and permuted inputs with a weight that is neither"),
    ("smoothing-not-undone", "smoothquant", "W8A8", "general", not_folded, "missing inverse", True,
     "reads inputs divided by s with a weight that is not multiplied by it"),
)  # fmt: skip


def one_layer_faults(linear: str, model: str = LLADA) -> tuple[Fault, ...]:
    """Return the faults that can sit in the linear of this full name, each with its true kind."""
    return tuple(
        Fault(
            f"{linear.removeprefix('model.layers.')}:{name}",
            "harmful",
            method,
            scheme,
            task,
            after_method(method, _in_one(linear, change, at_16_bits)),
            f"{linear} {what}.",
            model=model,
            linear=linear,
            kind=kind,
        )
        for name, method, scheme, task, change, kind, at_16_bits, what in _ONE
    )


def _in_one(linear: str, change: Change, at_16_bits: bool) -> Any:
    def edit(model: nn.Module, before: nn.Module, scheme: Scheme) -> None:
        layer = quant_linear(model, linear)
        if scheme.quantizes_weights or at_16_bits:
            weight = before.get_parameter(f"{linear}.weight").detach()
            change(layer, target_weight(layer, weight), scheme)

    return edit
