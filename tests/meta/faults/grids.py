"""Faults of the number grids: scales, zero points, codes of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.quant import grid
from dllm_qbench.quant.grid import Grid, code_range, find_grid, round_half_away
from dllm_qbench.quant.methods import duquant, rtn
from dllm_qbench.quant.scheme import Scheme
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import replaced, together, wrapped


def scales_along_outputs(
    weight: Tensor, scheme: Scheme, symmetric: bool
) -> tuple[Tensor, Grid | None]:
    if not scheme.quantizes_weights:
        return weight, None
    turned = weight.T
    values = find_grid(turned, scheme.weight_bits, symmetric, scheme.group).nearest(turned).T
    return values.contiguous(), find_grid(values, scheme.weight_bits, symmetric, scheme.group)


def spread_one_late(self: Grid, per_group: Tensor, size: int) -> Tensor:
    spread = per_group.repeat_interleave(self.group, dim=-1)[..., :size]
    return torch.cat((spread[..., :1], spread[..., :-1]), dim=-1)


def values_with_zero_plus_one(self: Grid, codes: Tensor) -> Tensor:
    size = codes.shape[-1]
    zero = self._spread(self.zero, size) + (0 if self.symmetric else 1)
    return (codes - zero) * self._spread(self.scale, size)


def floored_codes(self: Grid, x: Tensor) -> Tensor:
    low, high = code_range(self.bits, self.symmetric)
    scale, zero = (self._spread(part, x.shape[-1]) for part in (self.scale, self.zero))
    return (torch.floor(x.double() / scale) + zero).clamp_(low, high).to(torch.int32)


def values_with_scale_in(dtype: torch.dtype) -> Any:
    def values(self: Grid, codes: Tensor) -> Tensor:
        size = codes.shape[-1]
        scale = self.scale.to(dtype).double()
        return (codes - self._spread(self.zero, size)) * self._spread(scale, size)

    return values


def power_of_two_scale(sound: Any, x: Tensor, bits: int, symmetric: bool) -> Any:
    scale, zero = sound(x, bits, symmetric)
    coarse = torch.exp2(torch.ceil(torch.log2(scale)))
    return coarse, zero if symmetric else round_half_away(zero * scale / coarse)


def symmetric_grid(sound: Any, x: Tensor, bits: int, _symmetric: bool, group: Any) -> Grid:
    found: Grid = sound(x, bits, True, group)
    return found


def asymmetric_grid(sound: Any, x: Tensor, bits: int, _symmetric: bool, group: Any) -> Grid:
    found: Grid = sound(x, bits, False, group)
    return found


def clipped_range(sound: Any, x: Tensor, bits: int, symmetric: bool) -> Any:
    return sound(0.9 * x, bits, symmetric)


def one_step_too_many(sound: Any, x: Tensor, bits: int, symmetric: bool) -> Any:
    """Range / 2^b where there are 2^b - 1 steps: the largest weight is a step beyond the last code."""
    scale, zero = sound(x, bits, symmetric)
    first, last = code_range(bits, symmetric)
    steps = last - first
    scale = scale * steps / (steps + 1)
    return scale, zero if symmetric else round_half_away(zero * (steps + 1) / steps)


def one_scale_for_all(sound: Any, x: Tensor, *rest: Any) -> Grid:
    found: Grid = sound(x, *rest)
    return replace(found, scale=found.scale.amax().expand_as(found.scale).contiguous())


def ungrouped(sound: Any, x: Tensor, bits: int, symmetric: bool, _group: Any) -> Grid:
    found: Grid = sound(x, bits, symmetric, None)
    return found


def a_bit_less(sound: Any, x: Tensor, bits: int, symmetric: bool, group: Any) -> Grid:
    found: Grid = sound(x, bits - 1, symmetric, group)
    return found


def absmax_over_power_of_two(sound: Any, x: Tensor, bits: int, symmetric: bool) -> Any:
    scale, zero = sound(x, bits, symmetric)
    return (scale * code_range(bits, True)[1] / 2 ** (bits - 1) if symmetric else scale), zero


def wrapping_codes(self: Grid, x: Tensor) -> Tensor:
    half = 2 ** (self.bits - 1)
    code = round_half_away(x.double() / self._spread(self.scale, x.shape[-1]))
    return ((code + half) % (2 * half) - half).to(torch.int32)


def values_with_scales_of_the_row_above(self: Grid, codes: Tensor) -> Tensor:
    size = codes.shape[-1]
    scale = self._spread(self.scale.roll(1, 0), size)
    return (codes - self._spread(self.zero, size)) * scale


def floored_zero(sound: Any, x: Tensor, bits: int, symmetric: bool) -> Any:
    scale, zero = sound(x, bits, symmetric)
    low = x.amin(-1).double().clamp(max=0.0)
    return scale, zero if symmetric else torch.floor(-low / scale)


FAULTS = (
    Fault(
        "rtn-scales-on-the-wrong-axis",
        "harmful",
        "rtn",
        "W3A16-g64",
        "math",
        replaced((rtn, "round_weight"), by=scales_along_outputs),
        "Groups of 64 weights that share a scale run along the outputs instead of the inputs.",
    ),
    Fault(
        "rtn-group-boundary-off-by-one",
        "harmful",
        "rtn",
        "W4A16-g64",
        "math",
        replaced((Grid, "_spread"), by=spread_one_late),
        "Each group begins one column late: column 64 is still rounded with the scale of group 0.",
    ),
    Fault(
        "rtn-zero-point-off-by-one",
        "harmful",
        "rtn",
        "W4A16-g64",
        "math",
        replaced((Grid, "values"), by=values_with_zero_plus_one),
        "Dequantization subtracts zero + 1, the convention of old GPTQ files, from codes that use zero.",
        model=DREAM,
    ),
    Fault(
        "rtn-zero-point-floored",
        "harmful",
        "rtn",
        "W3A16-g64",
        "code",
        wrapped(grid, "scale_and_zero", floored_zero),
        "The zero point is rounded down, so the lower end of a group is clipped by up to one step.",
        model=DREAM,
    ),
    Fault(
        "rtn-floor-instead-of-round",
        "harmful",
        "rtn",
        "W4A16-g64",
        "general",
        replaced((Grid, "codes"), by=floored_codes),
        "Weights are truncated to the level below instead of rounded to the nearest.",
    ),
    Fault(
        "rtn-scales-in-bf16",
        "harmful",
        "rtn",
        "W8A8",
        "math",
        replaced((Grid, "values"), by=values_with_scale_in(torch.bfloat16)),
        "Codes are found with the exact scale, but multiplied by it in bf16: 127 steps end 0.25 steps off.",
    ),
    Fault(
        "smoothquant-scales-in-fp16",
        "harmful",
        "smoothquant",
        "W8A8",
        "math",
        replaced((Grid, "values"), by=values_with_scale_in(torch.float16)),
        "Codes are found with the exact scale, but multiplied by it in fp16.",
    ),
    Fault(
        "smoothquant-scales-rounded-up-to-powers-of-two",
        "harmful",
        "smoothquant",
        "W8A8",
        "math",
        wrapped(grid, "scale_and_zero", power_of_two_scale),
        "Scales are rounded up to powers of two, as a kernel that only shifts would have them.",
        model=DREAM,
    ),
    Fault(
        "rtn-symmetric-where-asymmetric-was-asked",
        "harmful",
        "rtn",
        "W4A16-g64",
        "math",
        wrapped(rtn, "find_grid", symmetric_grid),
        "The recipe says asymmetric, the grid is symmetric.",
    ),
    Fault(
        "duquant-asymmetric-where-symmetric-was-asked",
        "harmful",
        "duquant",
        "W4A4",
        "general",
        wrapped(duquant, "find_grid", asymmetric_grid),
        "The recipe says symmetric, but weights have zero points, which an integer kernel would ignore.",
    ),
    Fault(
        "rtn-weights-clipped-at-0.9",
        "harmful",
        "rtn",
        "W4A16-g64",
        "code",
        wrapped(grid, "scale_and_zero", clipped_range),
        "Every group's grid covers 0.9 of its range.",
    ),
    Fault(
        "smoothquant-weights-clipped-at-0.9",
        "harmful",
        "smoothquant",
        "W8A8",
        "math",
        wrapped(grid, "scale_and_zero", clipped_range),
        "Every channel's 8-bit grid covers 0.9 of its range.",
    ),
    Fault(
        "awq-scale-divides-by-16-steps",
        "harmful",
        "awq",
        "W4A16-g64",
        "math",
        wrapped(grid, "scale_and_zero", one_step_too_many),
        "The scale is range / 16, but 16 levels have 15 steps between them: the largest weights are clipped.",
    ),
    Fault(
        "rtn-one-weight-scale-for-the-whole-tensor",
        "harmful",
        "rtn",
        "W8A8",
        "math",
        wrapped(rtn, "find_grid", one_scale_for_all),
        "All output channels of a weight share one scale.",
    ),
    Fault(
        "rtn-group-size-ignored",
        "harmful",
        "rtn",
        "W4A16-g64",
        "math",
        wrapped(rtn, "find_grid", ungrouped),
        "The scheme's group size does not arrive: one scale for each output channel.",
        model=DREAM,
    ),
    Fault(
        "rtn-a-bit-less-than-the-scheme-says",
        "harmful",
        "rtn",
        "W4A16-g64",
        "math",
        wrapped(rtn, "find_grid", a_bit_less),
        "Weights have one bit less than the scheme says: a sign bit counted twice.",
    ),
    Fault(
        "rtn-largest-code-wraps-around",
        "harmful",
        "rtn",
        "W4A4",
        "general",
        together(
            wrapped(grid, "scale_and_zero", absmax_over_power_of_two),
            replaced((Grid, "codes"), by=wrapping_codes),
        ),
        "With scale absmax / 8 the largest weight has code 8, which a signed 4-bit integer stores as -8.",
    ),
    Fault(
        "rtn-scales-shifted-by-a-row",
        "harmful",
        "rtn",
        "W3A16-g64",
        "general",
        replaced((Grid, "values"), by=values_with_scales_of_the_row_above),
        "Every output channel is dequantized with the scales of the channel before it.",
        model=DREAM,
    ),
)
