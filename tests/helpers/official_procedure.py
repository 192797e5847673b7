"""The released evaluations' procedure, said again in our own words: one choice or one prompt at a time.

Sources, read for what is run and in which order (no line is copied):
- LLaDA: ML-GSAI/LLaDA ``eval_llada.py`` and ``generate.py`` at b7e6c356. Each (context, choice) is scored
  alone: 128 masked copies in forward passes of ``batch_size`` rows (the class's default is 32, the
  published commands give 8), equal copies too; each prompt is generated alone. ``is_check_greedy`` is off,
  as in the published commands; on, it would cost one more pass for every target token.
- Dream: HKUNLP/Dream ``eval/eval.py`` at a1b4472a. The same, with 1/t for the weights and the end of text
  behind the target (128 samples, 32 rows in the published commands); one prompt at a time, and a pass
  in every denoising step, whether or not it fills anything.

Two things are ours, so that results can be compared: the masks are those that the suite draws (the
release draws its own, anew for each choice and batch), and blocks for Dream, as the suite's tasks ask for.

Shapes: B copies of one canvas, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dllm_qbench.diffusion.by_model import is_dream
from dllm_qbench.diffusion.dream_likelihood import EPS
from dllm_qbench.diffusion.dream_sampler import transfer_share
from dllm_qbench.diffusion.masking import Mask, draw_masks
from dllm_qbench.diffusion.samplers import transfer_counts
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

BATCH = 32


def log_likelihood(
    lm: DiffusionLM,
    context: Sequence[int],
    target: Sequence[int],
    drawn: Sequence[tuple[Mask, float]],
    batch: int = BATCH,
) -> float:
    """Monte Carlo log p(target | context) in nats; ``batch`` divides the number of drawn samples."""
    whole = [*context, *target, *([lm.eos_id] if is_dream(lm) else [])]
    true_BT = torch.tensor(whole).repeat(batch, 1)
    losses = []
    for start in range(0, len(drawn), batch):
        hidden_BT = torch.zeros_like(true_BT, dtype=torch.bool)
        p_BT = torch.ones(true_BT.shape)
        for row, (mask, p) in enumerate(drawn[start : start + batch]):
            hidden_BT[row, [len(context) + at for at in mask]] = True
            p_BT[row] = p
        logits_BTV = _logits(lm, torch.where(hidden_BT, lm.mask_id, true_BT))
        loss = cross_entropy(logits_BTV[hidden_BT], true_BT[hidden_BT], reduction="none")
        losses.append(float((loss / p_BT[hidden_BT]).sum() / batch))
    return -sum(losses) / len(losses)


def samples_of(lm: DiffusionLM, length: int, samples: int, seed: int) -> list[tuple[Mask, float]]:
    """The suite's masks for a target, one by one, each with what its losses are divided by."""
    draw = dream_samples if is_dream(lm) else llada_samples
    return draw(length, samples, seed)


def llada_samples(length: int, samples: int, seed: int) -> list[tuple[Mask, float]]:
    """The suite's masks one by one, each with the share of the target that it hides."""
    return [(mask, len(mask) / length) for mask in draw_masks(length, samples, seed).elements()]


def dream_samples(length: int, samples: int, seed: int) -> list[tuple[Mask, float]]:
    """The suite's masks one by one, each with its t; those that hide nothing too."""
    rng = random.Random(derive(seed, "Dream masks", length))
    offset = rng.random()
    drawn = []
    for sample in range(samples):
        t = EPS + (1 - EPS) * (sample + offset) / samples
        drawn.append((tuple(at for at in range(length) if rng.random() < t), t))
    return drawn


def generate(
    lm: DiffusionLM, prompt: Sequence[int], gen_length: int, steps: int, block_length: int
) -> list[int]:
    """Continue one prompt greedily; returns the ids, the prompt included."""
    x_1T = torch.tensor([[*prompt, *[lm.mask_id] * gen_length]])
    blocks = gen_length // block_length
    for block in range(blocks):
        start = len(prompt) + block * block_length
        end = start + block_length
        for step in range(steps // blocks):
            masked_1T = x_1T == lm.mask_id
            logits_1TV = _logits(lm, x_1T)
            # Dream takes logarithms, and rounds them away in float32 where the suite does not.
            p_1TV = logits_1TV.softmax(-1) if not is_dream(lm) else logits_1TV.double().softmax(-1)
            token_1T = logits_1TV.argmax(-1)
            if is_dream(lm):
                confidence_1T = (p_1TV * (p_1TV + 1e-10).log()).sum(-1)
                count = int(
                    int(masked_1T[:, start:end].sum()) * transfer_share(step, steps // blocks)
                )
            else:
                confidence_1T = p_1TV.gather(-1, token_1T[..., None])[..., 0]
                count = transfer_counts(block_length, steps // blocks)[step]
            confidence_1T = confidence_1T.masked_fill(~masked_1T, -torch.inf)
            confidence_1T[:, end:] = -torch.inf
            picked_1K = confidence_1T.topk(count, dim=-1).indices
            x_1T.scatter_(1, picked_1K, token_1T.gather(1, picked_1K))
    return [int(token) for token in x_1T[0]]


def _logits(lm: DiffusionLM, ids_BT: Tensor) -> Tensor:
    """``[B, T, V]``; row i scores token i."""
    with torch.inference_mode():
        logits_BTV: Tensor = lm.model(input_ids=ids_BT).logits
    if is_dream(lm):
        logits_BTV = torch.cat((logits_BTV[:, :1], logits_BTV[:, :-1]), dim=1)
    return logits_BTV
