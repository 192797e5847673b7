"""How kernels are built and started: compiled for a GPU, or interpreted where there is none.

The interpreter runs a kernel's source on numpy, program by program. It is taken where torch sees no
GPU; ``TRITON_INTERPRET=1`` takes it on a GPU's machine too, and ``TRITON_INTERPRET=0`` leaves it out
(kernels can then be compiled ahead of time, not started). Read when this package is imported; Triton
may have been imported before, and its own setting is left as it was.

What the interpreter does not do as a GPU does, and how the kernels meet it:
- the functions of Triton's own library (``tl.sum``, ``tl.zeros``, ...) are compiled or interpreted as
  Triton was imported: kernels keep to its built-in operations;
- bfloat16 is stored as raw 16 bits: dots would multiply the bits, and narrowing cuts instead of
  rounding. :func:`dot` and :func:`narrow` do both right, and cost nothing when compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_qbench.kernels.backend import CannotError


def _interpreted() -> bool:
    asked = os.environ.get("TRITON_INTERPRET", "")
    if asked:
        return bool(triton.knobs.runtime.interpret)
    return not torch.cuda.is_available()


INTERPRETED = _interpreted()


def jit(function: Callable[..., Any]) -> Any:
    """Make a kernel, or a function for kernels, of Triton source (a ``triton.jit`` with a type)."""
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = INTERPRETED
        return triton.jit(function)


def start(
    kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int = 1, **constants: Any
) -> None:
    """Start a kernel on the GPU of its first argument.

    Products and sums are never fused: a rounded code would differ from the reference's.
    """
    device = torch.cuda.device_of(args[0]) if args[0].is_cuda else nullcontext()
    with device:
        kernel[grid](*args, num_warps=warps, num_stages=stages, enable_fp_fusion=False, **constants)


def check_device(name: str, *tensors: Tensor | None) -> None:
    """Refuse tensors that the kernels cannot reach, and gradients that they would drop.

    Raises:
        CannotError: saying which tensor it is about.
    """
    for tensor in tensors:
        if tensor is None:
            continue
        if not INTERPRETED and not tensor.is_cuda:
            raise CannotError(
                f"{name}: the triton backend is compiled for a GPU here and cannot take tensors on"
                f" {tensor.device}; move them, or choose backend 'torch'"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise CannotError(
                f"{name}: the triton backend has no gradients; choose backend 'torch', or call it"
                " under torch.no_grad()"
            )


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``.

    >>> power_of_two(1), power_of_two(12), power_of_two(128)
    (1, 16, 128)
    """
    return 1 << max(0, size - 1).bit_length()


def warps_for(elements: int, most: int = 16) -> int:
    """Return how many warps a tile takes so that a thread holds about 32 of its elements."""
    return max(1, min(most, power_of_two(elements) // 1024))


@jit
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor, INTERPRET: tl.constexpr) -> tl.tensor:
    """Add ``a @ b`` to the float ``total``: float32 as IEEE says, halves on tensor cores."""
    if INTERPRET:
        if a.dtype == tl.bfloat16:
            a = a.to(tl.float32)
        if b.dtype == tl.bfloat16:
            b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=total.dtype)


@jit
def narrow(x: tl.tensor, dtype: tl.constexpr, INTERPRET: tl.constexpr) -> tl.tensor:
    """Round to a data type; ties to even."""
    if INTERPRET and dtype == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x != x, x, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)
