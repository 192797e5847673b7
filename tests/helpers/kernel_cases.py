"""What the laws of kernels are drawn from, and how a backend is left out where it cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench import kernels
from dllm_qbench.kernels.packing import unpack_codes

FAST = ("cpu", "triton")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Rounding of a transform in float32 (an order's depth is at most 15 sums), and of the result's type.
TOLERANCE = {
    torch.float64: 2e-6,
    torch.float32: 2e-6,
    torch.float16: 1.5e-3,
    torch.bfloat16: 1.2e-2,
}
# Powers of two, 2^k m with Paley's 12, 20, 28, 36, 148, block fall-backs (6, 44 * 3 = 132), odd sizes.
WIDTHS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 64, 96, 128, 132, 192, 256, 512, 576, 6, 7, 15, 148)


def backends() -> list[Any]:
    """Return a parameter for each fast backend, skipped with what is missing."""
    missing = kernels.available()
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(missing[name] is not None, reason=f"{name}: {missing[name]}"),
        )
        for name in FAST
    ]


def placed(x: Tensor, backend: str) -> Tensor:
    """Return a tensor where a backend's kernels run: Triton's in the interpreter take the CPU's too."""
    return x.cuda() if backend == "triton" and torch.cuda.is_available() else x


@st.composite
def inputs(
    draw: st.DrawFn, sizes: st.SearchStrategy[int], dtypes: tuple[torch.dtype, ...] = FLOATS
) -> Tensor:
    """Draw ``[..., I]``: any strides, rows of zeros, outliers, and tensors without a row."""
    size = draw(sizes)
    lead = draw(st.sampled_from([(), (1,), (3,), (0,), (2, 5), (33,), (1, 0, 2)]))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    layout = draw(st.sampled_from(["plain", "sliced", "transposed", "reversed batch", "expanded"]))
    shape = (*lead, size)
    if layout == "sliced":
        x = torch.randn(*lead, 2 * size + 1, generator=generator)[..., 1::2]
    elif layout == "transposed" and len(shape) > 1:
        x = torch.randn(*shape[:-2], size, shape[-2], generator=generator).mT
    elif layout == "expanded" and len(shape) > 1:
        x = torch.randn(size, generator=generator).expand(shape)
    else:
        x = torch.randn(shape, generator=generator)
    assert list(x.shape) == [*shape]
    if layout != "expanded":
        scale = draw(st.sampled_from([1.0, 1e-3, 300.0]))
        x.mul_(scale)
        if x.numel():
            x[..., draw(st.integers(0, size - 1))] *= draw(st.sampled_from([1.0, 50.0, 0.0]))
        if len(shape) > 1 and x.numel() and draw(st.booleans()):
            x[0] = 0.0
    return x.to(dtype) if dtype != torch.float32 else x


@st.composite
def weights(draw: st.DrawFn, bits: st.SearchStrategy[int] | None = None) -> kernels.PackedWeight:
    """Draw a packed weight ``[O, I]``: odd sizes, groups that do not divide, both kinds of grid."""
    width = draw(st.sampled_from([4, 8]) if bits is None else bits)
    O = draw(st.sampled_from([1, 2, 7, 16, 33, 64]))  # noqa: E741 (the legend's name)
    I = draw(st.sampled_from([1, 3, 16, 31, 64, 100, 128, 192, 256]))  # noqa: E741
    group = draw(st.sampled_from([None, 16, 32, 64, 128]))
    symmetric = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    G = 1 if group is None else -(-I // min(group, I))
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1)) if symmetric else (0, 2**width)
    codes = torch.randint(low, high, (O, I), generator=generator)
    scale = torch.rand(O, G, generator=generator) * 0.1 + 1e-3
    zero = None if symmetric else torch.randint(0, 2**width, (O, G), generator=generator)
    return kernels.pack_weight(codes, scale, zero, width, group)


def stands_for(codes: kernels.Codes) -> Tensor:
    """Return what codes stand for, by a formula of its own, in float64 ``[..., I]``."""
    data = codes.data
    if codes.bits < 8:
        data = unpack_codes(data, codes.bits, codes.size, signed=codes.zero is None)
    group = torch.arange(codes.size) // codes.group
    scale = codes.scale.cpu().double()[..., group]
    zero = 0 if codes.zero is None else codes.zero.cpu().double()[..., group]
    return (data.cpu().double() - zero) * scale


def weight_stands_for(weight: kernels.PackedWeight) -> Tensor:
    """Return what a packed weight stands for, by the same formula, in float64 ``[O, I]``."""
    zero = None
    if weight.zero is not None:
        zero = unpack_codes(weight.zero, weight.bits, weight.scale.shape[1])
    return stands_for(
        kernels.Codes(weight.data, weight.scale, zero, weight.bits, weight.size, weight.group)
    )
