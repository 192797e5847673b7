"""Monte Carlo log-likelihood of a target under Dream.

Source: Ye et al., "Dream 7B" (arXiv 2508.15487) and its released evaluation: hide each target token
with probability t, t uniform on [1e-3, 1); log p is estimated by the mean of
1 / t * sum log p(hidden token). The end of text follows the target and is never hidden.

Notable:
- t is stratified over the samples of a request, as in the released code over its batch; the masks
  depend on the item's seed and on the target's length alone, so full precision and quantized see
  the same ones, and so do all choices of equal length of one item;
- equal masks are one canvas that carries the sum of their weights, and a sample that hides nothing
  costs nothing;
- what it converges to: a mask of k out of L tokens weighs, on average,
  1 / (1 - 1e-3) * integral from 1e-3 to 1 of t^(k-1) (1-t)^(L-k) dt.
  But for the missing thousandth this is LLaDA's mean of L / k. The weight 1 / t is noisier, though:
  not even a single token is exact, and a difference between targets of unequal length carries that
  noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dllm_qbench.diffusion.likelihood import Request, Weighted, require_target, weighted_sums
from dllm_qbench.diffusion.masking import Mask
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

EPS = 1e-3  # the smallest t, of the released evaluation and sampler alike


def mask_weights(length: int, samples: int, seed: int) -> dict[Mask, float]:
    """Draw the masks of one target; return each one's sum of 1 / t over samples, divided by these.

    Args:
        length: tokens of the target.
        samples: how many values of t; a mask that hides nothing is left out.
        seed: the item's own; targets of equal length under one seed share their masks.

    Raises:
        ValueError: an empty target, or no samples.
    """
    if length < 1 or samples < 1:
        raise ValueError(
            f"masks need a target and a sample: target length {length}, samples {samples}"
        )
    # random() is the one method whose stream Python promises to keep across versions.
    rng = random.Random(derive(seed, "Dream masks", length))
    offset = rng.random()
    weights: dict[Mask, float] = {}
    for sample in range(samples):
        t = EPS + (1 - EPS) * (sample + offset) / samples
        mask = tuple(position for position in range(length) if rng.random() < t)
        if mask:
            weights[mask] = weights.get(mask, 0.0) + 1 / (t * samples)
    return weights


def log_likelihoods(
    lm: DiffusionLM,
    requests: Sequence[Request],
    samples: int = 128,
    *,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    labels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Estimate log p(target | context) in nats for each request; arguments and errors are those of
    :func:`dllm_qbench.diffusion.likelihood.log_likelihoods`.

    Raises:
        ValueError: also for an empty context, since token 0 of a canvas cannot be hidden.
    """
    weighted = []
    drawn: dict[tuple[int, int], dict[Mask, float]] = {}  # choices of one item share theirs
    for index, (context, target, seed) in enumerate(requests):
        require_target(target, labels, index)
        if not len(context):
            name = labels[index] if labels is not None else f"request {index}"
            raise ValueError(
                f"{name}: the context is empty; Dream cannot hide token 0 of a canvas, so start the"
                " context with a real token, such as the begin-of-text one"
            )
        key = len(target), seed
        if key not in drawn:
            drawn[key] = mask_weights(len(target), samples, seed)
        weighted.append(Weighted(context, target, (lm.eos_id,), drawn[key]))
    return weighted_sums(lm, weighted, batch_tokens, batch_size, labels, progress)
