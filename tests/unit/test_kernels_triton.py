"""The Triton kernels beyond the laws that every backend keeps: the models' sizes, ties, ragged tiles, and
that they compile for GPUs. Interpreted where there is no GPU; on a GPU the same tests run there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

triton = pytest.importorskip(
    "triton", reason="triton is not installed (pip install 'dllm-qbench[triton]')"
)

from dllm_qbench import kernels  # noqa: E402
from dllm_qbench.errors import QBenchError  # noqa: E402
from dllm_qbench.kernels.backend import CannotError  # noqa: E402
from dllm_qbench.kernels.triton import floats, launch, tiles  # noqa: E402
from tests.helpers.kernel_cases import TOLERANCE, placed, stands_for, weight_stands_for  # noqa: E402

ROOT = Path(__file__).parents[2]
BF16 = torch.bfloat16
# The last two are longer than what a program holds: one is turned in two steps, the other in blocks.
WIDTHS = (4096, 12288, 3584, 18944, 65536, 40960)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signs_of(size: int) -> Tensor:
    return noise(size, seed=size).sign()


def on(x: Tensor) -> Tensor:
    return placed(x, "triton")


def packed(O: int, I: int, bits: int, group: int | None, symmetric: bool) -> kernels.PackedWeight:  # noqa: E741
    generator = torch.Generator().manual_seed(O * I + bits)
    low = -(2 ** (bits - 1)) if symmetric else 0
    codes = torch.randint(low, low + 2**bits, (O, I), generator=generator)
    G = 1 if group is None else -(-I // group)
    scale = torch.rand(O, G, generator=generator) * 0.1 + 1e-3
    zero = None if symmetric else torch.randint(0, 2**bits, (O, G), generator=generator)
    return kernels.pack_weight(codes, scale, zero, bits, group)


def there(weight: kernels.PackedWeight) -> kernels.PackedWeight:
    return weight.to("cuda") if torch.cuda.is_available() else weight


def within(found: Tensor, x: Tensor, values: Tensor, bias: Tensor, tolerance: float) -> None:
    """Compare ``x values^T + bias`` where every term may be off by a share of its size."""
    expected = F.linear(x.double(), values, bias.double())
    size = F.linear(x.double().abs(), values.abs(), bias.double().abs())
    assert found.shape == expected.shape
    error = (found.cpu().double() - expected).abs() / size
    assert float(error.max()) <= tolerance


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: the kernels run on it")
def test_without_a_gpu_the_interpreter_runs_and_tritons_own_setting_stays() -> None:
    code = """
