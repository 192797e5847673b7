"""Number grids: scales, zero points, codes. What every method rounds with.

Where published code disagrees, this module settles it as follows.

- **Range**: min-max, always extended to contain 0. So 0 is a level of every grid, exactly; padding
  and dead weights stay 0, and a constant group keeps its constant as an end of the grid (a range of
  [0.5, 0.5] would have no width and turn into noise).
- **Symmetric grid**: codes -q..q with q = 2^(b-1) - 1 and scale absmax / q. The largest magnitude is
  a level of either sign, never a rounding tie (as with scale 2 absmax / (2^b - 1)), and a row of one
  sign is not clipped; the price is one of the 2^b codes.
- **Asymmetric grid**: codes 0..2^b - 1, scale (max - min) / (2^b - 1), zero point round(-min / scale).
- **Ties** go away from zero, in float64, and what lies within 1e-9 of a step of a tie is one. Ties
  to even would leave the last code of some asymmetric grids unused, so that a second pass sees a
  smaller range and moves the values again.
- **Groups** run along the last dimension; one that the size does not divide leaves a shorter last
  group. A group larger than the dimension is the whole dimension.
- **Zero rows** have scale 1: codes and values 0.
- **16 bits** means untouched.

Consequences, tested as laws: the error is at most half a step; quantizing twice is quantizing once;
more bits never make the step larger.

Shapes: G groups of g weights each, ``x [..., D] -> scale [..., G]`` with G = ceil(D / g).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.errors import NonFiniteError, SchemeError
from dllm_qbench.quant.scheme import UNTOUCHED

_TIE = 1e-9  # in steps: far above float64 rounding, far below anything a weight can show


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of a tensor's groups.

    Attributes:
        scale: step width, float64 ``[..., G]``, positive.
        zero: code of the value 0, float64 integers ``[..., G]``; all 0 on a symmetric grid.
        bits: bits of one code.
        symmetric: which of the two kinds of grid.
        group: weights per group.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool
    group: int

    def codes(self, x: Tensor) -> Tensor:
        """Return the integer code of every value, int32 ``[..., D]``; outside values are clipped."""
        size = x.shape[-1]
        low, high = code_range(self.bits, self.symmetric)
        scale, zero = self._spread(self.scale, size), self._spread(self.zero, size)
        return (round_half_away(x.double() / scale) + zero).clamp_(low, high).to(torch.int32)

    def values(self, codes: Tensor) -> Tensor:
        """Return the value of every code, float64 ``[..., D]``."""
        size = codes.shape[-1]
        return (codes - self._spread(self.zero, size)) * self._spread(self.scale, size)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the level nearest to every value, in the data type of ``x``."""
        return within(self.values(self.codes(x)), x.dtype)

    def rows(self, rows: slice) -> Grid:
        """Return the grid of some of the rows of a two-dimensional tensor."""
        return replace(self, scale=self.scale[rows], zero=self.zero[rows])

    def _spread(self, per_group: Tensor, size: int) -> Tensor:
        return per_group.repeat_interleave(self.group, dim=-1)[..., :size]


def within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return levels in a data type; its largest number for those beyond.

    An asymmetric grid may end half a step beyond its range: not beyond the data type's.
    """
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and the highest code of a grid.

    >>> code_range(4, symmetric=True), code_range(4, symmetric=False)
    ((-7, 7), (0, 15))
    """
    if symmetric:
        q = 2 ** (bits - 1) - 1
        return -q, q
    return 0, 2**bits - 1


def round_half_away(x: Tensor) -> Tensor:
    """Round a float64 tensor to integers, ties away from zero."""
    return torch.copysign(torch.floor(x.abs() + (0.5 + _TIE)), x)


def scale_and_zero(x_Rg: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of each row, float64 ``[...]`` for values ``[..., g]``."""
    low = x_Rg.amin(-1).double().clamp(max=0.0)
    high = x_Rg.amax(-1).double().clamp(min=0.0)
    first, last = code_range(bits, symmetric)
    if symmetric:
        scale = torch.maximum(-low, high) / last
    else:
        scale = high / (last - first) - low / (last - first)  # one by one: the sum may overflow
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.zeros_like(scale) if symmetric else round_half_away(-low / scale)
    return scale, zero


def find_grid(x: Tensor, bits: int, symmetric: bool, group_size: int | None = None) -> Grid:
    """Return the min-max grid of ``x [..., D]``; see the module's docstring for what is settled.

    Raises:
        NonFiniteError: ``x`` holds a NaN or an infinity.
        SchemeError: bits outside 2..15, or a group of less than one value.
    """
    _check(x, bits, group_size)
    size = x.shape[-1]
    group = size if group_size is None else min(group_size, size)
    group = max(group, 1)
    # Zeros change no range, since every range contains 0.
    padded = F.pad(x.detach(), (0, -size % group))
    scale, zero = scale_and_zero(padded.unflatten(-1, (-1, group)), bits, symmetric)
    return Grid(scale, zero, bits, symmetric, group)


def quantize_dequantize(
    x: Tensor, bits: int, symmetric: bool, group_size: int | None = None
) -> Tensor:
    """Round every value to the nearest level of its group's min-max grid.

    Args:
        x: floating-point tensor ``[..., D]``, finite.
        bits: 2 to 15 bits a code; 16 returns a copy of ``x``.
        symmetric: levels -q..q times the scale, or ``2^bits`` levels over [min, max].
        group_size: values of the last dimension that share a scale; ``None`` means all of them.

    Returns:
        A new tensor of the shape and data type of ``x``.

    Raises:
        NonFiniteError: ``x`` holds a NaN or an infinity.
        SchemeError: bits outside 2..16, or a group of less than one value.
    """
    _check(x, bits, group_size)
    if bits == UNTOUCHED or x.numel() == 0:
        return x.detach().clone()
    return find_grid(x, bits, symmetric, group_size).nearest(x.detach())


def require_finite(x: Tensor, what: str) -> None:
    """Raise :class:`NonFiniteError` if ``x`` holds a NaN or an infinity; ``what`` names it."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        raise NonFiniteError(
            f"{what} holds {bad} non-finite value(s) of {x.numel()}, the first at index {where};"
            " a NaN or an infinity cannot be quantized: repair the checkpoint or exclude the layer"
        )


def _check(x: Tensor, bits: int, group_size: int | None) -> None:
    if not x.is_floating_point() or x.dim() == 0:
        raise TypeError(
            f"quantization grid: expected a floating-point tensor [..., D],"
            f" found {x.dtype} with shape {list(x.shape)}"
        )
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= UNTOUCHED:
        raise SchemeError(
            f"quantization grid: bits must be an integer from 2 to 16, found {bits!r}"
        )
    if group_size is not None and group_size < 1:
        raise SchemeError(
            f"quantization grid: group_size must be at least 1 or None, found {group_size!r}"
        )
    require_finite(x, "the tensor to quantize")
