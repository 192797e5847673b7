"""Laws of the Monte Carlo likelihood, on random models and targets."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllm_qbench.diffusion.likelihood import log_likelihoods
from dllm_qbench.diffusion.masking import draw_masks, mask_counts
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.tiny import tiny_llada

LM = tiny_llada(4)
tokens = st.integers(min_value=4, max_value=63)
seeds = st.integers(min_value=0, max_value=2**40)


def enumerated(lm: DiffusionLM, context: list[int], target: list[int]) -> float:
    """-mean over k of the mean over all k-subsets of CE(masked sum) * L / k, one canvas at a time."""
    length, total = len(target), 0.0
    for count in range(1, length + 1):
        subsets = list(itertools.combinations(range(length), count))
        for subset in subsets:
            canvas = context + [lm.mask_id if i in subset else t for i, t in enumerate(target)]
            log_p = lm.logits(canvas).double().log_softmax(-1)[len(context) :]
            cross_entropy = -sum(float(log_p[i, target[i]]) for i in subset)
            total -= cross_entropy * length / count / len(subsets) / length
    return total


@settings(max_examples=15)
@given(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=4), seeds)
def test_estimate_converges_to_the_enumeration_of_all_masks(
    context: list[int], target: list[int], seed: int
) -> None:
    """The error of the mean over n independent seeds stays within 5 standard errors as n grows, and is
    smaller at the end; and with samples enough for every mask the estimate *is* the exact value.
    """
    exact = enumerated(LM, context, target)
    draws = log_likelihoods(LM, [(context, target, seed + i) for i in range(256)], samples=2)
    for n in (16, 64, 256):
        spread = statistics.pstdev(draws) / math.sqrt(n)
        assert abs(statistics.fmean(draws[:n]) - exact) <= 5 * spread + 1e-5
    # The least number of samples that has each count a multiple of its number of subsets.
    length = len(target)
    every = length * math.lcm(*(math.comb(length, k) for k in range(1, length + 1)))
    (found,) = log_likelihoods(LM, [(context, target, seed)], samples=every)
    assert found == pytest.approx(exact, rel=1e-5)


def test_error_falls_with_the_number_of_samples() -> None:
    context, target = [5, 6, 7], [10, 20, 30, 40, 50, 60]
    exact = enumerated(LM, context, target)

    def rms(samples: int) -> float:
        found = log_likelihoods(LM, [(context, target, seed) for seed in range(64)], samples)
        return math.sqrt(statistics.fmean((value - exact) ** 2 for value in found))

    errors = [rms(samples) for samples in (2, 8, 32, 128)]
    # At least as fast as independent draws, 1/2 for four times the samples (with 25 % for 64 seeds).
    assert all(later < 0.65 * earlier for earlier, later in itertools.pairwise(errors)), errors


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.lists(tokens, min_size=1, max_size=6),
            st.lists(tokens, min_size=1, max_size=4),
            seeds,
        ),
        min_size=1,
        max_size=12,
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


@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1, exclude_max=True))
@example(1, 3, 1 - 2**-52)
def test_mask_counts_are_stratified(length: int, samples: int, offset: float) -> None:
    counts = Counter(mask_counts(length, samples, offset))
    assert set(counts) <= set(range(1, length + 1))
    assert counts.total() == samples
    assert all(abs(counts[k] - samples / length) < 1 for k in range(1, length + 1))


@given(st.integers(1, 6), st.integers(1, 30), seeds)
def test_masks_of_one_count_repeat_only_after_all_of_them(
    length: int, samples: int, seed: int
) -> None:
    drawn = draw_masks(length, samples, seed)
    assert drawn.total() == samples
    for count in range(1, length + 1):
        subsets = math.comb(length, count)
        repeats = [drawn[mask] for mask in itertools.combinations(range(length), count)]
        assert max(repeats) - min(repeats) <= 1
        assert len(repeats) == subsets


def test_every_mask_is_as_likely_as_it_should_be() -> None:
    # One sample of a 3-token target: count k with 1/3, then each of comb(3, k) subsets alike.
    # 4 sigma of 6000 draws at p = 1/9 is 0.016, at 1/3 it is 0.024.
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(6000):
        drawn += draw_masks(3, 1, seed)
    for mask in [m for k in (1, 2, 3) for m in itertools.combinations(range(3), k)]:
        expected = 1 / 3 / math.comb(3, len(mask))
        assert drawn[mask] / 6000 == pytest.approx(expected, abs=0.024)
