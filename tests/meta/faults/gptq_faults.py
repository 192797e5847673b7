"""Faults of GPTQ: its Hessian, its feedback, its order, its groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.quant.grid import find_grid
from dllm_qbench.quant.methods import gptq
from dllm_qbench.quant.scheme import Scheme
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import replaced, wrapped


def no_feedback(hessian_II: Tensor, *_: Any) -> Tensor:
    return torch.eye(len(hessian_II), dtype=torch.float64)


def rows_shifted(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    return U_II.diagonal().diag() + U_II.roll(1, 0).triu(1)


def of_the_hessian_itself(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    # U^T U = H^-1, so H = U^-1 U^-T, and this is the factor that H itself has.
    H_II = torch.linalg.inv(U_II.T @ U_II)
    factor: Tensor = torch.linalg.cholesky((H_II + H_II.T) / 2, upper=True)
    return factor


def inverse_unfactored(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    return (U_II.T @ U_II).triu()


def undamped(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    found: Tensor = sound(hessian_II, 0.0, *rest)
    return found


def overdamped(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    found: Tensor = sound(hessian_II, 100 * damp, *rest)
    return found


def wrong_sign(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    return U_II.diagonal().diag() - U_II.triu(1)


def undivided(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    return U_II.triu(1) + torch.eye(len(U_II), dtype=U_II.dtype)


def within_lazy_blocks(sound: Any, hessian_II: Tensor, damp: float, *rest: Any) -> Tensor:
    U_II: Tensor = sound(hessian_II, damp, *rest)
    block_I = torch.arange(len(U_II)) // gptq.LAZY_COLUMNS
    return U_II * (block_I[:, None] == block_I)


def order_kept(
    sound: Any,
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    symmetric: bool,
    damp: float,
    _: bool,
    *rest: Any,
) -> Any:
    values, grid = sound(weight, hessian, scheme, symmetric, damp, True, *rest)
    order = torch.argsort(hessian.double().diagonal(), descending=True, stable=True)
    return values[:, order], grid


def last_columns_left(sound: Any, weight: Tensor, *rest: Any) -> Any:
    values, grid = sound(weight, *rest)
    inputs = weight.shape[1]
    # Where the inputs fill whole blocks, the last block goes.
    done = (inputs - 1) // gptq.LAZY_COLUMNS * gptq.LAZY_COLUMNS
    values[:, done:] = weight[:, done:].double()
    return values, grid


def symmetric_solution(
    sound: Any, weight: Tensor, hessian: Tensor, scheme: Scheme, _symmetric: bool, *rest: Any
) -> Any:
    return sound(weight, hessian, scheme, True, *rest)


def rounded_before(
    sound: Any, weight: Tensor, hessian: Tensor, scheme: Scheme, symmetric: bool, *rest: Any
) -> Any:
    if scheme.quantizes_weights:
        weight = find_grid(weight, scheme.weight_bits, symmetric, scheme.group).nearest(weight)
    return sound(weight, hessian, scheme, symmetric, *rest)


def last_column_missed(sound: Any, x_Rg: Tensor, bits: int, symmetric: bool) -> Any:
    return sound(x_Rg[:, :-1] if x_Rg.shape[1] > 1 else x_Rg, bits, symmetric)


def zero_one_too_high(sound: Any, x_Rg: Tensor, bits: int, symmetric: bool) -> Any:
    scale, zero = sound(x_Rg, bits, symmetric)
    return scale, zero if symmetric else zero + 1


def keys_and_values_swapped(sound: Any, *args: Any) -> Iterator[Any]:
    held: tuple[Any, ...] | None = None
    for name, weight, grid in sound(*args):
        if name.endswith("k_proj"):
            held = name, weight, grid
        elif held is not None:  # v_proj, solved in one go with k_proj
            yield held[0], weight, grid
            yield name, held[1], held[2]
            held = None
        else:
            yield name, weight, grid


def bf16_moment(sound: Any, *args: Any) -> Tensor:
    H_II: Tensor = sound(*args)
    return H_II.bfloat16().double()


def _fault(name: str, scheme: str, task: str, plant: Any, what: str, **more: Any) -> Fault:
    return Fault(f"gptq-{name}", "harmful", "gptq", scheme, task, plant, what, **more)


FAULTS = (
    _fault(
        "no-error-feedback",
        "W3A16-g64",
        "math",
        replaced((gptq, "inverse_factor"), by=no_feedback),
        "A diagonal factor hands no error on to later columns: this is rounding to nearest.",
    ),
    _fault(
        "feedback-with-the-wrong-hessian-row",
        "W3A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", rows_shifted),
        "Column q's error is handed on with row q - 1 of the factor.",
    ),
    _fault(
        "feedback-from-the-hessian-itself",
        "W4A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", of_the_hessian_itself),
        "The factor is that of H and not of its inverse.",
        model=DREAM,
    ),
    _fault(
        "inverse-without-cholesky",
        "W3A16-g64",
        "general",
        wrapped(gptq, "inverse_factor", inverse_unfactored),
        "Rows of H^-1 are used as they are, columns already rounded not eliminated from them.",
    ),
    _fault(
        "damp-omitted",
        "W3A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", undamped),
        "Nothing is added to the Hessian's diagonal.",
    ),
    _fault(
        "damp-100-times",
        "W3A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", overdamped),
        "The damping share is taken for percent: 1 instead of 0.01 times the mean diagonal.",
        model=DREAM,
    ),
    _fault(
        "feedback-with-the-wrong-sign",
        "W4A16-g64",
        "general",
        wrapped(gptq, "inverse_factor", wrong_sign),
        "Later columns add to each error instead of making up for it.",
    ),
    _fault(
        "feedback-not-divided-by-the-pivot",
        "W3A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", undivided),
        "A column's error is handed on without the division by the diagonal of the factor.",
    ),
    _fault(
        "lazy-update-lost",
        "W3A16-g64",
        "math",
        wrapped(gptq, "inverse_factor", within_lazy_blocks),
        "Errors are handed on within a block of 128 columns, and never to the blocks after it.",
    ),
    _fault(
        "act-order-without-inverse-permutation",
        "W4A16-g64",
        "general",
        wrapped(gptq, "solve", order_kept),
        "Columns are taken in the order of diag(H) and stay in it.",
    ),
    _fault(
        "last-block-of-columns-skipped",
        "W4A16-g64",
        "math",
        wrapped(gptq, "solve", last_columns_left),
        "The loop over blocks of 128 columns ends one early; the last ones keep 16 bits.",
    ),
    _fault(
        "symmetric-where-asymmetric-was-asked",
        "W3A16-g64",
        "math",
        wrapped(gptq, "solve", symmetric_solution),
        "The recipe says asymmetric, the solver gets symmetric.",
        model=DREAM,
    ),
    _fault(
        "weights-rounded-before",
        "W3A16-g64",
        "math",
        wrapped(gptq, "solve", rounded_before),
        "Weights are quantized twice: rounded to nearest on loading, then handed to GPTQ.",
        model=DREAM,
    ),
    _fault(
        "group-grid-misses-its-last-column",
        "W3A16-g64",
        "code",
        wrapped(gptq, "scale_and_zero", last_column_missed),
        "A group's grid is found from its first 63 columns.",
    ),
    _fault(
        "zero-point-off-by-one",
        "W3A16-g64",
        "math",
        wrapped(gptq, "scale_and_zero", zero_one_too_high),
        "Zero points are one too high, which clips the largest weights by one of seven steps.",
    ),
    _fault(
        "floor-instead-of-round",
        "W4A16-g64",
        "math",
        replaced((gptq, "round_half_away"), by=torch.floor),
        "The solver truncates to the level below instead of rounding to the nearest.",
        model=DREAM,
    ),
    _fault(
        "keys-and-values-swapped",
        "W4A16-g64",
        "general",
        wrapped(gptq, "solved_weights", keys_and_values_swapped),
        "The rows of the stacked weight are handed back in the wrong order: k gets v's, v gets k's.",
    ),
    _fault(
        "hessian-in-bf16",
        "W3A16-g64",
        "math",
        wrapped(gptq, "second_moment", bf16_moment),
        "The Hessian is rounded to bf16, which leaves it without a Cholesky factor or with a poor one.",
    ),
)
