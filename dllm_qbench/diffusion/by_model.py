"""Likelihood and generation in the manner of whichever model is given: LLaDA's or Dream's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dllm_qbench.diffusion import dream_likelihood, dream_sampler, likelihood, samplers
from dllm_qbench.models.lm import DiffusionLM


def log_likelihoods(
    lm: DiffusionLM,
    requests: Sequence[likelihood.Request],
    samples: int = 128,
    *,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    labels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Estimate log p(target | context) as the model's own paper does; see
    :func:`dllm_qbench.diffusion.likelihood.log_likelihoods`.
    """
    estimate = dream_likelihood.log_likelihoods if is_dream(lm) else likelihood.log_likelihoods
    return estimate(
        lm,
        requests,
        samples,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        labels=labels,
        progress=progress,
    )


def generate(
    lm: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    gen_length: int,
    steps: int,
    block_length: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    *,
    algorithm: str | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    alg_temp: float | None = None,
    forbidden_ids: Sequence[int] = (),
    unconfident_ids: Sequence[int] = (),
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    labels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    trace: list[list[samplers.Commit]] | None = None,
) -> list[list[int]]:
    """Continue prompts with the model's own sampler; see
    :func:`dllm_qbench.diffusion.samplers.generate` and
    :func:`dllm_qbench.diffusion.dream_sampler.generate`.

    Raises:
        ValueError: an algorithm or a setting that the model's sampler does not have.
    """
    if is_dream(lm):
        for name, ids in (("forbidden_ids", forbidden_ids), ("unconfident_ids", unconfident_ids)):
            if len(ids):  # its release has no such switch, so there is nothing to be faithful to
                raise ValueError(
                    f"{name} {list(ids)}: a setting of LLaDA's sampler; Dream's has none"
                )
        return dream_sampler.generate(
            lm,
            prompts,
            gen_length,
            steps,
            block_length,
            temperature,
            seeds,
            algorithm=algorithm or dream_sampler.DEFAULT,
            top_p=top_p,
            top_k=top_k,
            alg_temp=alg_temp,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            labels=labels,
            progress=progress,
            trace=trace,
        )
    if algorithm not in (None, "low_confidence"):
        raise ValueError(f"algorithm {algorithm!r}: LLaDA has one sampler, 'low_confidence'")
    for name, value in (("top_p", top_p), ("top_k", top_k), ("alg_temp", alg_temp)):
        if value is not None:
            raise ValueError(f"{name} {value}: a setting of Dream's sampler; LLaDA's has none")
    return samplers.generate(
        lm,
        prompts,
        gen_length,
        steps,
        block_length,
        temperature,
        seeds,
        forbidden_ids=forbidden_ids,
        unconfident_ids=unconfident_ids,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        labels=labels,
        progress=progress,
        trace=trace,
    )


def is_dream(lm: DiffusionLM) -> bool:
    """Whether a model is Dream's kind."""
    return bool(getattr(lm.config, "model_type", None) == "Dream")
