"""GPTQ: round column by column, and let the columns still to come make up for each error.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), algorithm 1; the update is OBQ's (equation 2):

    q = argmin error of w_q;   delta = -(w_q - quant(w_q)) / [H^-1]_qq * [H^-1]_q,:

W [O, I] weight, X [N, I] inputs, H = X^T X [I, I], U upper triangular with H^-1 = U^T U: row q of U
is what is left of H^-1's row q after columns 0..q-1 are eliminated, over its root (section 3.3).

What published code leaves open, settled here:
- **group grids** come from the *updated* weights at the moment the group starts. Lazy blocks end at
  group boundaries, so that all of a group's weights are up to date then. With ``act_order`` the
  columns of a group are not neighbours in time: grids then come from the original weights, and group
  boundaries stay where the scheme says;
- **dead columns** (an input that was 0 on all calibration tokens) are rounded to nearest. Setting
  them to 0, as the released code does, would break the layer on the first token that uses them;
- **damping** adds ``damp`` times the mean of H's diagonal over live columns. (Massive activations set
  that mean: in such layers the other columns round nearly to nearest.) Where H is still not
  positive definite, the damping grows tenfold until it is, with a warning that names the layer;
- **massive tokens**: diffusion LLMs carry activations thousands of times the usual at the input of
  down_proj, on a few delimiter tokens. In X^T X they outweigh all other tokens together, and GPTQ
  then trades the others' accuracy for theirs: on the embedded LLaDA it falls *behind* rounding to
  nearest in accuracy although its layer error is half. So a token counts with at most ``token_cap``
  times the median token's norm; ``None`` is the published algorithm;
- **precision**: the solve is in float64, and so is H, except that H adds up in float32 where the model
  runs in half precision;
- **memory**: beside H there are at most two more matrices of its size at a time, so that 18,944 inputs
  (Dream-7B's down_proj) take 9 GiB. What is not symmetric in a given H is averaged out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from dllm_qbench.errors import NonFiniteError
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner, mapped, second_moment
from dllm_qbench.quant.grid import (
    Grid,
    code_range,
    find_grid,
    require_finite,
    round_half_away,
    scale_and_zero,
    within,
)
from dllm_qbench.quant.layers import QuantLinear, put, target_names
from dllm_qbench.quant.offload import visited
from dllm_qbench.quant.scheme import Scheme

NAME = "gptq"
LAZY_COLUMNS = 128  # the paper's B; it changes the order of the arithmetic, not the result
_MOST_DAMPING = 1e4
_TILE = 512  # rows that are made symmetric at a time


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return False


def gptq_weight(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme | str,
    damp: float = 0.01,
    act_order: bool = False,
) -> Tensor:
    """Quantize one weight against the second moment of its inputs.

    Args:
        weight: ``[O, I]``, finite.
        hessian: ``X^T X`` ``[I, I]`` up to a positive factor, symmetric.
        scheme: bits and group of the weight; asymmetric unless it says otherwise. Activation bits
            play no part.
        damp: share of the mean diagonal that is added to the diagonal.
        act_order: take columns in falling order of ``diag(H)`` instead of from left to right.

    Returns:
        The dequantized weight ``[O, I]``, in the data type of ``weight``.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight or in the Hessian.
        ValueError: shapes that do not fit, negative damping.
    """
    parsed = Scheme.parse(scheme)
    symmetric = parsed.is_symmetric(symmetric_by_default(parsed))
    values, _ = solve(weight, hessian, parsed, symmetric, damp, act_order)
    return within(values, weight.dtype)


def solve(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    symmetric: bool,
    damp: float,
    act_order: bool,
    where: str = "the weight",
) -> tuple[Tensor, Grid | None]:
    """Return the dequantized weight in float64 and the grid that its groups ended up with.

    ``where`` names the weight in warnings.
    """
    _check(weight, hessian, damp)
    W_OI = weight.detach().double()
    if not scheme.quantizes_weights or W_OI.numel() == 0:
        return W_OI.clone(), None
    I = W_OI.shape[1]  # noqa: E741 (the legend's name for the number of inputs)
    bits = scheme.weight_bits
    low, high = code_range(bits, symmetric)
    grid = find_grid(W_OI, bits, symmetric, scheme.group)
    group = grid.group
    scale_GO, zero_GO = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    order = None
    if act_order:  # stable, so that equal diagonals keep their order on every machine
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    columns: list[int] = list(range(I)) if order is None else order.tolist()
    U_II = inverse_factor(hessian, damp, order, where)
    pivots: list[float] = U_II.diagonal().tolist()
    # Columns of W as rows: each step then reads and writes contiguous memory. Always a copy: of a
    # single row or column, .contiguous() would be the caller's own weight.
    W_IO = W_OI.T.clone(memory_format=torch.contiguous_format) if order is None else W_OI.T[order]
    del W_OI
    Q_IO = torch.empty_like(W_IO)
    step = group * max(1, LAZY_COLUMNS // group)
    for start in range(0, I, step):
        stop = min(start + step, I)
        E_BO = torch.empty_like(W_IO[start:stop])
        for i in range(start, stop):
            g = columns[i] // group
            if not act_order and i % group == 0:
                scale_GO[g], zero_GO[g] = scale_and_zero(W_IO[i : i + group].T, bits, symmetric)
            w_O, scale_O, zero_O = W_IO[i], scale_GO[g], zero_GO[g]
            code_O = round_half_away(w_O / scale_O).add_(zero_O).clamp_(low, high)
            torch.mul(code_O.sub_(zero_O), scale_O, out=Q_IO[i])
            torch.sub(w_O, Q_IO[i], out=E_BO[i - start]).div_(pivots[i])
            W_IO[i + 1 : stop].addr_(U_II[i, i + 1 : stop], E_BO[i - start], alpha=-1)
        W_IO[stop:].addmm_(U_II[start:stop, stop:].T, E_BO, alpha=-1)
    del W_IO, U_II
    Q_OI = (Q_IO if order is None else Q_IO[torch.argsort(order)]).T.contiguous()
    return Q_OI, replace(grid, scale=scale_GO.T.contiguous(), zero=zero_GO.T.contiguous())


def inverse_factor(
    hessian_II: Tensor, damp: float, order: Tensor | None = None, where: str = "the weight"
) -> Tensor:
    """Return the upper triangular U with ``U^T U = (H + damping)^-1``, in float64.

    H = R R^T with R upper triangular is Cholesky's factor read backwards, and U = R^-1: H^-1 itself,
    which loses digits where H is close to singular, is never formed. ``order`` is applied to rows and
    columns first. H is left alone; two matrices of its size are alive at a time.
    """
    flipped_II = _flipped(hessian_II, order)
    diagonal = flipped_II.diagonal()
    dead = diagonal <= 0
    # Averaged in the order of H, which the last digit depends on.
    live = diagonal.flip(0)[~dead.flip(0)]
    mean = float(live.mean()) if live.numel() else 1.0
    # A dead column is coupled to nothing; any positive diagonal makes it round to nearest.
    undamped = torch.where(dead, mean, diagonal)
    share = damp
    while True:
        diagonal.copy_(undamped + share * mean)
        factor_II, failed = torch.linalg.cholesky_ex(flipped_II)
        if not int(failed):
            break
        share = max(10 * share, 1e-8)
        if share > _MOST_DAMPING:
            raise ValueError(
                f"gptq: {where}: the Hessian is far from positive semidefinite; pass X^T X of real"
                " inputs"
            )
    if share != damp:
        warnings.warn(
            f"gptq: {where}: the Hessian is not positive definite at damp={damp:g}; used {share:g}"
            " instead",
            RuntimeWarning,
            stacklevel=2,
        )
    del flipped_II, diagonal
    R_II = factor_II.flip(0, 1)
    del factor_II
    # By columns, as LAPACK wants it: the identity is overwritten by U.
    U_II: Tensor = torch.zeros_like(R_II, memory_format=torch.contiguous_format).T
    U_II.fill_diagonal_(1.0)
    torch.linalg.solve_triangular(R_II, U_II, upper=True, out=U_II)
    return U_II


def _flipped(hessian_II: Tensor, order: Tensor | None) -> Tensor:
    """Return ``(H + H^T) / 2`` in float64, its rows and columns in order, last first."""
    H_II = hessian_II if order is None else hessian_II[order][:, order]
    H_II = H_II.flip(0, 1).double()
    for start in range(0, len(H_II), _TILE):  # in place, tile by tile
        tile = slice(start, start + _TILE)
        mean = (H_II[tile, start:] + H_II[start:, tile].T) / 2
        H_II[tile, start:] = mean
        H_II[start:, tile] = mean.T
    return H_II


def quantize_model(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    device: torch.device | None = None,
    *,
    damp: float = 0.01,
    act_order: bool = False,
    token_cap: float | None = 2.0,
) -> None:
    """Replace every targeted linear of ``model``, in place, truly sequentially.

    The inputs of a linear come from the blocks and linears before it as already quantized (with
    their activation rounding, if the scheme has it). H is that of the inputs before their own
    rounding. Linears that read the same input share one H and are solved as one stacked weight:
    rows do not interact.
    """
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    for name, weight, grid in solved_weights(
        model, scheme, calibration, symmetric, damp, act_order, token_cap, device
    ):
        put(model, name, QuantLinear(weight, _linear(model, name).bias, grid, scheme, NAME))


def solved_weights(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    symmetric: bool,
    damp: float,
    act_order: bool,
    token_cap: float | None,
    device: torch.device | None = None,
) -> Iterator[tuple[str, Tensor, Grid | None]]:
    """Yield name, dequantized weight and grid of every targeted linear, in forward order.

    Whoever iterates puts each weight in place before asking for the next: later inputs come from
    there. A layer that turns its inputs is solved against the turned ones.
    """
    if token_cap is not None and not token_cap > 0:
        raise ValueError(f"gptq: token_cap must be above 0, or None, found {token_cap}")
    target_names(model)  # refuses a model with linears that no group covers
    runner = BlockRunner(model, calibration, device)
    for index, block in visited(model, device):
        for names, inputs in runner.stages(block):
            linears = [_linear(block, name) for name in names]
            stacked = torch.cat([linear.weight for linear in linears])
            first = linears[0]
            if isinstance(first, QuantLinear):
                inputs = mapped(inputs, first.turned)
            where = f"model.layers.{index}.{names[0]}"
            try:
                H_II = second_moment(inputs, token_cap)
                del inputs
                values, grid = solve(stacked, H_II, scheme, symmetric, damp, act_order, where)
            except NonFiniteError as error:
                raise NonFiniteError(f"{where}: {error}") from error
            del H_II, stacked
            start = 0
            for name, linear in zip(names, linears, strict=True):
                rows = slice(start, start + linear.out_features)
                start = rows.stop
                own = None if grid is None else grid.rows(rows)
                yield f"model.layers.{index}.{name}", within(values[rows], linear.weight.dtype), own
            del values, grid, linears, first, linear


def _linear(owner: nn.Module, name: str) -> nn.Linear | QuantLinear:
    linear = owner.get_submodule(name)
    assert isinstance(linear, nn.Linear | QuantLinear)
    return linear


def _check(weight: Tensor, hessian: Tensor, damp: float) -> None:
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"gptq: a weight [out, in] needs a Hessian [in, in], found {list(weight.shape)} and"
            f" {list(hessian.shape)}"
        )
    if damp < 0:
        raise ValueError(f"gptq: damp must be 0 or more, found {damp}")
    require_finite(weight, "the weight")
    require_finite(hessian, "the Hessian")
