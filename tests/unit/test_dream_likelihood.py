"""Dream's Monte Carlo likelihood: hand-worked case, masks, errors, and who calls it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.diffusion import by_model, likelihood
from dllm_qbench.diffusion.dream_likelihood import log_likelihoods, mask_weights
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.seeding import derive
from tests.helpers.scripted import Scripted
from tests.helpers.tiny import tiny_dream, tiny_llada

CONTEXT = [5, 9, 11, 30]
EOS = 1


class ScriptedDream(Scripted):
    eos_id = EOS


def test_hand_worked_two_token_target() -> None:
    # Each true token has p = 1/2 while both are hidden and 1/4 while one is; the weights say how
    # often, so the estimate is theirs times 2 log 1/2 or log 1/4, both of which are -log 4.
    canvases: list[list[int]] = []

    def script(ids: Tensor) -> Tensor:
        canvases.append(ids.tolist())
        hidden = int((ids == 0).sum())
        table = torch.full((4, 5), -math.inf)
        table[:, 1] = 0.0
        table[:, 2 : (3 if hidden == 2 else 5)] = 0.0
        return table

    lm: Any = ScriptedDream(script, vocabulary=5)
    (found,) = log_likelihoods(lm, [([4], [1, 1], 0)], samples=20)
    weights = mask_weights(2, 20, 0)
    assert set(weights) == {(0,), (1,), (0, 1)}
    assert found == pytest.approx(-math.log(4) * sum(weights.values()))
    # the end of text follows every canvas and is never hidden, nor is the context
    assert all(row[0] == 4 and row[3] == EOS for row in canvases)


def test_weights_are_those_of_the_drawn_times() -> None:
    # Written out for one sample: an offset, then one draw for each position.
    for seed in range(20):
        rng = random.Random(derive(seed, "Dream masks", 3))
        t = 1e-3 + (1 - 1e-3) * rng.random()
        mask = tuple(at for at in range(3) if rng.random() < t)
        expected = {mask: pytest.approx(1 / t)} if mask else {}
        assert mask_weights(3, 1, seed) == expected


def test_masks_depend_on_seed_and_length_alone() -> None:
    assert mask_weights(4, 32, 7) == mask_weights(4, 32, 7) != mask_weights(4, 32, 8)


def test_choices_of_one_item_share_masks_and_canvases() -> None:
    seen: list[tuple[int, ...]] = []

    def script(ids: Tensor) -> Tensor:
        seen.append(tuple(ids.tolist()))
        return torch.zeros(len(ids), 10)

    lm: Any = ScriptedDream(script, vocabulary=10)
    requests = [([9], [1, 2, 3], 5), ([9], [1, 2, 4], 5)]
    found = log_likelihoods(lm, requests, samples=200, batch_size=64)
    # 7 masks each; the 4 that hide the word in which they differ are one canvas for both
    assert len(set(seen)) == 4 + 3 + 3
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_name_the_request(bad: float) -> None:
    def script(ids: Tensor) -> Tensor:
        table = torch.zeros(len(ids), 4)
        if ids[0] == 2:
            table[1, 3] = bad
        return table

    lm: Any = ScriptedDream(script)
    with pytest.raises(NonFiniteError, match=r"item b: log p of the hidden tokens is nan"):
        log_likelihoods(lm, [([1], [3], 0), ([2], [1], 0)], 8, labels=["item a", "item b"])


@pytest.mark.parametrize(
    ("request_", "samples", "message"),
    [
        ((CONTEXT, [], 0), 4, "request 0: the target is empty"),
        (([], [5], 0), 4, "request 0: the context is empty; Dream cannot hide token 0"),
        ((CONTEXT, [5], 0), 0, "samples 0"),
        (([7] * 62, [5, 6], 0), 9, "canvas 0 has 65 tokens; tiny takes 1..64"),
    ],
)
def test_requests_that_cannot_be_scored(
    request_: tuple[Sequence[int], Sequence[int], int], samples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihoods(tiny_dream(), [request_], samples)


def test_each_model_is_scored_its_own_way() -> None:
    requests = [(CONTEXT, [4, 5, 6], 2)]
    for lm, own in ((tiny_dream(), log_likelihoods), (tiny_llada(), likelihood.log_likelihoods)):
        expected = own(lm, requests, 16)
        assert by_model.log_likelihoods(lm, requests, 16) == expected
        assert lm.log_likelihood(torch.tensor(CONTEXT), [4, 5, 6], 16, seed=2) == expected[0]


def test_progress_reaches_the_total() -> None:
    seen: list[tuple[int, int]] = []
    requests = [(CONTEXT, [token], 0) for token in range(4, 14)]
    log_likelihoods(
        tiny_dream(), requests, 64, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 1)]  # one canvas serves all ten targets: they hide the same position
