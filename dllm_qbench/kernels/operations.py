"""The operations: arguments checked once, then handed to a backend.

Shapes: M tokens (any leading dimensions), I inputs, O outputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dllm_qbench.kernels.backend import Backend, CannotError, backend_for
from dllm_qbench.kernels.codes import Codes, PackedWeight

T = TypeVar("T")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def hadamard(
    x: Tensor,
    *,
    width: int | None = None,
    signs: Tensor | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Turn the last dimension by an orthonormal (randomised) Hadamard matrix.

    Every ``width`` neighbours x become ``(x * signs) H^T``; H has order 2^k m with m of Paley's
    (:func:`dllm_qbench.kernels.orders.split`), and a width without such an order is turned in blocks
    of its largest power of two. Source: QuaRot (arXiv 2404.00456), section 3.

    Args:
        x: ``[..., I]``, floating point; half precisions are computed in float32.
        width: divides I; ``None``: I.
        signs: ``[I]`` of +1 and -1, multiplied first; ``None``: none.
        inverse: undo it: ``(y H) * signs``.
        backend: ``None``: the fastest that can.

    Returns:
        A new tensor of the shape and data type of ``x``.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: a width that does not divide I, or signs of another shape.
        QBenchError: a backend that is unknown, missing, or cannot take ``x``.
    """
    width = _turn(x, width, signs, "hadamard")
    if x.numel() == 0:
        return x.clone()
    return _call(x, backend, lambda made: made.hadamard(x, width, signs, inverse))


def rotate_quantize(
    x: Tensor,
    bits: int,
    *,
    width: int | None = None,
    signs: Tensor | None = None,
    clip: float = 1.0,
    backend: str | None = None,
) -> Codes:
    """Turn like :func:`hadamard`, then round every token on a symmetric grid of its own.

    The turned tensor is never written to memory by a fused backend. Rounding is that of
    :func:`quantize` with one group. Half precisions are not rounded to in between.

    Raises:
        as :func:`hadamard` and :func:`quantize`.
    """
    width = _turn(x, width, signs, "rotate_quantize")
    _grid(bits, clip, "rotate_quantize")
    return _call(x, backend, lambda made: made.rotate_quantize(x, width, signs, bits, clip))


def quantize(
    x: Tensor,
    bits: int,
    *,
    group: int | None = None,
    symmetric: bool = True,
    clip: float = 1.0,
    backend: str | None = None,
) -> Codes:
    """Round ``x [..., I]`` to integer codes, each group of a token's channels on a grid of its own.

    Symmetric: step ``clip * absmax / q`` with q = 2^(bits-1) - 1, codes -q..q. Asymmetric: the range
    is [min, max] extended to hold 0, both ends times ``clip``; step range / (2^bits - 1), zero point
    round(-min / step). All in float32, ties to even. A group of zeros has codes that stand for 0. The
    last group may be shorter. A NaN makes the step of its group NaN, and so all values that its codes
    stand for.

    Args:
        x: floating point.
        bits: 4 or 8.
        group: channels that share a step; ``None``: a token has one.
        symmetric: which grid.
        clip: above 0 up to 1; values beyond that share of the range are clipped.
        backend: ``None``: the fastest that can.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: bits other than 4 and 8, a group below 1, a clip outside (0, 1].
        QBenchError: a backend that is unknown, missing, or cannot take ``x``.
    """
    _floating(x, "quantize")
    _grid(bits, clip, "quantize")
    size = x.shape[-1]
    if group is not None and group < 1:
        raise ValueError(f"quantize: group must be at least 1, or None, found {group}")
    width = max(1, size if group is None else min(group, size))
    return _call(x, backend, lambda made: made.quantize(x, bits, width, symmetric, clip))


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Multiply float inputs by a packed weight: ``x W^T + bias``, ``[..., I] -> [..., O]``.

    The weight is unpacked part by part to the data type of ``x`` (float32 for float64); sums are at
    least float32.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: shapes that do not fit.
        QBenchError: a backend that is unknown, missing, or cannot take these.
    """
    _floating(x, "linear")
    _fits(x.shape[-1], weight, bias, "linear")
    return _call(x, backend, lambda made: made.linear(x, weight, bias))


def linear_quantized(
    codes: Codes,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Multiply rounded inputs by a packed weight, in integers where each has one group a row.

    ``y = (q_x - z_x)(q_w - z_w)^T * s_x * s_w + bias``, accumulated in int32 and scaled in
    float32. With groups in float32; backend ``cpu`` rounds both sides to bfloat16 first where the result is.

    Args:
        codes: ``[..., I]`` rounded.
        weight: ``[O, I]``.
        bias: ``[O]`` or ``None``.
        dtype: of the result ``[..., O]``.
        backend: ``None``: the fastest that can.

    Raises:
        ValueError: shapes that do not fit.
        QBenchError: a backend that is unknown, missing, or cannot take these.
    """
    _fits(codes.size, weight, bias, "linear_quantized")
    return _call(
        codes.data, backend, lambda made: made.linear_quantized(codes, weight, bias, dtype)
    )


def _call(x: Tensor, backend: str | None, run: Callable[[Backend], T]) -> T:
    chosen, otherwise = backend_for(x, backend)
    if otherwise is None:
        return run(chosen)
    try:
        return run(chosen)
    except CannotError:
        return run(otherwise)


def _turn(x: Tensor, width: int | None, signs: Tensor | None, name: str) -> int:
    _floating(x, name)
    size = x.shape[-1]
    width = size if width is None else width
    if size and (width < 1 or size % width):
        raise ValueError(f"{name}: width {width} does not divide the {size} channels")
    if signs is not None and list(signs.shape) != [size]:
        raise ValueError(f"{name}: signs must be [{size}], found {list(signs.shape)}")
    return width


def _floating(x: Tensor, name: str) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} needs floating-point values, found {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{name} needs a tensor [..., I], found one without dimensions")


def _grid(bits: int, clip: float, name: str) -> None:
    if bits not in (4, 8):
        raise ValueError(f"{name}: bits must be 4 or 8, found {bits!r}")
    if not 0 < clip <= 1:
        raise ValueError(f"{name}: clip must be above 0 and at most 1, found {clip!r}")


def _fits(size: int, weight: PackedWeight, bias: Tensor | None, name: str) -> None:
    O, I = weight.shape  # noqa: E741 (the legend's names)
    if size != I:
        raise ValueError(f"{name}: inputs of {size} channels do not fit a weight {[O, I]}")
    if bias is not None and list(bias.shape) != [O]:
        raise ValueError(f"{name}: the bias of a weight {[O, I]} must be [{O}]")
