"""Monte Carlo likelihood: exact cases, shared work, errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dllm_qbench.diffusion.likelihood import log_likelihoods
from dllm_qbench.diffusion.masking import draw_masks
from dllm_qbench.errors import NonFiniteError
from tests.helpers.scripted import Scripted
from tests.helpers.tiny import tiny_llada

CONTEXT = [5, 9, 11, 30]


@pytest.mark.parametrize("samples", [1, 7, 128])
def test_single_token_target_is_exact_with_any_number_of_samples(samples: int) -> None:
    lm = tiny_llada()
    row = lm.logits([*CONTEXT, lm.mask_id])[-1].double()
    for target in (4, 17, 63):
        expected = float(row.log_softmax(-1)[target])
        found = log_likelihoods(lm, [(CONTEXT, [target], 3)], samples)
        assert found == pytest.approx([expected], rel=1e-6)


def test_single_tokens_of_one_context_add_up_to_one() -> None:
    lm = tiny_llada()
    found = log_likelihoods(lm, [(CONTEXT, [token], 0) for token in range(64)], samples=1)
    assert math.fsum(map(math.exp, found)) == pytest.approx(1.0, abs=1e-9)


def test_hand_worked_two_token_target() -> None:
    # The model gives each true token p = 1/2 while both are hidden and 1/4 while one is.
    # One mask of both: 2/2 * 2 log 1/2. A mask of one: 2/1 * log 1/4. Mean of the two counts: -log 8.
    def script(ids: Tensor) -> Tensor:
        hidden = int((ids == 0).sum())
        table = torch.full((3, 5), -math.inf)
        table[:, 1] = 0.0
        table[:, 2 : (3 if hidden == 2 else 5)] = 0.0
        return table

    lm = Scripted(script, vocabulary=5)
    (found,) = log_likelihoods(lm, [([4], [1, 1], 0)], samples=2)  # type: ignore[arg-type]
    assert found == pytest.approx(-math.log(8))


def test_choices_of_one_item_share_masks_and_canvases() -> None:
    # Choices that differ in their last word, samples enough to enumerate: 7 masks each, of which 4 hide
    # that word and are the same canvas for both; 3 do not.
    seen: list[tuple[int, ...]] = []

    def script(ids: Tensor) -> Tensor:
        seen.append(tuple(ids.tolist()))
        return torch.zeros(len(ids), 10)

    lm = Scripted(script, vocabulary=10)
    requests = [([9], [1, 2, 3], 5), ([9], [1, 2, 4], 5)]
    log_likelihoods(lm, requests, samples=9, batch_size=64)  # type: ignore[arg-type]
    assert len(set(seen)) == 4 + 3 + 3
    assert draw_masks(3, 6, 5) == draw_masks(3, 6, 5) != draw_masks(3, 6, 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_name_the_request(bad: float) -> None:
    def script(ids: Tensor) -> Tensor:
        table = torch.zeros(len(ids), 4)
        if ids[0] == 2:
            table[-1, 3] = bad
        return table

    lm = Scripted(script)
    with pytest.raises(NonFiniteError, match=r"item b: log p of the hidden tokens is nan"):
        log_likelihoods(lm, [([1], [3], 0), ([2], [1], 0)], 4, labels=["item a", "item b"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "samples", "message"),
    [
        ((CONTEXT, [], 0), 4, "request 0: the target is empty"),
        ((CONTEXT, [5], 0), 0, "samples 0"),
        (([7] * 63, [5, 6], 0), 1, "canvas 0 has 65 tokens; tiny takes 1..64"),
    ],
)
def test_requests_that_cannot_be_scored(
    request_: tuple[Sequence[int], Sequence[int], int], samples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihoods(tiny_llada(), [request_], samples)


def test_progress_reaches_the_total() -> None:
    seen: list[tuple[int, int]] = []
    requests = [(CONTEXT, [token], 0) for token in range(4, 14)]
    log_likelihoods(
        tiny_llada(),
        requests,
        1,
        batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    # One canvas serves all ten targets: they hide the same position.
    assert seen == [(1, 1)]


def test_the_public_method_agrees() -> None:
    lm = tiny_llada()
    (expected,) = log_likelihoods(lm, [(CONTEXT, [4, 5, 6], 2)], 128)
    assert lm.log_likelihood(torch.tensor(CONTEXT), [4, 5, 6], seed=2) == expected
