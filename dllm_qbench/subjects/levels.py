"""The grid of a weight that comes without one: scale and zero point, read off its levels.

A rounded weight holds at most 2^b levels in each group, at whole steps of one scale from 0. The smallest
gap between two levels and its first fractions are tried, then the scales that quantizers commonly take (of
the largest magnitude, of the range): a scale fits a group if every weight lies at a whole number of its
steps, and all of them within 2^b - 1 steps.

Where a group uses few of its levels, several scales fit; the first is the widest, which has the same levels
as far as the weights tell.

Shapes: O outputs, I inputs, G groups of an output channel, g weights of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.quant.grid import code_range

_GAP_PARTS: Final = 8  # the smallest gap of two levels may span so many steps
_STEPS_OFF: Final = 2e-3  # a weight may lie so far from its level, in steps, in float32
_LARGEST_OFF: Final = 0.45  # beyond, every weight would fit every scale
_MOST_UNFIT: Final = 0.5  # where more groups fit no scale, the weight was not rounded
_MOST_SPLIT: Final = 0.05  # rows in which neighbouring groups of one scale may seem to have two


@dataclass(frozen=True, eq=False)
class Levels:
    """A weight's grid as far as it can be told.

    Attributes:
        scale, zero: float64 ``[O, G]``; zero is 0 throughout on a symmetric grid.
        symmetric: codes lie around 0; ``full_range``: -2^(b - 1) among them.
        group: weights that share a scale; a multiple of the one asked for where groups share theirs.
    """

    scale: Tensor
    zero: Tensor
    symmetric: bool
    full_range: bool
    group: int


def find_levels(
    weight: Tensor, bits: int, group: int | None, symmetric: bool | None = None
) -> Levels | None:
    """Find the grid of a rounded weight ``[O, I]``.

    Args:
        weight: dequantized values, finite.
        bits: of a code.
        group: weights of an output channel that share a scale; ``None`` means all.
        symmetric: what the quantizer says of its grid; ``None`` takes a symmetric one where one fits.

    Returns:
        The grid, or ``None`` where most groups fit none: the weight was not rounded, or otherwise. A
        group that alone fits none gets the common scale of its range, for an audit to find it off.
    """
    size = weight.shape[1]
    g = size if group is None else min(group, size)
    w_OGg = F.pad(weight.detach().double(), (0, -size % g)).unflatten(1, (-1, g))
    scale_OG, fits_OG = _scales(w_OGg, bits, torch.finfo(weight.dtype).eps)
    if bool((~fits_OG).double().mean() > _MOST_UNFIT):
        return None
    codes_OGg = (w_OGg / scale_OG[..., None]).round()
    low_OG, high_OG = codes_OGg.amin(-1), codes_OGg.amax(-1)
    q = 2 ** (bits - 1)
    around_zero = bool(((low_OG >= -q) & (high_OG < q))[fits_OG].all())
    is_symmetric = around_zero if symmetric is None else symmetric and around_zero
    merged = _shared_scale(scale_OG, fits_OG, g, size) if g < size else g
    if is_symmetric:
        zero_OG = torch.zeros_like(scale_OG)
        reaches = bool((low_OG[fits_OG] == -q).any())
    else:
        # The grid's end is not known where no weight sits on it; the zero point is then any that holds
        # all codes, and the smallest such is taken.
        zero_OG, reaches = (-low_OG).clamp(min=0), False
    keep = slice(None, None, merged // g)
    return Levels(scale_OG[:, keep], zero_OG[:, keep], is_symmetric, reaches, merged)


def _scales(w_OGg: Tensor, bits: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the widest scale that fits each group, and whether one does, ``[O, G]``."""
    most_OG = w_OGg.abs().amax(-1)
    steps = 2**bits - 1
    q = code_range(bits, symmetric=True)[1]
    span_OG = w_OGg.amax(-1).clamp(min=0) - w_OGg.amin(-1).clamp(max=0)
    usual = [most_OG / q, most_OG / (q + 1), most_OG / (q + 0.5), span_OG / steps]
    gap_OG = _smallest_gap(w_OGg, most_OG, eps)
    parts = [gap_OG / part for part in range(1, _GAP_PARTS + 1)]
    found = torch.where(most_OG > 0, usual[0], 1.0)
    fits = most_OG == 0
    for candidate in (*parts, *usual):
        scale = torch.where(candidate > 0, candidate, 1.0)
        # One refinement by least squares: a gap of rounded numbers is known less well than the whole.
        codes = (w_OGg / scale[..., None]).round()
        norm = codes.square().sum(-1)
        scale = torch.where(norm > 0, (codes * w_OGg).sum(-1) / norm.clamp(min=1), scale)
        scale = torch.where(scale > 0, scale, 1.0)
        exact = w_OGg / scale[..., None]
        codes = exact.round()
        # A weight is a level rounded to its data type: up to eps / 2 of itself away.
        allowed = (_STEPS_OFF + 0.75 * eps * codes.abs()).clamp(max=_LARGEST_OFF)
        good = ((exact - codes).abs() <= allowed).all(-1)
        good &= codes.amax(-1).clamp(min=0) - codes.amin(-1).clamp(max=0) <= steps
        better = good & ~fits
        found, fits = torch.where(better, scale, found), fits | good
    return found, fits


def _smallest_gap(w_OGg: Tensor, most_OG: Tensor, eps: float) -> Tensor:
    """Return the smallest distance of two levels of a group, 0 being one of them."""
    with_zero = F.pad(w_OGg, (0, 1)).sort(-1).values
    gaps = with_zero.diff(dim=-1)
    gap_OG: Tensor = gaps.masked_fill(gaps <= 8 * eps * most_OG[..., None], torch.inf).amin(-1)
    return torch.where(torch.isfinite(gap_OG), gap_OG, most_OG)


def _shared_scale(scale_OG: Tensor, fits_OG: Tensor, g: int, size: int) -> int:
    """Return how many weights really share a scale: ``g``, or a multiple where neighbours have one."""
    if not bool(fits_OG.all()):
        return g
    merged, scales = g, scale_OG
    while scales.shape[1] % 2 == 0 and merged * 2 <= size:
        first, second = scales[:, 0::2], scales[:, 1::2]
        same = ((first - second).abs() <= 1e-5 * first).all(-1)
        if float((~same).double().mean()) > _MOST_SPLIT:
            break
        merged, scales = 2 * merged, first
    return merged
