"""GPTQ as its derivation reads: one column, then the whole rest of the weight, and so on.

The blocked solver in :mod:`dllm_qbench.quant.methods.gptq` must give what this loop gives, and this loop
must give what optimal brain quantization itself gives: the update of a column with the inverse
Hessian of the columns that are left (:func:`solve_by_elimination`). Both are here to be compared with,
and to be read; neither is used to quantize a model.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), equations 2 and 3 and section 3.3, steps 1 and 3; the
lazy batches of step 2 are what is left out.

Shapes: weight ``[O, I]``, Hessian ``[I, I]``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dllm_qbench.quant.grid import Grid, find_grid, scale_and_zero
from dllm_qbench.quant.methods.gptq import inverse_factor
from dllm_qbench.quant.scheme import Scheme


def solve_textbook(
    weight: Tensor, hessian: Tensor, scheme: Scheme, symmetric: bool, damp: float
) -> tuple[Tensor, Grid]:
    """Quantize column by column, from left to right, with one Cholesky factor of ``H^-1``.

    Row q of U, with ``H^-1 = U^T U``, is what elimination leaves of row q of the inverse, over its
    root. Each column's error goes to all columns behind it at once: I rank-1 updates of the whole
    rest, where the blocked solver makes I / 128 matrix products.

    Returns:
        The dequantized weight in float64, and the grid its groups ended up with.

    Raises:
        as :func:`dllm_qbench.quant.methods.gptq.solve`.
    """
    U_II = inverse_factor(hessian, damp)

    def spread(rest_OI: Tensor, error_O: Tensor, i: int) -> None:
        rest_OI.addr_(error_O / U_II[i, i], U_II[i, i + 1 :], alpha=-1)

    return _column_by_column(weight, scheme, symmetric, spread)


def solve_by_elimination(
    weight: Tensor, hessian: Tensor, scheme: Scheme, symmetric: bool, damp: float
) -> tuple[Tensor, Grid]:
    """Quantize column by column, eliminating each from ``H^-1`` itself (equation 3).

    Loses digits where H is close to singular: that is why nobody does it. As
    :func:`solve_textbook` otherwise; only for an H without dead columns.
    """
    wide_II = (hessian.double() + hessian.double().T) / 2
    wide_II.diagonal().add_(damp * wide_II.diagonal().mean())
    inverse_II = torch.linalg.inv(wide_II)

    def spread(rest_OI: Tensor, error_O: Tensor, i: int) -> None:
        pivot, row_I = inverse_II[i, i].clone(), inverse_II[i].clone()
        rest_OI.addr_(error_O / pivot, row_I[i + 1 :], alpha=-1)
        inverse_II.addr_(row_I / pivot, row_I, alpha=-1)

    return _column_by_column(weight, scheme, symmetric, spread)


def _column_by_column(
    weight: Tensor,
    scheme: Scheme,
    symmetric: bool,
    spread: Callable[[Tensor, Tensor, int], None],
) -> tuple[Tensor, Grid]:
    """Round every column; ``spread(rest, error, i)`` changes the columns behind it."""
    W_OI = weight.detach().double().clone()
    grid = find_grid(W_OI, scheme.weight_bits, symmetric, scheme.group)
    scale_OG, zero_OG = grid.scale.clone(), grid.zero.clone()
    Q_OI = torch.empty_like(W_OI)
    for i in range(W_OI.shape[1]):
        g = i // grid.group
        if i % grid.group == 0:  # a group's grid is that of its weights as they are when it starts
            scale_OG[:, g], zero_OG[:, g] = scale_and_zero(
                W_OI[:, i : i + grid.group], grid.bits, symmetric
            )
        column = Grid(scale_OG[:, g, None], zero_OG[:, g, None], grid.bits, symmetric, 1)
        Q_OI[:, i] = column.values(column.codes(W_OI[:, i, None]))[:, 0]
        spread(W_OI[:, i + 1 :], W_OI[:, i] - Q_OI[:, i], i)
    return Q_OI, Grid(scale_OG, zero_OG, grid.bits, symmetric, grid.group)
