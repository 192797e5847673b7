"""What the compiled CPU kernels promise beyond the laws of every backend."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench import kernels
from dllm_qbench.errors import QBenchError
from dllm_qbench.kernels.reference import hadamard_matrix

pytest.importorskip("numba", reason="numba is not installed (pip install 'dllm-qbench[kernels]')")

POWERS = [2**k for k in range(15)]
# Down projections' and hidden sizes of Dream-7B and LLaDA-8B: 28, 12, 28 and 148 times a power of two.
BIG = [3584, 12288, 14336, 18944]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(O: int, I: int, bits: int, group: int | None, symmetric: bool) -> kernels.PackedWeight:  # noqa: E741
    generator = torch.Generator().manual_seed(bits)
    low = -(2 ** (bits - 1)) if symmetric else 0
    codes = torch.randint(low, low + 2**bits, (O, I), generator=generator)
    G = 1 if group is None else -(-I // group)
    zero = None if symmetric else torch.randint(0, 2**bits, (O, G), generator=generator)
    scale = torch.rand(O, G, generator=generator) + 0.1
    return kernels.pack_weight(codes, scale, zero, bits, group)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parts(codes: kernels.Codes) -> list[Tensor]:
    return [codes.data, codes.scale, *([] if codes.zero is None else [codes.zero])]


def everything(x: Tensor) -> list[Tensor]:
    """Return what every operation that promises bits makes of ``x [M, 192]``."""
    signs = torch.where(torch.arange(192) % 3 == 0, -1.0, 1.0)
    codes = kernels.quantize(x, 8, symmetric=False, backend="cpu")
    made = [
        kernels.hadamard(x, width=64, backend="cpu"),
        kernels.hadamard(x, signs=signs, backend="cpu"),
        kernels.hadamard(x.bfloat16(), inverse=True, signs=signs, backend="cpu"),
        *parts(kernels.rotate_quantize(x, 8, width=64, backend="cpu")),
        *parts(kernels.rotate_quantize(x, 4, signs=signs, backend="cpu")),
        *parts(kernels.rotate_quantize(x.bfloat16(), 8, width=48, signs=signs, backend="cpu")),
        *parts(kernels.quantize(x.bfloat16(), 4, group=50, symmetric=False, backend="cpu")),
        *parts(kernels.quantize(x, 4, group=50, backend="cpu")),
        *parts(codes),
    ]
    for weight in (packed(48, 192, 8, None, True), packed(48, 192, 4, None, False)):
        for dtype in (torch.float32, torch.bfloat16):
            made.append(kernels.linear_quantized(codes, weight, dtype=dtype, backend="cpu"))
    return made


@pytest.mark.parametrize("width", POWERS)
def test_power_of_two_is_the_reference_bit_by_bit(width: int) -> None:
    for rows in (1, 3, 70):
        x = drawn(rows, width, seed=width)
        for inverse in (False, True):
            expected = kernels.hadamard(x, inverse=inverse, backend="torch")
            assert torch.equal(kernels.hadamard(x, inverse=inverse, backend="cpu"), expected)
    x = drawn(5, 3 * width).double()
    expected = kernels.hadamard(x, width=width, backend="torch")
    assert torch.equal(kernels.hadamard(x, width=width, backend="cpu"), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 4096])
def test_fused_rounding_of_a_power_of_two_is_the_reference_bit_by_bit(
    width: int, bits: int
) -> None:
    x = drawn(67, 4096) * torch.logspace(-30, 30, 67)[:, None]
    for clip in (1.0, 0.7):
        expected = kernels.rotate_quantize(x, bits, width=width, clip=clip, backend="torch")
        found = kernels.rotate_quantize(x, bits, width=width, clip=clip, backend="cpu")
        assert torch.equal(found.scale, expected.scale)
        assert torch.equal(found.data, expected.data)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 4, 64, 2048])
def test_bfloat16_is_the_reference_bit_by_bit(width: int, signed: bool) -> None:
    """Every other row of a wider tensor, too, and rows with an infinity and a NaN."""
    x = (drawn(67, 6144) * torch.logspace(-30, 30, 67)[:, None]).bfloat16()
    x[3, 5], x[4, 7] = torch.inf, torch.nan
    signs = torch.where(torch.arange(2048) % 3 == 0, -1.0, 1.0) if signed else None
    for own in (x[:, :2048].contiguous(), x[::2, 2048:4096]):
        for inverse in (False, True):
            how = {"width": width, "signs": signs, "inverse": inverse}
            found = kernels.hadamard(own, backend="cpu", **how)
            expected = kernels.hadamard(own, backend="torch", **how)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        own = own[5:] if own.is_contiguous() else own[3:]  # no bits are promised of a NaN's codes
        for bits in (4, 8):
            rotated = {"width": width, "signs": signs, "clip": 0.7}
            assert_same(kernels.rotate_quantize, own, bits, **rotated)
            for symmetric in (True, False):
                assert_same(kernels.quantize, own, bits, group=50, symmetric=symmetric)


def assert_same(operation: Callable[..., kernels.Codes], x: Tensor, bits: int, **how: Any) -> None:
    found = parts(operation(x, bits, backend="cpu", **how))
    expected = parts(operation(x, bits, backend="torch", **how))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", BIG)
def test_big_widths_are_the_dense_product(width: int) -> None:
    x = drawn(3, width)
    for inverse in (False, True):
        for own, most in (
            (x, 4e-7),
            (x.bfloat16(), 2**-9),
        ):  # bfloat16's is rounded once, at its end
            found = kernels.hadamard(own, inverse=inverse, backend="cpu").double()
            expected = kernels.hadamard(own.double(), inverse=inverse, backend="torch")
            assert float((found - expected).norm() / expected.norm()) < most
    codes = kernels.rotate_quantize(x, 8, backend="cpu")
    exact = kernels.hadamard(x.double(), backend="torch")
    assert bool(((codes.dequantize() - exact).abs() <= codes.scale * 0.501).all())


def test_base_of_the_second_kind_is_its_matrix() -> None:
    x = torch.eye(148)
    found = kernels.hadamard(x, backend="cpu")
    assert torch.allclose(found, hadamard_matrix(148, torch.float32).T, atol=1e-6)


def test_division_by_the_reciprocal_rounds_like_division() -> None:
    # Steps whose quotients lie at ties, and next to them: k + 1/2 times a step, one ulp either way.
    step = torch.tensor([3.0, 0.1, 1e-20, 7e19, 1 / 3, 2.0**-91, 2.0**95])[:, None]
    ties = (torch.arange(-127, 127) + 0.5) * step
    x = torch.cat([ties, ties.nextafter(ties * 2), ties.nextafter(ties * 0), 127 * step], -1)
    expected = kernels.quantize(x, 8, backend="torch")
    found = kernels.quantize(x, 8, backend="cpu")
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.data, expected.data)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x = drawn(1500, 192)
    with threads(1):
        expected = everything(x)
    for count in (2, 5):
        with threads(count):
            found = everything(x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_results_do_not_depend_on_the_batch() -> None:
    x = drawn(75, 192)
    whole = everything(x)
    for rows in (slice(0, 1), slice(31, 48)):
        found = everything(x[rows])
        assert all(torch.equal(a, b[rows]) for a, b in zip(found, whole, strict=True))


def test_two_threads_may_call_at_once() -> None:
    inputs = [drawn(700, 192, seed=seed) for seed in range(4)]
    expected = [everything(x) for x in inputs]
    with threads(2), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, own in zip(pool.map(everything, inputs), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


@pytest.fixture(params=["torch's", "Python's"])
def whose_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from dllm_qbench.kernels.cpu import threads as module

    if request.param == "Python's":
        monkeypatch.setattr(module, "_openmp", lambda process: None)
    elif module._openmp(os.getpid()) is None:
        pytest.skip("this torch does not run on GNU's OpenMP, or this process was forked")


@pytest.mark.usefixtures("whose_threads")
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_row_is_in_one_range(rows: int, number: int) -> None:
    from dllm_qbench.kernels.cpu.threads import in_ranges

    seen: list[int] = []
    with threads(number):
        in_ranges(rows, 2**16, lambda start, stop: seen.extend(range(start, stop)))
    assert sorted(seen) == list(range(rows))


@pytest.mark.usefixtures("whose_threads")
def test_an_error_in_one_range_is_raised_when_all_have_ended() -> None:
    from dllm_qbench.kernels.cpu.threads import in_ranges

    ended = []

    def work(start: int, stop: int) -> None:
        ended.append(start)
        if start == 5:
            raise ValueError(f"at {start}")

    with threads(2), pytest.raises(ValueError, match="at 5"):
        in_ranges(20, 2**16, work)
    assert sorted(ended) == [0, 5, 10, 15]


@pytest.mark.usefixtures("whose_threads")
def test_ranges_run_on_several_threads() -> None:
    from dllm_qbench.kernels.cpu.threads import in_ranges

    together = threading.Barrier(2, timeout=20)  # broken, and so an error, where one comes alone
    with threads(2):
        in_ranges(2, 2**17, lambda start, stop: together.wait() and None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    x = drawn(600, 256)
    with threads(2):
        # The pool has threads now.
        expected = kernels.hadamard(x, backend="cpu").numpy().tobytes()
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=_answer, args=(answers.put, x, expected))
        child.start()
        child.join(30)
        alive = child.is_alive()
        if alive:
            child.kill()
        assert not alive
        assert answers.get() is True


def _answer(put: Callable[[bool], None], x: Tensor, expected: bytes) -> None:
    # Compared as bytes: torch's own threads (OpenMP's) do not come along, and it waits for them.
    put(kernels.hadamard(x, backend="cpu").numpy().tobytes() == expected)


SOURCE = """
from dllm_qbench.kernels.cpu.compiled import compiled

