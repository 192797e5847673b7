"""Which backend does the work: the fastest that can take a tensor, or the one that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from dllm_qbench.errors import QBenchError
from dllm_qbench.kernels.codes import Codes, PackedWeight

VARIABLE = "QBENCH_KERNELS"
_MODULES = {
    "torch": "dllm_qbench.kernels.reference",
    "cpu": "dllm_qbench.kernels.cpu",
    "triton": "dllm_qbench.kernels.triton",
}
_NEEDS = {"cpu": ("numba", "kernels"), "triton": ("triton", "triton")}  # package, our extra
_chosen: ContextVar[str | None] = ContextVar("qbench_kernels", default=None)


class CannotError(QBenchError):
    """A backend has no kernel for this data type, size or device; the message says what it has."""


class Backend(Protocol):
    """What a backend is: a module with these functions. Arguments have been checked.

    Shapes: ``x [..., I]`` (never without a dimension), ``weight [O, I]``. A function raises
    :class:`CannotError` before it computes anything where it has no kernel for its arguments.
    """

    def hadamard(self, x: Tensor, width: int, signs: Tensor | None, inverse: bool) -> Tensor:
        """Turn every ``width`` neighbours; see :func:`dllm_qbench.kernels.hadamard`."""

    def rotate_quantize(
        self, x: Tensor, width: int, signs: Tensor | None, bits: int, clip: float
    ) -> Codes:
        """Turn, then round per token; see :func:`dllm_qbench.kernels.rotate_quantize`."""

    def quantize(self, x: Tensor, bits: int, group: int, symmetric: bool, clip: float) -> Codes:
        """Round per group; see :func:`dllm_qbench.kernels.quantize`."""

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """Multiply float inputs; see :func:`dllm_qbench.kernels.linear`."""

    def linear_quantized(
        self, codes: Codes, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Multiply integer inputs; see :func:`dllm_qbench.kernels.linear_quantized`."""


def names() -> tuple[str, ...]:
    """Return the names of all backends."""
    return tuple(_MODULES)


def available() -> dict[str, str | None]:
    """Return, for each backend, what is missing for it on this machine; ``None``: nothing is."""
    return {name: _missing(name) for name in _MODULES}


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Take this backend for all calls inside; ``None`` is the automatic choice again.

    Raises:
        QBenchError: there is no such backend, or something is missing for it.
    """
    if name is not None:
        _backend(name)
    token = _chosen.set(name or "")
    try:
        yield
    finally:
        _chosen.reset(token)


def asked_for(backend: str | None) -> str | None:
    """Return the backend that a call, :func:`use` or the environment names; ``None``: none does."""
    chosen = _chosen.get()
    if backend is None:
        backend = os.environ.get(VARIABLE) if chosen is None else chosen
    return backend or None


def backend_for(x: Tensor, backend: str | None) -> tuple[Backend, Backend | None]:
    """Return the backend for a tensor, and the one to turn to where it says that it cannot."""
    name = asked_for(backend)
    if name is not None:
        return _backend(name), None
    reference = _backend("torch")
    if torch.is_grad_enabled() and x.requires_grad:
        return reference, None
    name = {"cpu": "cpu", "cuda": "triton"}.get(x.device.type, "torch")
    if name == "torch" or _missing(name) is not None:
        return reference, None
    return _backend(name), reference


def _backend(name: str) -> Backend:
    if name not in _MODULES:
        raise QBenchError(f"kernels: backend {name!r} is unknown; known are {', '.join(_MODULES)}")
    missing = _missing(name)
    if missing is not None:
        raise QBenchError(f"kernels: backend {name!r} cannot be used: {missing}")
    module: Backend = import_module(_MODULES[name])
    return module


@cache
def _missing(name: str) -> str | None:
    if name not in _NEEDS:
        return None
    package, extra = _NEEDS[name]
    if find_spec(package) is None:
        return f"{package} is not installed (pip install 'dllm-qbench[{extra}]')"
    return None
