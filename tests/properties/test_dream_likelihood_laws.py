"""Laws of Dream's Monte Carlo likelihood, on random models and targets."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_qbench.diffusion.dream_likelihood import log_likelihoods, mask_weights
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.tiny import tiny_dream

LM = tiny_dream(4)
EPS = 1e-3
tokens = st.integers(min_value=4, max_value=63)
seeds = st.integers(min_value=0, max_value=2**40)


def expected_weight(hidden: int, length: int) -> float:
    """1 / (1 - eps) * integral from eps to 1 of t^(k-1) (1-t)^(L-k) dt, term by term."""
    rest = length - hidden
    return math.fsum(
        math.comb(rest, j) * (-1) ** j * (1 - EPS ** (hidden + j)) / (hidden + j)
        for j in range(rest + 1)
    ) / (1 - EPS)


def enumerated(lm: DiffusionLM, context: list[int], target: list[int]) -> float:
    """The exact expectation, over all masks, one canvas at a time."""
    length, total = len(target), 0.0
    for count in range(1, length + 1):
        for mask in itertools.combinations(range(length), count):
            hidden = [lm.mask_id if i in mask else t for i, t in enumerate(target)]
            log_p = lm.logits([*context, *hidden, lm.eos_id]).double().log_softmax(-1)
            right = math.fsum(float(log_p[len(context) + i, target[i]]) for i in mask)
            total += expected_weight(count, length) * right
    return total


def test_expected_weights_are_almost_those_of_llada() -> None:
    # LLaDA: L / k with k uniform on 1..L and all k-subsets alike, 1 / (k * comb(L, k)).
    for length in range(1, 6):
        for hidden in range(1, length + 1):
            llada = 1 / (hidden * math.comb(length, hidden))
            assert expected_weight(hidden, length) == pytest.approx(llada, rel=5e-3)
    assert expected_weight(1, 1) == pytest.approx(1)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=4), seeds)
def test_estimate_converges_to_the_enumeration_of_all_masks(
    context: list[int], target: list[int], seed: int
) -> None:
    """The mean over 64 independent seeds stays within 5 standard errors as the samples grow."""
    exact = enumerated(LM, context, target)
    for samples in (16, 128, 512):
        requests = [(context, target, seed + i) for i in range(64)]
        draws = log_likelihoods(LM, requests, samples)
        spread = statistics.stdev(draws) / 8
        assert abs(statistics.fmean(draws) - exact) <= 5 * spread + 1e-5


def test_error_falls_with_the_number_of_samples() -> None:
    context, target = [5, 6, 7], [10, 20, 30]
    exact = enumerated(LM, context, target)

    def rms(samples: int) -> float:
        found = log_likelihoods(LM, [(context, target, seed) for seed in range(64)], samples)
        return math.sqrt(statistics.fmean((value - exact) ** 2 for value in found))

    errors = [rms(samples) for samples in (8, 64, 512)]
    # Independent draws give 0.35 for eight times the samples; 64 seeds tell it to about a quarter.
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.1 * abs(exact)


@given(st.integers(1, 6), st.integers(1, 40), seeds)
def test_no_mask_is_empty_and_all_lie_in_the_target(length: int, samples: int, seed: int) -> None:
    weights = mask_weights(length, samples, seed)
    assert all(mask and set(mask) <= set(range(length)) for mask in weights)
    # 1 / t lies between 1 and 1,000, and every sample adds at most one
    assert all(1 / samples <= weight <= 1000 for weight in weights.values())


def test_every_token_counts_once_on_average() -> None:
    # E[1/t * P(hidden | t)] = 1 for each position; 4 sigma of 400 seeds x 64 samples is 0.06.
    totals = [0.0, 0.0, 0.0]
    for seed in range(400):
        for mask, weight in mask_weights(3, 64, seed).items():
            for position in mask:
                totals[position] += weight / 400
    assert totals == pytest.approx([1.0, 1.0, 1.0], abs=0.06)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(tokens, min_size=1, max_size=6),
            st.lists(tokens, min_size=1, max_size=4),
            seeds,
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(min_value=1, max_value=9),
    st.integers(min_value=1, max_value=64),
)
def test_result_does_not_depend_on_batch_size_or_on_other_requests(
    requests: list[tuple[list[int], list[int], int]], samples: int, batch_size: int
) -> None:
    together = log_likelihoods(LM, requests, samples)
    assert log_likelihoods(LM, requests, samples, batch_size=batch_size) == together
    assert [log_likelihoods(LM, [request], samples)[0] for request in requests] == together
