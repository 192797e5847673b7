"""Tensors as the flat arrays that kernels take: chunks of rows, converted where they must be."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dllm_qbench.kernels.backend import CannotError

_CHUNK = 2**16  # elements of a chunk: 256 KiB of float32, of a level-2 cache of 0.5 MiB or more
_HUGE = 2**22  # bytes from which numpy asks the system for large pages
_own = threading.local()


def on_cpu(x: Tensor, name: str) -> None:
    """Raise :class:`CannotError` for a tensor that is elsewhere, or that wants a gradient."""
    if x.device.type != "cpu":
        raise CannotError(f"{name}: backend 'cpu' takes tensors on the CPU, found {x.device}")
    if x.requires_grad and torch.is_grad_enabled():
        raise CannotError(
            f"{name}: backend 'cpu' gives no gradient; wrap the call in torch.no_grad(), or choose"
            " backend='torch'"
        )


def flat(x: Tensor) -> npt.NDArray[Any]:
    """Return a contiguous tensor's memory."""
    return x.view(-1).numpy()


def scratch(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return memory of this thread that its next call takes again: fresh pages cost more than a turn."""
    size = math.prod(shape) * dtype.itemsize
    held: Tensor | None = getattr(_own, "scratch", None)
    if held is None or len(held) < size:
        held = _own.scratch = torch.empty(size, dtype=torch.uint8)
    return held[:size].view(dtype).view(shape)


def rows_at_once(size: int) -> int:
    """Return how many rows of ``size`` make a chunk."""
    return max(1, _CHUNK // max(1, size))


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a new tensor, on large pages where it is large.

    The system clears a page when it is first written to. For 40 MB of small ones that takes longer
    than a transform; numpy asks for large ones, torch does not.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


def targets(x: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    """Return where kernels write a float32 or a bfloat16 tensor: one of the two is empty."""
    if x.dtype == torch.bfloat16:
        return np.empty(0, np.float32), flat(x.view(torch.uint16))
    return flat(x), np.empty(0, np.uint16)
