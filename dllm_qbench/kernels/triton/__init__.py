"""The Triton backend: kernels for NVIDIA and AMD GPUs.

- :mod:`~dllm_qbench.kernels.triton.turn`: the Hadamard transform, alone or rounded in the same pass;
- :mod:`~dllm_qbench.kernels.triton.rounding`: per-token and per-group rounding;
- :mod:`~dllm_qbench.kernels.triton.integers`: integer inputs times integer weights;
- :mod:`~dllm_qbench.kernels.triton.floats`: float inputs times packed weights.

Where torch sees no GPU all of them run in Triton's interpreter instead
(:mod:`~dllm_qbench.kernels.triton.launch` says how that is chosen): a check of what they compute, not a
way to compute.
"""

from dllm_qbench.kernels.triton.floats import linear
from dllm_qbench.kernels.triton.integers import linear_quantized
from dllm_qbench.kernels.triton.rounding import quantize
from dllm_qbench.kernels.triton.turn import hadamard, rotate_quantize

__all__ = ["hadamard", "linear", "linear_quantized", "quantize", "rotate_quantize"]
