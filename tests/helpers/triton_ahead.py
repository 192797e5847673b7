"""Compile the Triton kernels for GPUs that are not there: ``python -m tests.helpers.triton_ahead 80 90``.

The operations are called as a user would, on empty tensors of the models' sizes; what they would start
is compiled instead, for the compute capabilities that are named. One JSON line per kernel: its name, bytes
of shared memory, and, where NVIDIA's tools are there, registers and bytes spilled a thread.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dllm_qbench import kernels
from dllm_qbench.kernels.triton import floats, integers, launch, rounding, tiles, turn

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
_PROCESSORS = 132  # of an H100


def compile_instead(capability: int) -> None:
    """Make the backend compile what it would start."""

    def start(
        kernel: Any, grid: Any, *args: Any, warps: int, stages: int = 1, **constants: Any
    ) -> None:
        types, fixed, attributes = {}, dict(constants), {}
        for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
            if isinstance(value, torch.Tensor):
                types[name] = "*" + _TYPES[value.dtype]
            elif isinstance(value, int) and value == 1:
                fixed[name] = 1  # as a launch does
            else:
                types[name] = "i32" if isinstance(value, int) else "fp32"
            if types.get(name, "i32") != "fp32" and (types.get(name) != "i32" or value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        made = triton.compile(
            ASTSource(kernel, signature, fixed, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False},
        )
        name = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"
        print(
            json.dumps(
                {
                    "capability": capability,
                    "kernel": name,
                    "shared": made.metadata.shared,
                    **_usage(made),
                }
            )
        )

    def anywhere(name: str, *tensors: Any) -> None:
        """Take the CPU's tensors: nothing will be started."""

    modules: tuple[ModuleType, ...] = (turn, rounding, integers, floats)
    for module in modules:
        module.start = start  # type: ignore[attr-defined]
        module.check_device = anywhere  # type: ignore[attr-defined]
    tiles._processors = lambda device: _PROCESSORS  # type: ignore[assignment]


def _usage(made: Any) -> dict[str, int]:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(made.asm["cubin"])
        shown = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown.stdout + shown.stderr)
    return {} if found is None else {"registers": int(found[1]), "spilled": int(found[2])}


def run() -> None:
    """Call what LLaDA-8B and Dream-7B would call."""
    bf16 = torch.bfloat16

    def weight(bits: int, group: int) -> kernels.PackedWeight:
        data = torch.empty(4096, 4096 * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
        return kernels.PackedWeight(data, torch.empty(4096, 4096 // group), None, bits, 4096, group)

    kernels.hadamard(torch.empty(512, 4096, dtype=bf16), backend="triton")
    kernels.hadamard(torch.empty(512, 12288), signs=torch.ones(12288), backend="triton")
    kernels.rotate_quantize(torch.empty(512, 4096, dtype=bf16), 8, backend="triton")
    kernels.quantize(torch.empty(512, 4096, dtype=bf16), 8, backend="triton")
    kernels.quantize(
        torch.empty(512, 4096, dtype=bf16), 4, group=128, symmetric=False, backend="triton"
    )
    codes = kernels.Codes(
        torch.empty(2048, 4096, dtype=torch.int8), torch.empty(2048, 1), None, 8, 4096, 4096
    )
    kernels.linear_quantized(codes, weight(8, 4096), dtype=bf16, backend="triton")
    kernels.linear_quantized(codes, weight(4, 128), dtype=bf16, backend="triton")
    kernels.linear(torch.empty(512, 4096, dtype=bf16), weight(4, 128), backend="triton")
    kernels.linear(torch.empty(1024, 4096, dtype=bf16), weight(4, 128), backend="triton")


if __name__ == "__main__":
    assert not launch.INTERPRETED
    for argument in sys.argv[1:]:
        compile_instead(int(argument))
        run()
