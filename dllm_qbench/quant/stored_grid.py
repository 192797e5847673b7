"""A quantized weight as integers, exactly: from its codes and scales come the very same bits.

A :class:`~dllm_qbench.quant.layers.QuantLinear` holds the values that its codes stand for, rounded to
the model's data type, and its scales in float32; the values were made with scales in float64. So here
the grid is found again from the values:

- **codes** are the nearest ones. In half precision two neighbouring codes may have one value; either
  gives it back;
- **scales** stay float32 where that gives back every value of the layer. Elsewhere each value w of code
  k bounds its group's scale, from the two midpoints between w and its neighbours, over k. All bounds
  together leave an interval that holds the scale it was made with, and with it a float64 to store;
- nothing is taken on trust: the values are made again and compared bit by bit.

Shapes: O outputs, I inputs, G groups of g inputs, P bytes of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.errors import CheckpointError
from dllm_qbench.kernels.packing import pack_codes, unpack_codes
from dllm_qbench.quant.grid import Grid, code_range, within

_VALUES_AT_ONCE = 2**22  # of a weight: a dozen temporaries of 32 MiB
# torch rounds to halves by way of float32: a value within half its step of a midpoint may end on either
# side. So there bounds are that much wider, and the interval is looked through: its middle, quarters...
_BEYOND = 2.0**-24
_SHARES = tuple(odd / 2**level for level in range(1, 7) for odd in range(1, 2**level, 2))
_INTEGERS = {4: torch.int32, 2: torch.int16}  # what a float of so many bytes is compared as


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """A weight as a checkpoint holds it.

    Attributes:
        codes: packed, uint8 ``[O, P]``.
        scale: ``[O, G]``, float32 where that is exact, else float64.
        zero: uint8 ``[O, G]`` (float32 where one is -0, as of a group without negative weights), or
            ``None`` where the grid is symmetric.
        bits, symmetric, group: as in :class:`~dllm_qbench.quant.grid.Grid`.
        size: I.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    symmetric: bool
    group: int
    size: int

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scale, self.zero)
                   if t is not None)  # fmt: skip

    def grid(self) -> Grid:
        """Return the grid, in float64."""
        scale = self.scale.double()
        zero = torch.zeros_like(scale) if self.zero is None else self.zero.double()
        return Grid(scale, zero, self.bits, self.symmetric, self.group)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the dequantized weight ``[O, I]``."""
        grid, rows = self.grid(), _rows(self.size)
        out = torch.empty(len(self.codes), self.size, dtype=dtype, device=self.codes.device)
        for start in range(0, len(out), rows):
            some = slice(start, start + rows)
            codes = unpack_codes(self.codes[some], self.bits, self.size, self.symmetric)
            out[some] = within(grid.rows(some).values(codes), dtype)
        return out


def store_grid(
    weight: Tensor, scale: Tensor, zero: Tensor, bits: int, symmetric: bool, group: int
) -> StoredGrid:
    """Find codes and scales that give back ``weight [O, I]`` bit by bit.

    Args:
        weight: float32, bfloat16 or float16.
        scale, zero: the grid as a layer holds it, ``[O, ceil(I / group)]``.
        bits, symmetric, group: of the grid.

    Raises:
        CheckpointError: a weight is on no level of its group's grid, or a field is unusable.
    """
    O, I = weight.shape  # noqa: E741 (the legend's names)
    shape = (O, -(-I // group))
    if weight.element_size() not in _INTEGERS:
        raise CheckpointError(
            f"its weight is {weight.dtype}; packed are float32, bfloat16 and float16"
        )
    if tuple(scale.shape) != shape or tuple(zero.shape) != shape:
        raise CheckpointError(
            f"scale and zero have shapes {list(scale.shape)} and {list(zero.shape)};"
            f" expected {list(shape)}, groups of {group}"
        )
    _, high = code_range(bits, symmetric)
    most = 0 if symmetric else high
    if not bool(((zero == zero.round()) & (zero >= 0) & (zero <= most)).all()):
        raise CheckpointError(f"a zero point is no integer in 0..{most}")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError("a scale is not a positive number")
    packed, scales = [], []
    for start in range(0, O, _rows(I)):
        some = slice(start, start + _rows(I))
        grid = Grid(scale[some].double(), zero[some].double(), bits, symmetric, group)
        codes, exact = _exact(weight[some], grid, start)
        packed.append(pack_codes(codes, bits, symmetric))
        scales.append(exact)
    exact = torch.cat(scales)
    narrow = exact.float()
    return StoredGrid(
        torch.cat(packed),
        narrow if torch.equal(narrow.double(), exact) else exact,
        _stored_zero(zero, symmetric),
        bits,
        symmetric,
        group,
        I,
    )


def _stored_zero(zero_OG: Tensor, symmetric: bool) -> Tensor | None:
    negative = bool(zero_OG.signbit().any())
    if symmetric and not negative:
        return None
    return zero_OG.float() if negative else zero_OG.to(torch.uint8)


def _exact(weight_OI: Tensor, grid: Grid, first_row: int) -> tuple[Tensor, Tensor]:
    """Return codes and float64 scales that give back the values bit by bit."""
    codes = _nearest_codes(weight_OI, grid)
    wrong_OG = _by_group(_differ(weight_OI, grid, codes), grid.group).any(-1)
    if not bool(wrong_OG.any()):
        return codes, grid.scale
    start_OG, end_OG = _bounds(weight_OI, grid, codes)
    scale = grid.scale
    for share in _SHARES:
        scale = torch.where(wrong_OG, start_OG + share * (end_OG - start_OG), scale)
        made = replace(grid, scale=scale)
        wrong_OG = _by_group(_differ(weight_OI, made, codes), grid.group).any(-1)
        if not bool(wrong_OG.any()):
            break
    # A layer that is made from these holds the scale in float32: it has to be the one it holds now.
    moved_OG = scale.float().double() != grid.scale
    wrong_OG |= moved_OG
    if bool(wrong_OG.any()):
        row, group = (int(i) for i in wrong_OG.nonzero()[0])
        raise CheckpointError(
            f"a weight in row {first_row + row}, group {group} is on no level of its grid"
            f" ({grid.bits} bits, scale {float(grid.scale[row, group]):.6g},"
            f" {int(wrong_OG.sum())} such groups in {len(weight_OI)} rows); it was changed after"
            " rounding, or the layer keeps another grid than it was rounded on"
        )
    return codes, scale


def _nearest_codes(weight_OI: Tensor, grid: Grid) -> Tensor:
    """Return the code of every value, a neighbour of the nearest where only that gives it back."""
    codes = grid.codes(weight_OI)
    low, high = code_range(grid.bits, grid.symmetric)
    for step in (-1, 1):
        wrong_OI = _differ(weight_OI, grid, codes)
        if not bool(wrong_OI.any()):
            break
        beside = (codes + step).clamp(low, high)
        codes = torch.where(wrong_OI & ~_differ(weight_OI, grid, beside), beside, codes)
    return codes


def _differ(weight_OI: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """Say of every value whether its code gives other bits."""
    made = within(grid.values(codes), weight_OI.dtype)
    kind = _INTEGERS[weight_OI.element_size()]
    different: Tensor = made.view(kind) != weight_OI.contiguous().view(kind)
    return different


def _bounds(weight_OI: Tensor, grid: Grid, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return between what its values and its float32 put every group's scale, ``[O, G]`` twice."""
    kind = _INTEGERS[weight_OI.element_size()]
    size_OI = weight_OI.abs().contiguous()
    lower = (size_OI.view(kind) - 1).clamp(min=0).view(size_OI.dtype).double()
    upper = (size_OI.view(kind) + 1).view(size_OI.dtype).double()
    steps = (codes - grid._spread(grid.zero, codes.shape[-1])).abs()
    used = steps > 0
    beyond = 0.0 if weight_OI.dtype == torch.float32 else _BEYOND
    least = torch.where(used, (lower + size_OI.double()) / 2 * (1 - beyond) / steps, 0.0)
    most = torch.where(used, (upper + size_OI.double()) / 2 * (1 + beyond) / steps, torch.inf)
    narrow = grid.scale.float().contiguous()
    below = (narrow.view(torch.int32) - 1).view(torch.float32).double()
    above = (narrow.view(torch.int32) + 1).view(torch.float32).double()
    start = torch.maximum(_by_group(least, grid.group).amax(-1), (below + grid.scale) / 2)
    # The last group's filling is 0, which bounds nothing from below; from above it would.
    end_OG = _by_group(most, grid.group, fill=torch.inf).amin(-1)
    return start, torch.minimum(end_OG, (above + grid.scale) / 2)


def _by_group(x_OI: Tensor, group: int, fill: float = 0.0) -> Tensor:
    """Return ``[O, G, g]``, the last group filled up."""
    filled: Tensor = F.pad(x_OI, (0, -x_OI.shape[1] % group), value=fill).unflatten(-1, (-1, group))
    return filled


def _rows(size: int) -> int:
    return max(1, _VALUES_AT_ONCE // max(1, size))
