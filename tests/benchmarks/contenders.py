"""For each case: our kernel, its rivals, what both have to move and multiply, and how exact ours is.

Rivals are dense torch in bf16 and fp32, the best operation that torch itself ships, and a copy (a
clone) of the input. Where torch ships none, or refuses, the outcome says so. What works on activations
alone takes them from memory, see :func:`~tests.benchmarks.inputs.in_turn`. Tensors are made before
anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench import kernels
from dllm_qbench.benchmarks.rounds import Call
from dllm_qbench.kernels.backend import CannotError, asked_for, backend_for
from dllm_qbench.kernels.orders import split
from dllm_qbench.kernels.reference import hadamard_matrix
from dllm_qbench.quant.capture import second_moment
from dllm_qbench.quant.gptq_textbook import solve_textbook
from dllm_qbench.quant.methods import gptq
from dllm_qbench.quant.scheme import Scheme
from tests.benchmarks import cases as named
from tests.benchmarks.cases import Case
from tests.benchmarks.inputs import (
    LOOKED_AT,
    butterflies,
    in_turn,
    inputs,
    relative,
    size_of,
    turned,
    weight_of,
)

GROUP: Final = 128
DENSE_ROTATIONS_UP_TO: Final = 4096
"""Channels; a rotation matrix of 18,944 channels would be 1.4 GB."""
LONG_SOLVES_FROM: Final = 2048
"""Inputs; the textbook loop takes seconds there, and is run once a round without a warm-up."""
NONE_IN_TORCH: Final = "torch ships none"


@dataclass(frozen=True)
class Contest:
    """What is timed for a case.

    Attributes:
        ours: the kernel.
        rivals: by name; ``missing``: rivals that do not exist here, with the reason.
        moved: bytes to read and write; ``operations``: to make, in data type ``kind``.
        error: how far ours is from the exact result; ``allowed``: how far it may be.
        warm: whether it may be called beforehand.
    """

    ours: Call
    rivals: dict[str, Call]
    moved: int
    operations: int
    kind: str
    error: Callable[[], float]
    allowed: float
    missing: dict[str, str] = field(default_factory=dict)
    warm: bool = True


def contest(case: Case) -> Contest:
    """Make the contenders of a case, and all that they work on."""
    return _BUILDERS[case.operation](case)


def backend_of(case: Case, made: Contest) -> str:
    """Return the name of the backend that runs ours: chosen, and able to."""
    if case.operation in ("hessian", "gptq-g128"):
        return "torch"  # plain matrix products and a Cholesky factor
    chosen = asked_for(None)
    if chosen is None:
        module, _ = backend_for(torch.empty(0, device=case.device), None)
        name = str(module.__name__).rpartition(".")[2]  # type: ignore[attr-defined]
        chosen = "torch" if name == "reference" else name
    with kernels.use(chosen):
        try:
            made.ours()
        except CannotError:
            return "torch"
    return chosen


# --- activations alone -------------------------------------------------------------------------


def _hadamard(case: Case) -> Contest:
    x = inputs(case)
    fresh = in_turn(x)
    rivals: dict[str, Call] = {named.COPY: lambda: fresh().clone()}
    rivals[named.FACTORS] = _by_factors(case, fresh)
    missing = {"torch's own": NONE_IN_TORCH}
    if case.I <= DENSE_ROTATIONS_UP_TO:
        turn = hadamard_matrix(case.I).to(x)
        rivals[named.ROTATION] = lambda: fresh() @ turn.T
    else:
        missing[named.ROTATION] = f"a matrix of {case.I} x {case.I} is not made"
    return Contest(
        ours=lambda: kernels.hadamard(fresh()),
        rivals=rivals,
        moved=2 * size_of(x),
        operations=butterflies(case),
        kind="float32",
        error=lambda: relative(kernels.hadamard(x)[:LOOKED_AT], turned(x)),
        allowed=1e-5 if x.dtype == torch.float32 else 1e-2,
        missing=missing,
    )


def _rotate_quantize(case: Case) -> Contest:
    x = inputs(case)
    fresh = in_turn(x)
    return Contest(
        ours=lambda: kernels.rotate_quantize(fresh(), 8),
        rivals={
            named.TRANSFORM: lambda: kernels.hadamard(fresh()),
            named.COPY: lambda: fresh().clone(),
            named.FACTORS: _by_factors(case, fresh),
        },
        moved=size_of(x) + x.numel() + 4 * case.M,
        operations=butterflies(case),
        kind="float32",
        error=lambda: relative(kernels.rotate_quantize(x, 8).dequantize()[:LOOKED_AT], turned(x)),
        allowed=2e-2,
        missing={"torch's own": NONE_IN_TORCH},
    )


def _by_factors(case: Case, fresh: Callable[[], Tensor]) -> Call:
    """H of order 2^k m is the Kronecker product of H of 2^a and H of 2^(k-a) m: two products in torch."""
    power = case.I & -case.I
    rows = min(power, 1 << round(math.log2(case.I) / 2))
    while rows > 1 and split(case.I // rows) is None:
        rows //= 2
    kind = getattr(torch, case.dtype)
    left_RR = hadamard_matrix(rows).to(case.device, kind)
    right_CC = hadamard_matrix(case.I // rows).T.contiguous().to(case.device, kind)
    return lambda: left_RR @ (fresh().view(-1, rows, case.I // rows) @ right_CC)


def _quantize8(case: Case) -> Contest:
    x = inputs(case)
    fresh = in_turn(x)
    zeros = torch.zeros(case.M, dtype=torch.int64, device=x.device)

    # Deprecated in torch 2.13; torchao, its successor, is no part of torch.
    def by_torch() -> Tensor:
        x = fresh()
        scales = x.abs().amax(-1).float() / 127
        return torch.quantize_per_channel(x, scales, zeros, 0, torch.qint8)

    return Contest(
        ours=lambda: kernels.quantize(fresh(), 8),
        rivals={
            named.COPY: lambda: fresh().clone(),
            named.FACTORS: _by_factors(case, fresh),
            "torch.quantize_per_channel": by_torch,
        },
        moved=size_of(x) + x.numel() + 4 * case.M,
        operations=3 * x.numel(),
        kind="float32",
        error=lambda: relative(kernels.quantize(x, 8).dequantize()[:LOOKED_AT], x[:LOOKED_AT]),
        allowed=2e-2,
    )


def _quantize4(case: Case) -> Contest:
    x = inputs(case)
    fresh = in_turn(x)
    return Contest(
        ours=lambda: kernels.quantize(fresh(), 4, group=GROUP),
        rivals={named.COPY: lambda: fresh().clone(), named.FACTORS: _by_factors(case, fresh)},
        moved=size_of(x) + x.numel() // 2 + 4 * x.numel() // GROUP,
        operations=3 * x.numel(),
        kind="float32",
        error=lambda: relative(
            kernels.quantize(x, 4, group=GROUP).dequantize()[:LOOKED_AT], x[:LOOKED_AT]
        ),
        allowed=0.2,
        missing={"torch's own": "torch ships none that packs int4 per token"},
    )


# --- products with a weight --------------------------------------------------------------------


def _w8a8(case: Case) -> Contest:
    x, weight = inputs(case), weight_of(case, 8, None)
    codes = kernels.quantize(x, 8, backend="torch").data
    columns_IO = weight.data.T

    def ours() -> Tensor:
        return kernels.linear_quantized(kernels.quantize(x, 8), weight, dtype=x.dtype)

    rivals = {"torch._int_mm alone": lambda: torch._int_mm(codes, columns_IO)}
    missing = {}
    if case.device == "cpu":
        rivals["torch dynamic int8"] = _dynamic_int8(weight, x.float())
    else:
        missing["torch dynamic int8"] = "torch ships none for a GPU"
    return _product(case, x, weight, ours, rivals, "int8", missing)


def _w4a16(case: Case) -> Contest:
    x, weight = inputs(case), weight_of(case, 4, GROUP)
    rivals: dict[str, Call] = {}
    missing = {}
    try:
        rivals["torch int4pack_mm"] = _int4pack(weight, x)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        missing["torch int4pack_mm"] = f"refuses: {str(error).splitlines()[0][:120]}"
    return _product(case, x, weight, lambda: kernels.linear(x, weight), rivals, case.dtype, missing)


def _w4a8(case: Case) -> Contest:
    x, weight = inputs(case), weight_of(case, 4, GROUP)

    def ours() -> Tensor:
        return kernels.linear_quantized(kernels.quantize(x, 8), weight, dtype=x.dtype)

    rivals: dict[str, Call] = {}
    missing = {}
    try:
        rivals["torch dyn_quant_matmul_4bit"] = _dynamic_int4(weight, x.float())
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        missing["torch dyn_quant_matmul_4bit"] = f"refuses: {str(error).splitlines()[0][:120]}"
    return _product(case, x, weight, ours, rivals, "int8", missing)


def _product(
    case: Case,
    x: Tensor,
    weight: kernels.PackedWeight,
    ours: Callable[[], Tensor],
    rivals: dict[str, Call],
    kind: str,
    missing: dict[str, str],
) -> Contest:
    wide_OI = weight.dequantize(torch.float32)
    half_OI = wide_OI.bfloat16()
    x_half, x_wide = x.bfloat16(), x.float()
    return Contest(
        ours=ours,
        rivals={
            named.BF16: lambda: F.linear(x_half, half_OI),
            named.FP32: lambda: F.linear(x_wide, wide_OI),
            **rivals,
        },
        moved=size_of(x) + weight.bytes + case.M * case.O * x.element_size(),
        operations=2 * case.M * case.I * case.O,
        kind=kind,
        error=lambda: relative(ours()[:LOOKED_AT], F.linear(x_wide[:LOOKED_AT], wide_OI)),
        allowed=2e-2 if kind != "float32" else 1e-5,
        missing=missing,
    )


def _dynamic_int8(weight: kernels.PackedWeight, x: Tensor) -> Call:
    """Torch's own int8 linear that rounds activations itself, per tensor (fbgemm or oneDNN)."""
    O = weight.shape[0]  # noqa: E741 (the legend's name)
    zeros = torch.zeros(O, dtype=torch.int64)
    rounded = torch.quantize_per_channel(
        weight.dequantize(), weight.scale[:, 0].double(), zeros, 0, torch.qint8
    )
    packed = torch.ops.quantized.linear_prepack(rounded, None)
    return lambda: torch.ops.quantized.linear_dynamic(x, packed)


