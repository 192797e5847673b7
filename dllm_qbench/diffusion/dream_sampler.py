"""Dream's sampler: its four algorithms.

Source: Ye et al., "Dream 7B" (arXiv 2508.15487) and its released ``generation_utils.py``. Time runs over
t = linspace(1, 1e-3, steps + 1); in the step from t to s a share 1 - s / t of the masks is filled, in the
last step all of them. What is filled:

    origin         each masked position with that probability
    maskgit_plus   the positions whose chosen token has the highest probability
    topk_margin    those with the largest gap between the two highest probabilities
    entropy        those with the lowest entropy

Notable:
- probabilities are float64, after temperature, top_p and top_k, in this order; confidence too is taken
  after them. Of equal confidences the lowest position wins, of equal logits the lowest token; tokens as
  likely as the k-th stay with top_k;
- how many are filled, floor(masks * (1 - s / t)), is exact here. In the released code's float32 a whole
  number may come out one smaller. Since 1e-3 > 0 the first steps fill fewer than their share (with as
  many steps as masks the first fills none), and the last step fills what is left;
- the number is a row's own (the release averages over its batch), and all noise is drawn by seed, step and
  position: a row does not depend on its batch, and full precision and quantized get the same noise;
- alg_temp draws positions without replacement in proportion to softmax(confidence / alg_temp), by adding
  Gumbel noise and taking the largest (Kool et al., arXiv 1903.06059), and tokens are drawn likewise;
- blocks are an addition: with block_length = gen_length this is the released sampler; with less, each
  block is filled by a schedule of its own, left to right. A [MASK] in the prompt is context and is not
  filled;
- a position whose token is [MASK] itself stays open, as in the released code, even at the end.

Shapes: B canvases, T tokens, M open positions of a row's block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from dllm_qbench.diffusion.batching import batches, logits
from dllm_qbench.diffusion.samplers import Commit, non_finite, steps_per_block
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
DEFAULT = "entropy"  # the one that the released model's own examples use
_EPS = Fraction(1, 1000)
_LOG_FLOOR = 1e-10  # keeps p log p finite, as in the released code


def transfer_share(step: int, steps: int) -> Fraction:
    """Return which share of the masks step 0, 1, ... fills: 1 - s / t, and 1 in the last one.

    >>> transfer_share(0, 2), transfer_share(1, 2)
    (Fraction(999, 2000), Fraction(1, 1))
    """
    if step == steps - 1:
        return Fraction(1)
    t, s = (1 - (1 - _EPS) * Fraction(i, steps) for i in (step, step + 1))
    return 1 - s / t


@dataclass(frozen=True)
class _Settings:
    algorithm: str
    temperature: float
    top_p: float | None
    top_k: int | None
    alg_temp: float | None


def generate(
    lm: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    gen_length: int,
    steps: int,
    block_length: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    *,
    algorithm: str = DEFAULT,
    top_p: float | None = None,
    top_k: int | None = None,
    alg_temp: float | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    labels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    trace: list[list[Commit]] | None = None,
) -> list[list[int]]:
    """Continue each prompt by ``gen_length`` tokens; returns the ids, prompts included.

    A row depends on nothing but the model, its prompt, its seed and the sampler's settings.

    Args:
        lm: the model.
        prompts: token ids, of any lengths, at least one token each.
        gen_length: tokens to generate.
        steps: denoising steps in all, divided evenly over the blocks.
        block_length: divides ``gen_length``; ``None`` is one block.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        seeds: of all noise, one for each prompt; by default 0, 1, 2, ...
        algorithm: one of :data:`ALGORITHMS`.
        top_p: keep the most likely tokens up to the one that brings their sum above it; 1 keeps all.
        top_k: keep the k most likely tokens.
        alg_temp: 0 or ``None`` fills the most confident positions; above, positions are drawn.
        batch_tokens: tokens in one forward pass.
        batch_size: canvases in one forward pass; overrides ``batch_tokens``.
        labels: what each prompt is called in an error.
        progress: called with (prompts done, prompts in all) after each batch.
        trace: a list that receives, for each prompt, its commits in order.

    Raises:
        NonFiniteError: the model gave a NaN or an infinity; names the prompt.
        ValueError: an unknown algorithm, a setting outside its range, an empty prompt, lengths or steps
            that do not divide, a number of seeds that is not that of the prompts, or a canvas longer
            than the model's positions.
    """
    block_length = gen_length if block_length is None else block_length
    per_block = steps_per_block(gen_length, steps, block_length, temperature)
    settings = _Settings(algorithm, temperature, top_p, top_k, alg_temp)
    _check(settings)
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"seeds: one for each of {len(prompts)} prompts, found {len(seeds)}")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            name = labels[row] if labels is not None else f"prompt {row}"
            raise ValueError(
                f"{name}: empty; Dream cannot fill token 0 of a canvas, so start the prompt with a real"
                " token, such as the begin-of-text one"
            )
    commits: list[list[Commit]] = [[] for _ in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    done = 0
    for members in batches(lm, [len(p) + gen_length for p in prompts], batch_tokens, batch_size):
        length = len(prompts[members[0]])
        canvas = [[*prompts[row], *[lm.mask_id] * gen_length] for row in members]
        x_BT = torch.tensor(canvas, device=lm.device)
        for step in range(steps):
            block, within = divmod(step, per_block)
            start = length + block * block_length
            share = transfer_share(within, per_block)
            candidates: dict[int, tuple[Tensor, int]] = {}
            for b, row in enumerate(members):
                open_M = (x_BT[b, start : start + block_length] == lm.mask_id).nonzero()[:, 0].cpu()
                open_M += start
                chosen_M, count = _how_many(open_M, share, seeds[row], step, settings)
                if count:
                    candidates[b] = chosen_M, count
            if not candidates:
                continue
            scores_BTV = logits(lm, x_BT[list(candidates)])
            for (b, (open_M, count)), scores_TV in zip(candidates.items(), scores_BTV, strict=True):
                row = members[b]
                scores_MV = scores_TV[open_M.to(scores_TV.device)].double()
                if not bool(scores_MV.isfinite().all()):
                    raise non_finite(row, labels, step)
                picked_K, tokens_K = _fill(scores_MV, open_M, count, seeds[row], step, settings)
                x_BT[b, picked_K.to(x_BT.device)] = tokens_K
                commits[row].append(
                    Commit(step, tuple(picked_K.tolist()), tuple(tokens_K.tolist()))
                )
        for row, ids in zip(members, x_BT.tolist(), strict=True):
            rows[row] = ids
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    if trace is not None:
        trace.extend(commits)
    return rows


def _how_many(
    open_M: Tensor, share: Fraction, seed: int, step: int, settings: _Settings
) -> tuple[Tensor, int]:
    """Return the positions to choose from, and how many of them this step fills."""
    if settings.algorithm != "origin":
        return open_M, int(len(open_M) * share)
    uniform_M = [_uniform(seed, "origin", step, at) for at in open_M.tolist()]
    drawn_M = open_M[torch.tensor([u < share for u in uniform_M], dtype=torch.bool)]
    return drawn_M, len(drawn_M)


def _fill(
    scores_MV: Tensor, open_M: Tensor, count: int, seed: int, step: int, settings: _Settings
) -> tuple[Tensor, Tensor]:
    """Return ``count`` of the open positions, ascending, and their tokens."""
    p_MV = probabilities(scores_MV, settings.temperature, settings.top_p, settings.top_k)
    noisy_MV = p_MV
    if settings.temperature:
        gumbel_MV = torch.stack(
            [_gumbel(p_MV.shape[1], seed, "token", step, at) for at in open_M.tolist()]
        )
        noisy_MV = p_MV.log() + gumbel_MV.to(p_MV.device)
    token_M = noisy_MV.argmax(-1)  # the first of equal maxima
    if settings.algorithm == "origin":
        return open_M, token_M
    confidence_M = _confidence(p_MV, token_M, settings.algorithm).cpu()
    if settings.alg_temp:
        noise_M = torch.cat([_gumbel(1, seed, "position", step, at) for at in open_M.tolist()])
        confidence_M = confidence_M / settings.alg_temp + noise_M
    order_M = confidence_M.sort(descending=True, stable=True).indices
    picked_K = order_M[:count].sort().values
    return open_M[picked_K], token_M[picked_K.to(token_M.device)]


def probabilities(
    scores_MV: Tensor, temperature: float, top_p: float | None, top_k: int | None
) -> Tensor:
    """Return softmax of logits ``[M, V]`` after temperature (0: none), top_p and top_k."""
    if temperature:
        scores_MV = scores_MV / temperature
    if top_p is not None and top_p < 1:
        sorted_MV, order_MV = scores_MV.sort(dim=-1, descending=True, stable=True)
        p_MV = sorted_MV.softmax(-1)
        # The token that crosses top_p stays: what came before it had not reached beyond it yet.
        dropped_MV = (p_MV.cumsum(-1) > top_p).roll(1, -1)
        dropped_MV[:, 0] = False
        scores_MV = scores_MV.masked_fill(
            torch.zeros_like(dropped_MV).scatter_(-1, order_MV, dropped_MV), -torch.inf
        )
    if top_k is not None:
        kth_M1 = scores_MV.topk(min(top_k, scores_MV.shape[-1]), dim=-1).values[:, -1:]
        scores_MV = scores_MV.masked_fill(scores_MV < kth_M1, -torch.inf)
    return scores_MV.softmax(-1)


def _confidence(p_MV: Tensor, token_M: Tensor, algorithm: str) -> Tensor:
    if algorithm == "maskgit_plus":
        return p_MV.gather(-1, token_M[:, None])[:, 0]
    if algorithm == "topk_margin":
        best_M2 = p_MV.topk(2, dim=-1).values
        return best_M2[:, 0] - best_M2[:, 1]
    return (p_MV * (p_MV + _LOG_FLOOR).log()).sum(-1)


def _generator(seed: int, *parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "Dream", *parts))


def _uniform(seed: int, *parts: str | int) -> float:
    return float(torch.rand((), dtype=torch.float64, generator=_generator(seed, *parts)))


def _gumbel(size: int, seed: int, *parts: str | int) -> Tensor:
    uniform = torch.rand(size, dtype=torch.float64, generator=_generator(seed, *parts))
    return -torch.log(-torch.log(uniform))


def _check(settings: _Settings) -> None:
    if settings.algorithm not in ALGORITHMS:
        raise ValueError(
            f"algorithm {settings.algorithm!r}: Dream's samplers are {', '.join(ALGORITHMS)}"
        )
    if settings.top_p is not None and not 0 < settings.top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and up to 1, found {settings.top_p}")
    if settings.top_k is not None and settings.top_k < 1:
        raise ValueError(f"top_k must be at least 1, found {settings.top_k}")
    if settings.alg_temp is not None and not settings.alg_temp >= 0:
        raise ValueError(f"alg_temp must be 0 or more, found {settings.alg_temp}")
