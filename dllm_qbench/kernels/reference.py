"""The reference backend: plain torch operations, on any device, differentiable where that is free.

Legend: n the size of the last dimension, n = 2^k * m. ``hadamard_transform(x)`` equals ``x @
hadamard_matrix(n).T`` without building the matrix.

Sizes without a known Hadamard order (6, 44 * 3, ...) fall back to blocks: the largest power-of-two
divisor of n is transformed block by block (``block_hadamard`` says which block). A size that is
odd stays as it is (blocks of 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.kernels.codes import Codes, PackedWeight, per_channel
from dllm_qbench.kernels.orders import base_matrix, split
from dllm_qbench.kernels.packing import pack_codes

_WEIGHTS_AT_ONCE = 2**22  # that linear unpacks at a time


def hadamard(x: Tensor, width: int, signs: Tensor | None, inverse: bool) -> Tensor:
    """Turn every ``width`` neighbours, or back."""
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    blocks = x.unflatten(-1, (-1, width))
    if inverse:
        y = inverse_hadamard_transform(blocks).flatten(-2)
        return (y if signs is None else y * signs.to(y)).to(dtype)
    if signs is not None:
        blocks = (x * signs.to(x)).unflatten(-1, (-1, width))
    return hadamard_transform(blocks).flatten(-2).to(dtype)


def rotate_quantize(x: Tensor, width: int, signs: Tensor | None, bits: int, clip: float) -> Codes:
    """Turn, then round per token."""
    turned = x.float() if x.numel() == 0 else hadamard(x.float(), width, signs, inverse=False)
    return quantize(turned, bits, max(1, x.shape[-1]), True, clip)


def quantize(x: Tensor, bits: int, group: int, symmetric: bool, clip: float) -> Codes:
    """Round per group."""
    size = x.shape[-1]
    wide = F.pad(x.detach().float(), (0, -size % group)).unflatten(-1, (-1, group))
    if size == 0:
        wide = wide.new_zeros(*x.shape[:-1], 0, group)
    tiny = torch.finfo(torch.float32).tiny
    zero = None
    if symmetric:
        last = 2 ** (bits - 1) - 1
        scale = wide.abs().amax(-1, keepdim=True).mul_(clip / last).clamp_(min=tiny)
        codes = torch.div(wide, scale).round_().clamp_(-last, last)
    else:
        last = 2**bits - 1
        low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
        low, high = low.clamp(max=0.0) * clip, high.clamp(min=0.0) * clip
        scale = ((high - low) / last).clamp_(min=tiny)
        zeros = torch.round(-low / scale)
        codes = torch.div(wide, scale).round_().add_(zeros).clamp_(0, last)
        zero = zeros.squeeze(-1).to(torch.uint8)
    codes = codes.flatten(-2)[..., :size].to(torch.int8 if symmetric else torch.uint8)
    if bits < 8:
        codes = pack_codes(codes, bits, signed=symmetric)
    return Codes(codes, scale.squeeze(-1), zero, bits, size, group)


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Multiply float inputs, unpacking some rows of the weight at a time."""
    dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    inputs, parts = x.to(dtype), []
    step = max(1, _WEIGHTS_AT_ONCE // max(1, weight.size))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        own = None if bias is None else bias[rows].to(dtype)
        parts.append(F.linear(inputs, weight.dequantize(dtype, rows), own))
    made = torch.cat(parts, -1) if parts else inputs.new_zeros(*x.shape[:-1], 0)
    return made.to(x.dtype)


def linear_quantized(
    codes: Codes, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Multiply integer inputs: in float64, where sums of these integers are exact."""
    x_MI = codes.integers().double()
    if codes.zero is not None:
        x_MI -= per_channel(codes.zero.double(), codes.group, codes.size)
    w_OI = weight.codes().integers().double()
    zeros = weight.zeros()
    if zeros is not None:
        w_OI -= per_channel(zeros.double(), weight.group, weight.size)
    if codes.scale.shape[-1] == 1 and weight.scale.shape[-1] == 1:
        made = (x_MI @ w_OI.T).float() * codes.scale * weight.scale[:, 0]
    else:
        x_MI *= per_channel(codes.scale.double(), codes.group, codes.size)
        w_OI *= per_channel(weight.scale.double(), weight.group, weight.size)
        made = (x_MI @ w_OI.T).float()
    return (made if bias is None else made + bias.float()).to(dtype)


def block_hadamard(n: int) -> tuple[int, int, int]:
    """Return ``(blocks, 2^k, m)`` with ``blocks * 2^k * m == n``; ``blocks == 1`` where n is a
    known order.
    """
    found = split(n)
    if found is not None:
        return 1, *found
    power = n & -n
    return n // power, power, 1


def hadamard_matrix(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the orthonormal ``[n, n]`` matrix of the transform: entries +-1/sqrt(n) for a known
    order.

    Raises:
        ValueError: n is not positive.
    """
    blocks, power, m = block_hadamard(n)
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while sylvester.shape[0] < power:
        sylvester = torch.kron(two, sylvester)
    base = torch.from_numpy(base_matrix(m)).double()
    one = torch.kron(sylvester, base) / (power * m) ** 0.5
    whole: Tensor = torch.block_diag(*[one] * blocks)
    return whole.to(dtype)


def hadamard_transform(x: Tensor) -> Tensor:
    """Multiply the last dimension by the orthonormal Hadamard matrix, in n log n + n m steps.

    Args:
        x: ``[..., n]``, floating point; half precisions are computed in float32.
    """
    if not x.is_floating_point():
        raise TypeError(f"hadamard_transform needs floating-point values, found {x.dtype}")
    n = x.shape[-1]
    if n == 0:
        return x.clone()
    blocks, power, m = block_hadamard(n)
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = y.reshape(*x.shape[:-1], blocks, power, m)
    if m > 1:
        y = y @ torch.from_numpy(base_matrix(m)).to(y).T
    step = 1
    while step < power:  # butterflies over the power-of-two index
        pairs = y.reshape(*x.shape[:-1], blocks, power // (2 * step), 2, step, m)
        low, high = pairs.select(-3, 0), pairs.select(-3, 1)
        y = torch.stack((low + high, low - high), dim=-3)
        step *= 2
    out: Tensor = (y.reshape(x.shape) * (power * m) ** -0.5).to(x.dtype)
    return out


def inverse_hadamard_transform(x: Tensor) -> Tensor:
    """Undo :func:`hadamard_transform`: multiply by the transpose (Paley's matrices are not
    symmetric).
    """
    n = x.shape[-1]
    if n == 0:
        return x.clone()
    blocks, power, m = block_hadamard(n)
    if m == 1:
        return hadamard_transform(x)
    y = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).reshape(
        *x.shape[:-1], blocks, power, m
    )
    y = y @ torch.from_numpy(base_matrix(m)).to(y)
    y = y.transpose(-1, -2) @ (hadamard_matrix(power, torch.float64).to(y))
    out: Tensor = (y.transpose(-1, -2).reshape(x.shape) * m**-0.5).to(x.dtype)
    return out
