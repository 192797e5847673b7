"""Products with packed weights: tiles of a weight are unpacked, and torch's matmul does the rest.

Shapes: M tokens, I inputs, O outputs.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dllm_qbench.kernels.backend import CannotError
from dllm_qbench.kernels.codes import Codes, PackedWeight
from dllm_qbench.kernels.cpu.rows import empty, flat, on_cpu, targets
from dllm_qbench.kernels.cpu.scaling import scale_rows
from dllm_qbench.kernels.cpu.threads import in_ranges
from dllm_qbench.kernels.cpu.weights import Tiles, dequantized, expand, zeros_of

_ROWS = 512  # whose integer sums are held at a time
# Sums in int32: of products up to 128 * 128, and of 255 * 255 once zero points are taken out.
_MOST = {True: (2**31 - 1) // 128**2, False: (2**31 - 1) // 255**2}
_sums: WeakKeyDictionary[PackedWeight, Tensor] = WeakKeyDictionary()


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Multiply float inputs: bfloat16 by weights rounded to bfloat16, others in float32."""
    on_cpu(x, "linear")
    on_cpu(weight.data, "linear: a weight")
    O, I = weight.shape  # noqa: E741 (the legend's names)
    dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    M = x.shape[:-1].numel()
    made_MO = empty((M, O), dtype)
    added = torch.zeros(O, dtype=dtype) if bias is None else bias.detach().to(dtype)
    if M == 0 or I == 0:
        made_MO.copy_(added.expand(M, O))
        return made_MO.view(*x.shape[:-1], O).to(x.dtype)
    x_MI, tiles = x.detach().reshape(M, I).to(dtype), Tiles(weight, dtype)
    for first in range(0, O, tiles.step):
        rows = slice(first, min(first + tiles.step, O))
        torch.addmm(added[rows], x_MI, tiles.values(rows), out=made_MO[:, rows])
    return made_MO.view(*x.shape[:-1], O).to(x.dtype)


def linear_quantized(
    codes: Codes, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Multiply integer inputs: in int32 where each has one scale a row, else as floats.

    A bfloat16 result is then that of bfloat16 values, as it is of a fake-quantized linear.
    """
    on_cpu(codes.data, "linear_quantized")
    on_cpu(weight.data, "linear_quantized: a weight")
    O, I = weight.shape  # noqa: E741 (the legend's names)
    lead = codes.scale.shape[:-1]
    M = lead.numel()
    grouped = codes.scale.shape[-1] != 1 or weight.scale.shape[-1] != 1
    if M == 0 or I == 1 or grouped:  # torch 2.13's integer product takes [1, O] for [O, 1]
        kind = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        values = dequantized(codes, kind) if M and I else torch.empty(M, I, dtype=kind)
        return linear(values, weight, bias).view(*lead, O).to(dtype)
    symmetric = codes.symmetric and weight.symmetric
    if _MOST[symmetric] < I:
        raise CannotError(
            f"linear_quantized: backend 'cpu' sums in int32, which {_MOST[symmetric]} inputs of such"
            f" grids may fill; found {I}"
        )
    x_MI, tokens = _tokens(codes, weight)
    shared, tiles = _outputs(codes, weight), Tiles(weight, torch.int8)
    made_MO = empty((M, O), torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    own_bias = torch.empty(0) if bias is None else bias.detach().float()
    sums = empty((min(M, _ROWS) * tiles.step,), torch.int32)
    for first in range(0, O, tiles.step):
        outputs = slice(first, min(first + tiles.step, O))
        w_In, n = tiles.integers(outputs), outputs.stop - first
        for above in range(0, M, _ROWS):
            rows = slice(above, min(above + _ROWS, M))
            sums_Mn = sums[: (rows.stop - above) * n].view(-1, n)
            torch._int_mm(x_MI[rows], w_In, out=sums_Mn)
            _scale(
                sums_Mn,
                [part[rows] for part in tokens],
                [part[outputs] for part in shared],
                own_bias[outputs],
                not symmetric,
                made_MO[rows],
                first,
            )
    return made_MO.view(*lead, O).to(dtype)


def _scale(
    sums_Mn: Tensor,
    tokens: list[Tensor],
    outputs: list[Tensor],
    bias: Tensor,
    shifted: bool,
    made_MO: Tensor,
    first: int,
) -> None:
    scale_M, zero_M, sum_M = tokens
    scale_n, zero_n, rest_n = (flat(part) for part in outputs)

    def work(start: int, stop: int) -> None:
        wide, narrow = targets(made_MO[start:stop])
        scale_rows(
            flat(sums_Mn[start:stop]),
            made_MO.shape[1],
            first,
            flat(scale_M[start:stop]),
            flat(zero_M[start:stop]),
            flat(sum_M[start:stop]),
            scale_n,
            zero_n,
            rest_n,
            shifted,
            flat(bias),
            wide,
            narrow,
        )

    in_ranges(len(sums_Mn), sums_Mn.shape[1], work)


def _tokens(codes: Codes, weight: PackedWeight) -> tuple[Tensor, list[Tensor]]:
    """Return int8 ``[M, I]``, and ``[M]`` each: scales, zero points, sums that a weight's zero meets."""
    M, I = codes.scale.numel(), codes.size  # noqa: E741 (the legend's names)
    data = codes.data.reshape(M, -1).contiguous()
    zero = torch.zeros(M, dtype=torch.int32)
    if codes.zero is not None:
        zero = codes.zero.reshape(M).int() - (128 if codes.bits == 8 else 0)
    if codes.bits < 8:
        x_MI = torch.empty(M, I, dtype=torch.int8)
        expand(data, codes.bits, codes.symmetric, x_MI)
    else:
        x_MI = data if codes.symmetric else (data ^ 128).view(torch.int8)
    sums = torch.zeros_like(zero) if weight.symmetric else x_MI.sum(1, dtype=torch.int32)
    return x_MI, [codes.scale.reshape(M).contiguous(), zero, sums]


def _outputs(codes: Codes, weight: PackedWeight) -> list[Tensor]:
    """Return ``[O]`` each: scales, zero points, sums of weights less I zero points."""
    zeros = zeros_of(weight)
    scale = weight.scale.reshape(-1).contiguous()
    zero = torch.zeros(len(scale), dtype=torch.int32)
    if zeros is not None:
        zero = zeros.reshape(-1).int() - (128 if weight.bits == 8 else 0)
    rest = torch.zeros_like(zero)
    if not codes.symmetric:
        rest = _sum_of(weight) - weight.size * zero
    return [scale, zero, rest]


def _sum_of(weight: PackedWeight) -> Tensor:
    """Return the sums of a weight's int8 rows, int32 ``[O]``, counted once for each weight."""
    found = _sums.get(weight)
    if found is None:
        ones, tiles = torch.ones(1, weight.size, dtype=torch.int8), Tiles(weight, torch.int8)
        O = weight.shape[0]  # noqa: E741 (the legend's name)
        parts = [
            torch._int_mm(ones, tiles.integers(slice(first, min(first + tiles.step, O))))
            for first in range(0, O, tiles.step)
        ]
        found = _sums[weight] = torch.cat(parts, 1).view(-1)
    return found
