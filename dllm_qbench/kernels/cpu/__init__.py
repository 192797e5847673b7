"""The CPU backend: kernels compiled by numba for the machine that they run on.

Threads: as many as torch uses, each on a range of rows. A row's result is the same bit by bit
whatever the batch and the number of threads; only products in floating point
(:func:`dllm_qbench.kernels.linear`, and integer ones with groups) sum as torch's matmul does.
The transform of a power of two is the reference's bit by bit.

Modules, from the bottom: ``compiled`` (how), ``threads`` and ``rows`` (what all share), ``registers`` and
``vectors`` (instructions on whole registers); the kernels ``turn``, ``rounding``, ``fused``,
``halves``, ``unpacking`` and ``scaling``; and what calls them: ``activations``, ``weights``, ``product``.
"""

from __future__ import annotations

from dllm_qbench.kernels.cpu.activations import hadamard, quantize, rotate_quantize
from dllm_qbench.kernels.cpu.product import linear, linear_quantized

__all__ = ["hadamard", "linear", "linear_quantized", "quantize", "rotate_quantize"]
