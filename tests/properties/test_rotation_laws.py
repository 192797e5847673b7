"""Rotations as laws: orthonormal, norm-preserving, invertible, and the fast transform is the
matrix.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.kernels.orders import paley, split
from dllm_qbench.quant import rotation as rot

KNOWN = (12, 20, 28, 36, 40, 52, 60, 108, 140, 148)
orders = st.sampled_from(
    [1, 2, 4, 8, 64, 12, 24, 20, 28, 36, 40, 52, 60, 108, 140, 148, 192, 6, 7, 30, 90]
)
seeds = st.integers(0, 2**31)


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", KNOWN)
def test_known_orders_are_hadamard(n: int) -> None:
    signs = rot.hadamard_matrix(n) * n**0.5
    assert torch.allclose(signs.abs(), torch.ones(n, n, dtype=torch.float64))
    assert torch.allclose(signs @ signs.T, n * torch.eye(n, dtype=torch.float64))
    assert rot.block_hadamard(n)[0] == 1


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (4096, (4096, 1)),
        (12288, (1024, 12)),
        (14336, (512, 28)),
        (18944, (128, 148)),
        (3584, (128, 28)),
    ],
)
def test_sizes_of_the_real_models_need_no_fallback(n: int, expected: tuple[int, int]) -> None:
    assert split(n) == expected
    x = draw((2, n), 0)
    y = rot.hadamard_transform(x)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1))
    assert torch.allclose(rot.inverse_hadamard_transform(y), x)


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_power_of_two_equals_scipy(n: int) -> None:
    assert np.array_equal(
        (rot.hadamard_matrix(n) * n**0.5).round().numpy(), scipy.linalg.hadamard(n)
    )


def test_paley_says_no_where_it_gives_none() -> None:
    assert paley(6) is None
    assert paley(92) is None  # neither 91 nor 45 is a prime power
    with pytest.raises(ValueError, match="must be positive"):
        rot.hadamard_matrix(0)


@given(orders, seeds)
def test_transform_equals_dense_matrix(n: int, seed: int) -> None:
    x = draw((3, n), seed)
    assert torch.allclose(rot.hadamard_transform(x), x @ rot.hadamard_matrix(n).T, atol=1e-12)


@given(orders, seeds)
def test_transform_then_inverse_is_identity(n: int, seed: int) -> None:
    x = draw((2, n), seed)
    assert torch.allclose(rot.inverse_hadamard_transform(rot.hadamard_transform(x)), x, atol=1e-12)


@given(orders, seeds)
def test_rotation_preserves_norm(n: int, seed: int) -> None:
    x = draw((4, n), seed)
    for matrix in (
        rot.hadamard_matrix(n),
        rot.random_hadamard(n, seed),
        rot.random_orthogonal(n, seed),
    ):
        assert torch.allclose((x @ matrix).norm(dim=1), x.norm(dim=1))


@given(orders, seeds)
def test_random_rotations_are_orthogonal_and_follow_their_seed(n: int, seed: int) -> None:
    for make in (rot.random_hadamard, rot.random_orthogonal):
        matrix = make(n, seed)
        assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
        assert torch.equal(matrix, make(n, seed))
        # n signs are 2^n Hadamard matrices: of 8, one pair of seeds in 256 shares one.
        assert n < 60 or not torch.equal(matrix, make(n, seed + 1))


@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), seeds)
def test_transform_keeps_dtype_and_shape(dtype: torch.dtype, seed: int) -> None:
    x = draw((2, 3, 24), seed).to(dtype)
    y = rot.hadamard_transform(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.allclose(
        y.double(),
        x.double() @ rot.hadamard_matrix(24).T,
        atol=0.05 if dtype != torch.float32 else 1e-5,
    )


@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_zigzag_is_a_bijection_that_evens_the_blocks(blocks: int, each: int, seed: int) -> None:
    size = draw((blocks * each,), seed).abs()
    order = rot.zigzag_permutation(size, blocks)
    assert sorted(order.tolist()) == list(range(blocks * each))
    dealt = size[order].reshape(blocks, each).sum(dim=1)
    assert float(dealt.max() - dealt.min()) <= float(size.max() - size.min()) + 1e-9


@given(st.sampled_from([(8, 4), (16, 16), (12, 3), (6, 1)]), st.integers(0, 6), seeds)
def test_greedy_rotation_is_orthogonal_and_never_raises_the_block_maximum(
    shape: tuple[int, int], steps: int, seed: int
) -> None:
    n, block = shape
    x = draw((20, n), seed)
    x[3, n // 2] = 50.0
    made = rot.greedy_block_rotation(x, block, steps)
    for b in range(n // block):
        assert torch.allclose(
            made[b] @ made[b].T, torch.eye(block, dtype=torch.float64), atol=1e-10
        )
        part = x[:, b * block : (b + 1) * block]
        assert float((part @ made[b]).abs().max()) <= float(part.abs().max()) + 1e-9


def test_greedy_rotation_spreads_a_massive_channel() -> None:
    x = draw((64, 16), 0)
    x[:, 5] *= 100
    made = rot.greedy_block_rotation(x, 16, 8)[0]
    assert float((x @ made).abs().max()) < 0.5 * float(x.abs().max())


@pytest.mark.parametrize(
    "call",
    [
        lambda: rot.zigzag_permutation(torch.ones(6), 4),
        lambda: rot.greedy_block_rotation(torch.ones(2, 6), 4, 1),
    ],
)
def test_sizes_that_do_not_divide_are_named(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"do(es)? not divide 6 channels"):
        call()
