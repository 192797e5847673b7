"""Which tokens of a target are hidden, drawn once per item on the CPU from the item's own seed."""

from __future__ import annotations

import math
import random
from collections import Counter

from dllm_qbench.seeding import derive

Mask = tuple[int, ...]  # hidden positions within the target, ascending


def mask_counts(length: int, samples: int, offset: float) -> list[int]:
    """Return how many tokens each sample hides: ``samples`` counts on 1..length, stratified.

    Systematic sampling: sample i sits at (i + offset) / samples of the range, so that each count is
    uniform when ``offset`` is uniform on [0, 1), and all counts occur equally often (to within one).

    >>> mask_counts(3, 6, 0.5)
    [1, 1, 2, 2, 3, 3]
    """
    # Exact, in whole numbers: in floats, i + 0.999... may round up into the next stratum.
    above, below = offset.as_integer_ratio()
    return [1 + length * (i * below + above) // (samples * below) for i in range(samples)]


def draw_masks(length: int, samples: int, seed: int) -> Counter[Mask]:
    """Draw the masks of one target; equal masks are counted rather than repeated.

    A sample hides k tokens, k uniform on 1..length (:func:`mask_counts`), and each k-subset is equally
    likely. Samples of the same k do not repeat a subset before all its subsets were drawn: each draw alone
    is as uniform as an independent one, and the estimate varies less. A 3-token target is enumerated
    exactly from 9 samples on, a single token with one.

    Args:
        length: tokens of the target.
        samples: how many masks; their counts add up to it.
        seed: the item's own; targets of equal length under one seed share their masks.

    Raises:
        ValueError: an empty target, or no samples.
    """
    if length < 1 or samples < 1:
        raise ValueError(
            f"masks need a target and a sample: target length {length}, samples {samples}"
        )
    # random() is the one method whose stream Python promises to keep across versions.
    rng = random.Random(derive(seed, "masks", length))
    drawn: Counter[Mask] = Counter()
    seen: set[Mask] = set()
    size = 0
    for count in mask_counts(length, samples, rng.random()):
        if count != size or len(seen) == math.comb(length, count):
            size, seen = count, set()
        while (mask := _subset(rng, length, count)) in seen:
            pass
        seen.add(mask)
        drawn[mask] += 1
    return drawn


def _subset(rng: random.Random, length: int, count: int) -> Mask:
    keys = [rng.random() for _ in range(length)]
    return tuple(sorted(sorted(range(length), key=keys.__getitem__)[:count]))