def _dynamic_int4(weight: kernels.PackedWeight, x: Tensor) -> Call:
    """Torch's own int4 x int8 product; made for Arm, elsewhere a plain loop."""
    O, I = weight.shape  # noqa: E741 (the legend's names)
    packed = torch.ops.aten._dyn_quant_pack_4bit_weight(
        weight.data, weight.scale, None, GROUP, I, O
    )
    return lambda: torch.ops.aten._dyn_quant_matmul_4bit(x, packed, GROUP, I, O)


def _int4pack(weight: kernels.PackedWeight, x: Tensor) -> Call:
    """Torch's own int4 weight-only product; it computes what ours does."""
    codes_OI = weight.codes().integers().int() + 8
    scales_GO2 = torch.stack((weight.scale, torch.zeros_like(weight.scale)), -1)
    scales_GO2 = scales_GO2.transpose(0, 1).to(x.dtype).contiguous()
    if x.is_cuda:
        pairs = (codes_OI[:, ::2] << 4 | codes_OI[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales_GO2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI, 2)
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales_GO2)


# --- GPTQ --------------------------------------------------------------------------------------


def _hessian(case: Case) -> Contest:
    x = inputs(case)
    wide = x.float() if x.dtype == torch.bfloat16 else x.double()
    return Contest(
        ours=lambda: second_moment([x], token_cap=2.0),
        rivals={named.MATMUL: lambda: wide.T @ wide},
        moved=size_of(x) + case.I**2 * wide.element_size(),
        operations=2 * case.M * case.I**2,
        kind=str(wide.dtype).removeprefix("torch."),
        error=lambda: relative(second_moment([x], token_cap=2.0), wide.T @ wide),
        allowed=1e-4,
    )