@compiled
def double(x):
    return x + x
"""


def test_kernels_work_where_nothing_can_be_kept_on_disk(tmp_path: Path) -> None:
    # A file where the folder would be: root may write to any folder.
    (tmp_path / "copied.py").write_text(SOURCE)
    (tmp_path / "__pycache__").write_text("no folder")
    (tmp_path / "home").write_text("no folder")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")},
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "IPYTHONDIR": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import copied; print(copied.double.stats.cache_path, copied.double(4))",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["None", "8"], done.stderr


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_linear_takes_tiles_and_groups(
    bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllm_qbench.kernels.cpu.weights._WEIGHTS", 1000)  # 3 tiles and a bit
    x = drawn(9, 260)
    weight = packed(11, 260, bits, 64, symmetric)
    for dtype in (torch.float32, torch.bfloat16):
        expected = kernels.linear(x.to(dtype), weight, backend="torch")
        found = kernels.linear(x.to(dtype), weight, backend="cpu")
        # In bfloat16 both round the same weights; the order of the sums differs.
        torch.testing.assert_close(
            found, expected, rtol=2e-5 if dtype == torch.float32 else 2e-2, atol=2e-2
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 64])
def test_a_bfloat16_product_of_groups_is_that_of_bfloat16_values(
    group: int | None, symmetric: bool
) -> None:
    codes = kernels.quantize(drawn(9, 260), 8, group=group, symmetric=symmetric, backend="torch")
    weight, bias = packed(11, 260, 4, 64, symmetric), drawn(11)
    how: dict[str, Any] = {"dtype": torch.bfloat16, "backend": "cpu"}
    found = kernels.linear_quantized(codes, weight, bias, **how)
    assert found.dtype == torch.bfloat16
    x, w = codes.dequantize().double(), weight.dequantize().double()
    size = x.abs() @ w.abs().T + bias.double().abs()
    off = (found.double() - (x @ w.T + bias.double())).abs()
    assert bool((off <= 4 * 2**-9 * size).all())  # both sides, the bias and the result are rounded
    assert float(off.max()) > 0
    halves = kernels.linear(x.bfloat16(), weight, bias, backend="cpu")
    assert torch.equal(found, halves)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_product_is_the_reference_bit_by_bit(
    bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllm_qbench.kernels.cpu.weights._WEIGHTS", 1000)
    monkeypatch.setattr("dllm_qbench.kernels.cpu.product._ROWS", 4)
    weight, bias = packed(11, 260, bits, None, symmetric), drawn(11)
    row_major = kernels.PackedWeight(
        weight.data.contiguous(), weight.scale, weight.zero, bits, 260, 260
    )
    for how in ({"bits": 8}, {"bits": 4}, {"bits": 8, "symmetric": False}):
        codes = kernels.quantize(drawn(9, 260), backend="torch", **how)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            expected = kernels.linear_quantized(codes, weight, bias, dtype=dtype, backend="torch")
            for own in (weight, weight, row_major):  # the second time from the sums that were kept
                found = kernels.linear_quantized(codes, own, bias, dtype=dtype, backend="cpu")
                assert torch.equal(found, expected)


def test_sums_that_int32_cannot_hold_are_refused_or_left_to_the_reference() -> None:
    I = 2**17  # noqa: E741 (128 * 128 * 2^17 is 2^31)
    weight = kernels.pack_weight(torch.full((1, I), -128), torch.ones(1, 1), None, 8)
    codes = kernels.Codes(torch.full((1, I), -128).to(torch.int8), torch.ones(1, 1), None, 8, I, I)
    with pytest.raises(QBenchError, match="131071 inputs"):
        kernels.linear_quantized(codes, weight, backend="cpu")
    assert float(kernels.linear_quantized(codes, weight)) == 2.0**31


def test_a_gradient_is_refused_not_lost() -> None:
    x = drawn(2, 8).requires_grad_()
    with pytest.raises(QBenchError, match="no gradient"):
        kernels.hadamard(x, backend="cpu")
    assert kernels.hadamard(x).requires_grad  # chosen automatically: the reference
    with torch.no_grad():
        assert not kernels.hadamard(x, backend="cpu").requires_grad


def test_tensors_of_inference_mode_are_taken() -> None:
    with torch.inference_mode(), threads(2):
        x = drawn(1500, 192)
        found = everything(x)
    expected = everything(x.clone())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
