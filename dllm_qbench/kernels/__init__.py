"""Fast transforms, rounding and low-bit products, on whichever backend serves a tensor best.

    from dllm_qbench import kernels

    y = kernels.hadamard(x)                            # x H^T, orthonormal, last dimension
    codes = kernels.rotate_quantize(x, bits=8)         # turned and rounded in one pass
    codes = kernels.quantize(x, bits=4, group=128)     # per token, or per group of its channels
    x = codes.dequantize()
    weight = kernels.pack_weight(int_codes, scale, zero, bits=4, group=128)
    y = kernels.linear(x, weight)                      # float inputs: a weight-only product
    y = kernels.linear_quantized(codes, weight)        # integer inputs, 8 or 4 bits

Backends, all of which do the same and are checked against the first:

- ``torch``: the reference. Any device; plain torch operations; differentiable where that is free;
- ``cpu``: compiled for the machine by numba (``pip install dllm-qbench[kernels]``);
- ``triton``: NVIDIA and AMD GPUs (``pip install dllm-qbench[triton]``); where torch sees no GPU its
  kernels run in Triton's interpreter, which is for tests: correct, and very slow.

The fastest that can take a tensor is chosen by its device. ``backend="torch"`` in a call,
``with kernels.use("torch"):`` around calls, or ``QBENCH_KERNELS=torch`` in the environment
choose another. A backend that lacks an operation for a data type or a size leaves that call to the
reference only where it was chosen automatically; asked for by name, it says what it cannot do.

M, the tokens that a call takes, is what decides which kernel is worth it. Diffusion models run whole
canvases: M = batch x length is 32 to thousands, and tricks for M = 1 do not help them.
"""

from dllm_qbench.kernels.backend import Backend, available, names, use
from dllm_qbench.kernels.codes import Codes, PackedWeight, pack_weight
from dllm_qbench.kernels.operations import (
    hadamard,
    linear,
    linear_quantized,
    quantize,
    rotate_quantize,
)

__all__ = [
    "Backend",
    "Codes",
    "PackedWeight",
    "available",
    "hadamard",
    "linear",
    "linear_quantized",
    "names",
    "pack_weight",
    "quantize",
    "rotate_quantize",
    "use",
]