def _gptq(case: Case) -> Contest:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(case.O, case.I, generator=generator).to(case.device)
    x = inputs(case).double()
    hessian = x.T @ x
    scheme = Scheme.parse(f"W4A16-g{GROUP}")
    kept: dict[str, Tensor] = {}

    def ours() -> None:
        kept["ours"] = gptq.solve(weight, hessian, scheme, False, 0.01, False)[0]

    def textbook() -> None:
        kept["textbook"] = solve_textbook(weight, hessian, scheme, False, 0.01)[0]

    updates, factor = case.O * case.I**2, case.I**3  # half a product of each column with the rest
    return Contest(
        ours=ours,
        rivals={named.TEXTBOOK: textbook},
        moved=8 * (2 * case.O * case.I + case.I**2),
        operations=updates + factor,
        kind="float64",
        error=lambda: float((kept["ours"] - kept["textbook"]).abs().max()),
        allowed=1e-4,
        missing={"torch's own": NONE_IN_TORCH},
        warm=case.I < LONG_SOLVES_FROM,
    )


_BUILDERS: Final[dict[str, Callable[[Case], Contest]]] = {
    "hadamard": _hadamard,
    "rotate_quantize8": _rotate_quantize,
    "quantize8": _quantize8,
    "quantize4-g128": _quantize4,
    "w8a8": _w8a8,
    "w4a16-g128": _w4a16,
    "w4a8-g128": _w4a8,
    "hessian": _hessian,
    "gptq-g128": _gptq,
}
