"""What the contenders work on, and how their results are held against exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import cycle
from typing import Any, Final

import torch
from torch import Tensor

from dllm_qbench import kernels
from dllm_qbench.kernels.orders import split
from tests.benchmarks.cases import Case

BEYOND_CACHES: Final = 2**27
"""Bytes: four times the last cache of the machine that this was written on."""
MOST_COPIES: Final = 64
LOOKED_AT: Final = 32
"""Tokens whose results are held against the exact ones."""


def inputs(case: Case) -> Tensor:
    """Activations ``[M, I]`` of a case."""
    generator = torch.Generator().manual_seed(case.M)
    x = torch.randn(case.M, case.I, generator=generator)
    return x.to(case.device, getattr(torch, case.dtype))


def weight_of(case: Case, bits: int, group: int | None) -> kernels.PackedWeight:
    """The packed weight ``[O, I]`` of a case."""
    return _packed(case.O, case.I, bits, group, case.device)


@lru_cache(maxsize=1)  # packing takes longer than timing; cases of one weight lie together
def _packed(O: int, I: int, bits: int, group: int | None, device: str) -> Any:  # noqa: E741
    generator = torch.Generator().manual_seed(O)
    last = 2 ** (bits - 1) - 1
    codes = torch.randint(-last, last + 1, (O, I), generator=generator, dtype=torch.int8)
    groups = 1 if group is None else -(-I // group)
    scale = torch.rand(O, groups, generator=generator) * 0.01 + 0.001
    return kernels.pack_weight(codes.to(device), scale.to(device), None, bits, group)


def size_of(x: Tensor) -> int:
    """Bytes of a tensor."""
    return x.numel() * x.element_size()


def butterflies(case: Case) -> int:
    """Additions of a transform: log2 of the power of two, and the small matrix of order m."""
    found = split(case.I)
    if found is None:
        return case.M * case.I * int(math.log2(case.I & -case.I))
    power, m = found
    return case.M * case.I * (int(math.log2(power)) + m - 1)


def turned(x: Tensor) -> Tensor:
    """The transform of the first tokens, by the reference in float64."""
    return kernels.hadamard(x[:LOOKED_AT].double(), backend="torch")


def relative(found: Tensor, exact: Tensor) -> float:
    """How far a result is off, relative to the norm of the exact one."""
    difference = (found.double() - exact.double()).norm()
    return float(difference / exact.double().norm())


def in_turn(x: Tensor) -> Callable[[], Tensor]:
    """Return what gives another copy of a tensor at each call, from more than a cache holds.

    In a model an activation meets its kernel after a product that read a weight since: of 8 MB or
    more little is left in a cache. A copy of what has just been copied runs from the cache, at three
    to five times the speed, and by chance: over five processes such ratios varied by a factor of two.
    """
    copies = [x, *(x.clone() for _ in range(min(MOST_COPIES, BEYOND_CACHES // size_of(x))))]
    return cycle(copies).__next__
