"""LLaDA's semi-autoregressive sampler with low-confidence remasking.

Source: Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992), algorithm 5, and its released
``generate.py``. The canvas is the prompt and ``gen_length`` masks; blocks are filled left to right; in each
step the whole canvas is run and the most confident masked positions of the block are committed.

Notable:
- confidence is the softmax probability, in float64 from float32 logits, of the token to be committed; of
  equal confidences the lowest position wins, of equal logits the lowest token. In bf16 ties are routine
  and their order would be left to the implementation;
- a block's masks are divided evenly over its steps, the remainder goes to the first steps;
- a position whose most likely token is [MASK] itself can be "committed" as such and stays open, as in the
  released code; one may be left at the end. A [MASK] in the prompt is context and is not filled;
- Gumbel noise (temperature > 0) is float64 and drawn per canvas from its own seed, so a row does not
  depend on its batch;
- tokens may be suppressed, as the released code does with the ends of text and of turn: a forbidden one
  has logit -inf and is never chosen; an unconfident one is chosen as ever, but confidence is a softmax
  over the other tokens, in which it has 0, so it is committed after all that are not. (At a temperature
  above 0 the released code leaves its end of text in that softmax; nothing published uses it.)

Shapes: B canvases, T tokens, G block length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_qbench.diffusion.batching import batches, logits
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive


@dataclass(frozen=True)
class Commit:
    """What one denoising step wrote: canvas positions (ascending) and their tokens."""

    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Suppressed:
    forbidden: list[int]
    unconfident: list[int]


def transfer_counts(masked: int, steps: int) -> list[int]:
    """Return how many of ``masked`` positions each step commits; the remainder goes to the first steps.

    >>> transfer_counts(8, 3)
    [3, 3, 2]
    """
    base, remainder = divmod(masked, steps)
    return [base + (step < remainder) for step in range(steps)]


def generate(
    lm: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    gen_length: int,
    steps: int,
    block_length: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    *,
    forbidden_ids: Sequence[int] = (),
    unconfident_ids: Sequence[int] = (),
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
        prompts: token ids, of any lengths.
        gen_length: tokens to generate.
        steps: denoising steps in all, divided evenly over the blocks.
        block_length: divides ``gen_length``.
        temperature: 0 takes the most likely token; above, Gumbel noise is added.
        seeds: of the noise, one for each prompt; by default 0, 1, 2, ...
        forbidden_ids: tokens that are never chosen.
        unconfident_ids: tokens that are committed last.
        batch_tokens: tokens in one forward pass.
        batch_size: canvases in one forward pass; overrides ``batch_tokens``.
        labels: what each prompt is called in an error.
        progress: called with (prompts done, prompts in all) after each batch.
        trace: a list that receives, for each prompt, its commits in order.

    Raises:
        NonFiniteError: the model gave a NaN or an infinity; names the prompt.
        ValueError: lengths or steps that do not divide, a negative temperature, a number of seeds that is
            not that of the prompts, a canvas longer than the model's positions, or suppressed tokens
            outside the vocabulary or that leave none.
    """
    per_block = steps_per_block(gen_length, steps, block_length, temperature)
    suppressed = _suppress(lm, forbidden_ids, unconfident_ids)
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"seeds: one for each of {len(prompts)} prompts, found {len(seeds)}")
    commits: list[list[Commit]] = [[] for _ in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    done = 0
    for members in batches(lm, [len(p) + gen_length for p in prompts], batch_tokens, batch_size):
        length = len(prompts[members[0]])
        canvas = [[*prompts[row], *[lm.mask_id] * gen_length] for row in members]
        x_BT = torch.tensor(canvas, device=lm.device)
        noise = [_generator(seeds[row]) if temperature else None for row in members]
        step = 0
        for start in range(length, length + gen_length, block_length):
            block = slice(start, start + block_length)
            for count in transfer_counts(block_length, per_block):
                if count:
                    scores_BGV = logits(lm, x_BT)[:, block].double()
                    _require_finite(scores_BGV, members, labels, step)
                    chosen = _denoise(
                        lm, x_BT, block, scores_BGV, count, temperature, noise, suppressed
                    )
                    for row, positions, tokens in zip(members, *chosen, strict=True):
                        commits[row].append(Commit(step, tuple(positions), tuple(tokens)))
                step += 1
        for row, ids in zip(members, x_BT.tolist(), strict=True):
            rows[row] = ids
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    if trace is not None:
        trace.extend(commits)
    return rows


def _denoise(
    lm: DiffusionLM,
    x_BT: Tensor,
    block: slice,
    logits_BGV: Tensor,
    count: int,
    temperature: float,
    noise: Sequence[torch.Generator | None],
    suppressed: _Suppressed,
) -> tuple[list[list[int]], list[list[int]]]:
    """Commit the ``count`` most confident masked positions of a block into ``x_BT``, in place; the
    logits are the block's own and may be overwritten.
    """
    logits_BGV[..., suppressed.forbidden] = -torch.inf
    noisy_BGV = logits_BGV
    if temperature:
        shape = logits_BGV.shape[1:]
        uniform_BGV = torch.stack(
            [torch.rand(shape, dtype=torch.float64, generator=g) for g in noise]
        )
        noisy_BGV = logits_BGV - temperature * torch.log(-torch.log(uniform_BGV)).to(
            logits_BGV.device
        )
    token_BG = noisy_BGV.argmax(-1)  # the first of equal maxima
    logits_BGV[..., suppressed.unconfident] = -torch.inf
    confidence_BG = logits_BGV.softmax(-1).gather(-1, token_BG[..., None])[..., 0]
    open_BG = x_BT[:, block] == lm.mask_id
    confidence_BG = confidence_BG.masked_fill(~open_BG, -torch.inf)
    order_BG = confidence_BG.sort(dim=-1, descending=True, stable=True).indices
    # A block opens with as many masks as its steps commit, and a step never commits more than are open.
    picked_BK = order_BG[:, :count].sort(-1).values
    tokens_BK = token_BG.gather(1, picked_BK)
    positions_BK = picked_BK + block.start
    x_BT.scatter_(1, positions_BK, tokens_BK)
    return positions_BK.tolist(), tokens_BK.tolist()


def steps_per_block(gen_length: int, steps: int, block_length: int, temperature: float) -> int:
    """Return the steps of one block, or say which setting does not fit."""
    for name, value in (
        ("gen_length", gen_length),
        ("steps", steps),
        ("block_length", block_length),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if gen_length % block_length:
        raise ValueError(
            f"block_length {block_length} must divide gen_length {gen_length}: blocks are filled one by one"
        )
    blocks = gen_length // block_length
    if steps % blocks:
        raise ValueError(
            f"steps {steps} must be a multiple of the number of blocks, {blocks}"
            f" (gen_length {gen_length} / block_length {block_length})"
        )
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, found {temperature}")
    return steps // blocks


def _suppress(
    lm: DiffusionLM, forbidden_ids: Sequence[int], unconfident_ids: Sequence[int]
) -> _Suppressed:
    """Check which tokens are suppressed, or say what is wrong with them."""
    vocabulary = int(lm.config.vocab_size)
    for name, ids in (("forbidden_ids", forbidden_ids), ("unconfident_ids", unconfident_ids)):
        for token in ids:
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"{name}: token {token} is not in {lm.name}'s vocabulary, 0..{vocabulary - 1}"
                )
    if len({*forbidden_ids, *unconfident_ids}) == vocabulary:
        raise ValueError(
            f"forbidden_ids and unconfident_ids: all {vocabulary} tokens of {lm.name} are suppressed"
        )
    return _Suppressed(list(forbidden_ids), list(unconfident_ids))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "gumbel"))


def _require_finite(
    logits_BGV: Tensor, members: Sequence[int], labels: Sequence[str] | None, step: int
) -> None:
    fine_B = logits_BGV.isfinite().all(-1).all(-1)
    if not bool(fine_B.all()):
        raise non_finite(members[int((~fine_B).nonzero()[0])], labels, step)


def non_finite(prompt: int, labels: Sequence[str] | None, step: int) -> NonFiniteError:
    """Return the error for a prompt whose logits are not numbers."""
    name = labels[prompt] if labels is not None else f"prompt {prompt}"
    return NonFiniteError(f"{name}: the logits hold a NaN or an infinity at denoising step {step}")
