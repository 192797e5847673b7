"""A published layer as integers and a grid, whichever format it came in, and the layer that runs it.

Notable:
- a weight is ``(code - zero) * scale``, rounded once to the scale's data type: so the libraries of all
  three formats dequantize;
- symmetric grids are those of other libraries, -2^(b-1)..2^(b-1)-1 (``QuantLinear.full_range``);
- where a file assigns inputs to groups freely (GPTQ's act-order, ``g_idx``), the layer holds its columns
  group by group and reads its inputs in that order; so its groups are runs again, as audits expect;
- activations are rounded as compressed-tensors does it, whose format this is: by absmax / (q + 1/2),
  codes -(q + 1)..q. Our own layers, and the CUDA kernels of vLLM, take absmax / q; what we exported says
  so, and is rounded so.

Shapes: O outputs, I inputs, G groups of an output channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_qbench.quant.grid import Grid
from dllm_qbench.quant.layers import QuantLinear, Rotation
from dllm_qbench.quant.scheme import Scheme

_VALUES_AT_ONCE = 2**22  # in float64


@dataclass(frozen=True, eq=False)
class Published:
    """What a file says of one weight.

    Attributes:
        codes: ``[O, I]`` integers; -2^(bits-1).. on a symmetric grid, 0.. on an asymmetric one.
        scale: ``[O, G]``, as the file holds it.
        zero: ``[O, G]`` codes of the value 0; ``None`` on a symmetric grid.
        bits: of a code.
        group: inputs that share a scale; ``None`` means all.
        act_bits: 8 or 4 where inputs are rounded, else 16.
        groups: ``[I]``, the group of every input; ``None`` where groups are runs of inputs.
        turned: whether the file's grid is symmetric, and turned around in some groups.
        own_rounding: whether activations are rounded as our own layers do it.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int | None
    act_bits: int = 16
    groups: Tensor | None = None
    turned: bool = False
    own_rounding: bool = False

    @property
    def symmetric(self) -> bool:
        """Whether the grid's codes lie around 0."""
        return self.zero is None

    @property
    def scheme(self) -> Scheme:
        """What the weight is quantized to, its symmetry apart."""
        return Scheme(self.bits, self.act_bits, self.group)

    def layer(self, bias: Tensor | None, method: str, dtype: torch.dtype) -> PublishedLinear:
        """Return the layer, with weights and bias in ``dtype``.

        Raises:
            ValueError: groups of which one has more or fewer inputs than the group size.
        """
        inputs = self.codes.shape[1]
        size = inputs if self.group is None else min(self.group, inputs)
        codes, order = self.codes, None
        if self.groups is not None:
            order = _by_group(self.groups, size, self.scale.shape[1])
            codes = codes if order is None else codes[:, order]
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero
        grid = Grid(self.scale.double(), zero.double(), self.bits, self.symmetric, size)
        values_dtype = self.scale.dtype
        weight = torch.empty(codes.shape, dtype=dtype)
        rows = max(1, _VALUES_AT_ONCE // max(1, inputs))
        for start in range(0, len(codes), rows):
            some = slice(start, start + rows)
            weight[some] = grid.rows(some).values(codes[some]).to(values_dtype)
        plain_bias = None if bias is None else bias.to(dtype)
        kind = OwnRounding if self.own_rounding else PublishedLinear
        layer = kind(weight, plain_bias, grid, self.scheme, method, values_dtype)
        if order is not None:
            layer.transform = Reordered(order)
        return layer


class Reordered(Rotation):
    """Inputs in another order: channel i after it is channel ``order[i]`` before it."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x [..., I]`` in the new order."""
        return x[..., self.order]

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``y [..., I]`` in the old order."""
        return y[..., self.order.argsort()]


class PublishedLinear(QuantLinear):
    """A layer of a published checkpoint; see the module's docstring.

    Attributes:
        values_dtype: what its weights were rounded to when they were dequantized.
    """

    full_range = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        grid: Grid,
        scheme: Scheme,
        method: str,
        values_dtype: torch.dtype,
    ) -> None:
        super().__init__(weight, bias, grid, scheme, method)
        self.values_dtype = values_dtype

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weight's values: the coarser of the file's and the one that it is held in."""
        held: torch.dtype = self.weight.dtype
        return max(held, self.values_dtype, key=lambda dtype: torch.finfo(dtype).eps)

    def _turned_and_rounded(self, x: Tensor) -> Tensor:
        """Return what the weight multiplies."""
        made = self.turned(x)
        return (
            round_tokens(made, self.scheme.act_bits) if self.scheme.quantizes_activations else made
        )


class OwnRounding(PublishedLinear):
    """A published layer whose activations are rounded as those of :class:`QuantLinear`."""

    def _turned_and_rounded(self, x: Tensor) -> Tensor:
        """Return what the weight multiplies."""
        made: Tensor = QuantLinear._turned_and_rounded(self, x)
        return made


def round_tokens(x: Tensor, bits: int) -> Tensor:
    """Round ``x [..., I]`` to a grid of its own for every token, as compressed-tensors does.

    Scale absmax / (2^(bits-1) - 1/2), in the data type of ``x``; codes -2^(bits-1)..2^(bits-1)-1, ties
    to even. So the largest magnitude is half a step beyond the last code on either side.
    """
    last = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True) / (last + 0.5)
    # A zero token divides to 0, not to NaN.
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    return (x / scale).clamp_(-last - 1, last).round_() * scale


def _by_group(groups_I: Tensor, size: int, count: int) -> Tensor | None:
    """Return the inputs' order group by group; ``None`` where they have it already."""
    groups_I = groups_I.long()
    inputs = len(groups_I)
    runs_I = torch.arange(inputs, device=groups_I.device) // size
    if torch.equal(groups_I, runs_I):
        return None
    order = groups_I.argsort(stable=True)
    if not torch.equal(groups_I[order], runs_I):
        found = torch.bincount(groups_I.clamp(min=0), minlength=count)
        raise ValueError(
            f"it assigns {inputs} inputs to groups {int(groups_I.min())}..{int(groups_I.max())} of"
            f" {int(found.min())} to {int(found.max())} inputs each; expected {count} groups of {size}"
        )
    return order