import os, triton, torch
from dllm_qbench import kernels  # noqa: E402
from dllm_qbench.kernels.triton import launch
assert launch.INTERPRETED
assert not triton.knobs.runtime.interpret and "TRITON_INTERPRET" not in os.environ
print(float(kernels.hadamard(torch.ones(16), backend="triton")[0]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4.0\n"


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_hadamard_at_the_models_widths(width: int, dtype: torch.dtype, inverse: bool) -> None:
    x, signs = noise(2, width).to(dtype), signs_of(width)
    found = kernels.hadamard(on(x), signs=on(signs), inverse=inverse, backend="triton")
    expected = kernels.hadamard(x.double(), signs=signs, inverse=inverse, backend="torch")
    assert found.dtype == dtype
    error = (found.cpu().double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) <= (1e-14 if dtype == torch.float64 else TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_halves_are_rounded_once_and_to_even(dtype: torch.dtype) -> None:
    # With an exact factor (1 / 8) both backends have the same sums in float32 before they round.
    x = noise(33, 64).to(dtype)
    found = kernels.hadamard(on(x), backend="triton")
    assert torch.equal(found.cpu(), kernels.hadamard(x, backend="torch"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_rotate_quantize_at_the_models_widths(width: int, bits: int) -> None:
    x, signs = noise(2, width).to(BF16), signs_of(width)
    found = kernels.rotate_quantize(on(x), bits, signs=on(signs), clip=0.9, backend="triton")
    expected = kernels.rotate_quantize(x.double(), bits, signs=signs, clip=0.9, backend="torch")
    assert torch.allclose(found.scale.cpu(), expected.scale, rtol=1e-5)
    apart = (found.integers().cpu().int() - expected.integers().int()).abs()
    # Two roundings of a sum in float32 differ where it is within 1e-5 steps of a tie.
    assert int(apart.max()) <= 1
    assert float(apart.double().mean()) <= 1e-3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_ties_go_to_even_codes(bits: int, symmetric: bool) -> None:
    last = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    # The ends make the step 1 and the zero point 0; in between lies every half.
    halves = [i / 2 for i in range(-2 * last if symmetric else 0, 2 * last + 1)]
    codes = kernels.quantize(
        on(torch.tensor([halves])), bits, symmetric=symmetric, backend="triton"
    )
    assert codes.scale.tolist() == [[1.0]]
    assert codes.integers()[0].tolist() == [round(half) for half in halves]


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_longer_than_a_program_holds(symmetric: bool) -> None:
    x = noise(2, 70001)
    for group in (None, 33000):
        how = {"bits": 4, "group": group, "symmetric": symmetric}
        found = kernels.quantize(on(x), backend="triton", **how)
        expected = kernels.quantize(x, backend="torch", **how)
        assert torch.equal(found.scale.cpu(), expected.scale)
        assert torch.equal(found.data.cpu(), expected.data)


# Two tiles of rows and of columns, none of them full, and inputs that end in the middle of a step.
RAGGED = [(130, 150, 100), (1, 1, 1), (17, 65, 130), (3, 300, 77)]


@pytest.mark.parametrize(("M", "O", "I"), RAGGED)
@pytest.mark.parametrize("many", [False, True])
def test_linear_of_ragged_sizes(
    M: int,
    O: int,  # noqa: E741
    I: int,  # noqa: E741
    many: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(floats, "_MANY", dict.fromkeys(floats._MANY, 1 if many else 1000))
    monkeypatch.setattr(floats, "_WEIGHTS_AT_ONCE", 70 * I)  # several parts of rows
    bias = torch.linspace(-1, 1, O)
    for bits, group, symmetric in ((4, 32, False), (4, None, True), (8, None, False)):
        weight = packed(O, I, bits, None if group is None else min(group, I), symmetric)
        for dtype in (torch.float32, BF16):
            x = noise(M, I).to(dtype)
            found = kernels.linear(on(x), there(weight), on(bias), backend="triton")
            within(found, x, weight_stands_for(weight), bias, TOLERANCE[dtype])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_linear_unpacks_every_width(bits: int, symmetric: bool) -> None:
    x, bias = noise(5, 100).half(), torch.linspace(-1, 1, 20)
    for group in (None, 64, 9):
        weight = packed(20, 100, bits, group, symmetric)
        found = kernels.linear(on(x), there(weight), on(bias), backend="triton")
        within(found, x, weight_stands_for(weight), bias, TOLERANCE[torch.float16])


def test_what_lies_beyond_the_inputs_does_not_overflow() -> None:
    # Nothing is stored as code 0, which would stand for -8 * 9000: beyond float16, and inf * 0 is NaN.
    weight = kernels.pack_weight(torch.full((3, 24), 7), torch.full((3, 2), 9000.0), None, 4, 16)
    x = torch.full((2, 24), 2.0**-10).half()
    found = kernels.linear(on(x), there(weight), backend="triton")
    within(found, x, weight_stands_for(weight), torch.zeros(3), TOLERANCE[torch.float16])


@pytest.mark.parametrize(("M", "O", "I"), RAGGED)
def test_linear_quantized_of_ragged_sizes(M: int, O: int, I: int) -> None:  # noqa: E741
    bias = torch.linspace(-1, 1, O)
    for bits, symmetric in ((8, True), (8, False), (4, False)):
        weight = packed(O, I, bits, None, symmetric)
        codes = kernels.quantize(noise(M, I), 8, symmetric=symmetric, backend="torch")
        moved = kernels.quantize(on(noise(M, I)), 8, symmetric=symmetric, backend="torch")
        found = kernels.linear_quantized(moved, there(weight), on(bias), backend="triton")
        within(found, stands_for(codes), weight_stands_for(weight), bias, 1e-6)


@pytest.mark.parametrize(("x_group", "group"), [(None, 20), (10, None), (10, 20), (6, 9)])
def test_linear_quantized_of_groups_that_differ(x_group: int | None, group: int | None) -> None:
    bias = torch.zeros(7)
    for bits, x_bits, symmetric in ((4, 8, True), (4, 4, False), (8, 4, True), (5, 8, False)):
        weight = packed(7, 70, bits, group, symmetric)
        codes = kernels.quantize(
            on(noise(3, 70)), x_bits, group=x_group, symmetric=not symmetric, backend="torch"
        )
        found = kernels.linear_quantized(codes, there(weight), on(bias), backend="triton")
        within(found, stands_for(codes), weight_stands_for(weight), bias, 1e-6)


def test_what_the_backend_cannot_do_is_said() -> None:
    learned = on(torch.ones(4)).requires_grad_()
    with pytest.raises(QBenchError, match="no gradients; choose backend 'torch'"):
        kernels.hadamard(learned, backend="triton")
    long = kernels.quantize(on(torch.ones(1, 40000)), 8, backend="torch")
    weight = there(packed(1, 40000, 8, None, True))
    with pytest.raises(CannotError, match="at most 33025 inputs in int32, found 40000"):
        kernels.linear_quantized(long, weight, backend="triton")


@given(
    M=st.integers(1, 5000),
    O=st.integers(1, 20000),
    kind=st.sampled_from(["int8", "unpacked", "float32"]),
)
def test_tiles_keep_a_gpu_busy_or_are_the_smallest(M: int, O: int, kind: str) -> None:  # noqa: E741
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiles, "_processors", lambda device: 132)
        tile = tiles.tile_for(M, O, kind, torch.device("cuda"))
    assert tile.rows <= max(16, 2 * M - 1)
    assert tile.cols <= max(64, 2 * O - 1)
    smallest = (16, 64) if kind == "float32" else (16, 32)
    busy = tiles.programs(M, O, tile) >= 0.75 * 132
    assert busy or (tile.rows, tile.cols) == smallest


def test_kernels_compile_for_gpus_and_fit_them(tmp_path: Path) -> None:
    # Bytes of shared memory that a program may have: CUDA's programming guide, compute capabilities.
    shared = {80: 163 * 1024, 90: 227 * 1024}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.triton_ahead", *map(str, shared)],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(one["capability"], one["kernel"]) for one in made} == {
        (capability, kernel)
        for capability in shared
        for kernel in (
            "turn._turn",
            "rounding._quantize",
            "integers._product",
            "floats._product",
            "floats._unpack",
        )
    }
    for one in made:
        assert one["shared"] <= shared[one["capability"]], one
        assert one.get("spilled", 0) == 0, one  # registers that do not suffice go to memory


def test_blocks_and_warps_are_powers_of_two() -> None:
    assert [launch.power_of_two(n) for n in (1, 2, 3, 12, 148)] == [1, 2, 4, 16, 256]
    assert [launch.warps_for(n) for n in (1, 1000, 4096, 32768)] == [1, 1, 4, 16]
