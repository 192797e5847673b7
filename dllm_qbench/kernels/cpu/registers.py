"""Vector registers in LLVM's language, for the instructions of :mod:`dllm_qbench.kernels.cpu.vectors`.

A register holds L lanes (16 float32 with AVX-512, else 8; half as many float64); LLVM splits one
that the machine does not have.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core.cgutils import get_or_insert_function

_FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = {4: 16, 8: 8} if _FEATURES.get("avx512f") else {4: 8, 8: 4}
has_fma = bool(_FEATURES.get("fma")) or "neon" in _FEATURES
Values = list[Any]


class Emitter:
    """Writes instructions on vectors of one array type."""

    def __init__(self, context: Any, builder: Any, array_type: Any) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_value_type(array_type.dtype)
        self.bytes = array_type.dtype.bitwidth // 8
        self.lanes = LANES[self.bytes]

    def pointer(self, array_type: Any, array: Any) -> Any:
        """Return where an array's memory starts."""
        return self.context.make_array(array_type)(self.context, self.builder, array).data

    def load(self, data: Any, index: Any, count: int | None = None) -> Any:
        """Read L lanes, or ``count``, at any element."""
        return self.builder.load(self._at(data, index, count or self.lanes), align=self.bytes)

    def store(self, value: Any, data: Any, index: Any, count: int | None = None) -> None:
        """Write a vector at any element."""
        self.builder.store(value, self._at(data, index, count or self.lanes), align=self.bytes)

    def _at(self, data: Any, index: Any, count: int) -> Any:
        kind = ir.VectorType(self.element, count).as_pointer()
        return self.builder.bitcast(self.builder.gep(data, [index]), kind)

    def fetch(self, data: Any, index: Any, write: bool = False) -> None:
        """Ask for a line of memory that will be needed soon; one outside of the array does no harm."""
        word, place = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [place, word, word, word])
        name, module = "llvm.prefetch.p0", self.builder.module
        fetch = get_or_insert_function(module, kind, name)  # type: ignore[no-untyped-call]
        where = self.builder.bitcast(self.builder.gep(data, [index]), place)
        # To read or write it, into the second level of the cache, as data.
        self.builder.call(fetch, [where, word(int(write)), word(2), word(1)])

    def constant(self, values: list[float]) -> Any:
        """Return a vector of numbers."""
        return ir.Constant(ir.VectorType(self.element, len(values)), values)

    def spread(self, value: Any) -> Any:
        """Return a register with one value in all lanes."""
        empty = ir.Constant(ir.VectorType(self.element, self.lanes), ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, empty, _mask([0] * self.lanes))

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """Pick lanes of two vectors, those of the second numbered on from the first's."""
        return self.builder.shuffle_vector(a, b, _mask(lanes))

    def in_lanes(self, v: Any, bits: int) -> Any:
        """Do the butterflies between the lanes of a vector: distances 1 to 2^(bits-1)."""
        for k in range(bits):
            other = self.shuffle(v, v, [lane ^ (1 << k) for lane in range(self.lanes)])
            sign = self.constant([-1.0 if lane >> k & 1 else 1.0 for lane in range(self.lanes)])
            # A product with +-1 is exact, so that the sum is rounded once whether or not it is fused.
            v = self.builder.fadd(
                other, self.builder.fmul(v, sign, flags=("contract",)), flags=("contract",)
            )
        return v

    def between(self, values: Values) -> Values:
        """Do the butterflies between vectors: distances 1 to half of their number."""
        step = 1
        while step < len(values):
            for low in range(len(values)):
                if not low & step:
                    a, b = values[low], values[low | step]
                    values[low], values[low | step] = (
                        self.builder.fadd(a, b),
                        self.builder.fsub(a, b),
                    )
            step *= 2
        return values


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
