"""The CPU backend: kernels compiled by numba for the machine that they run on.

Threads: as many as torch uses, each on a range of rows. A row's result is the same bit by bit
whatever the batch and the number of threads; only products in floating point
(:func:`dllm_qbench.kernels.linear`, and integer ones with groups) sum as torch's matmul does.
The transform of a power of two is the reference's bit by bit.

Modules: ``vectors`` (instructions on whole registers), ``turn`` (Hadamard transforms), ``rounding``,
``unpacking`` and ``product`` are compiled; ``operations`` puts them together; ``threads`` and ``rows``
are what they share.
"""

from __future__ import annotations

from dllm_qbench.kernels.cpu.activations import hadamard, quantize, rotate_quantize
from dllm_qbench.kernels.cpu.product import linear, linear_quantized

__all__ = ["hadamard", "linear", "linear_quantized", "quantize", "rotate_quantize"]
