"""The blocked GPTQ solver gives what the textbook's column loop gives, and that what elimination gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm_qbench.quant.gptq_textbook import solve_by_elimination, solve_textbook
from dllm_qbench.quant.methods.gptq import solve
from dllm_qbench.quant.scheme import Scheme


def case(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of inputs of uneven channels and tokens, some correlated."""
    generator = torch.Generator().manual_seed(seed)
    x_NI = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    x_NI *= torch.rand(inputs, generator=generator, dtype=torch.float64) + 0.1
    x_NI[:, 1::3] += 0.7 * x_NI[:, :1]
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, x_NI.T @ x_NI


@pytest.mark.parametrize("scheme", ["W4A16-g128", "W3A16-g64", "W4A16-g50", "W4A4", "W8A8"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 300), (7, 129), (1, 16)])
def test_blocked_solver_is_the_column_loop(
    scheme: str, symmetric: bool, outputs: int, inputs: int
) -> None:
    weight, hessian = case(outputs, inputs, seed=inputs)
    parsed = Scheme.parse(scheme)
    values, grid = solve(weight, hessian, parsed, symmetric, 0.01, act_order=False)
    expected, expected_grid = solve_textbook(weight, hessian, parsed, symmetric, 0.01)
    assert grid is not None
    torch.testing.assert_close(grid.scale, expected_grid.scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(grid.zero, expected_grid.zero, rtol=0, atol=0)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("damp", [0.01, 1.0])
def test_column_loop_is_elimination_of_one_input_after_another(damp: float) -> None:
    weight, hessian = case(20, 96, seed=5)
    parsed = Scheme.parse("W3A16-g32")
    values, grid = solve_textbook(weight, hessian, parsed, False, damp)
    expected, expected_grid = solve_by_elimination(weight, hessian, parsed, False, damp)
    torch.testing.assert_close(grid.scale, expected_grid.scale, rtol=1e-8, atol=0)
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-10)


def test_the_loop_feeds_errors_back() -> None:
    weight, hessian = case(20, 96, seed=6)
    parsed = Scheme.parse("W3A16-g32")
    values, _ = solve_textbook(weight, hessian, parsed, False, 0.01)
    alone, _ = solve_textbook(weight, torch.diag(hessian.diagonal()), parsed, False, 0.01)

    def loss(made: Tensor) -> float:
        error = made - weight
        return float(((error @ hessian) * error).sum())

    assert loss(values) < loss(alone)


def test_the_callers_weight_is_left_alone() -> None:
    weight, hessian = case(1, 16, seed=7)
    before = weight.clone(), hessian.clone()
    solve_textbook(weight, hessian, Scheme.parse("W4A16"), False, 0.01)
    solve_by_elimination(weight, hessian, Scheme.parse("W4A16"), False, 0.01)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
