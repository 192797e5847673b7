"""Faults of the samplers: what is committed, when, and which tokens are allowed.

They change full precision's answers as well as the quantized model's.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.diffusion import dream_sampler, samplers
from dllm_qbench.models.lm import DiffusionLM
from tests.meta.faults.fault import DREAM, of_evaluation
from tests.meta.faults.patches import replaced, wrapped


def denoise(
    confidence: Callable[[Tensor], Tensor] = lambda x: x,
    from_the_end: bool = False,
    committed_stay: bool = True,
) -> Callable[..., Any]:
    """LLaDA's denoising step at temperature 0, with one thing wrong."""

    def step(
        lm: DiffusionLM, x_BT: Tensor, block: slice, logits_BGV: Tensor, count: int, *_: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        token_BG = logits_BGV.argmax(-1)
        found_BG = confidence(logits_BGV.softmax(-1).gather(-1, token_BG[..., None])[..., 0])
        if committed_stay:
            found_BG = found_BG.masked_fill(x_BT[:, block] != lm.mask_id, -torch.inf)
        if from_the_end:
            order = found_BG.flip(-1).sort(dim=-1, descending=True, stable=True).indices
            order = found_BG.shape[-1] - 1 - order
        else:
            order = found_BG.sort(dim=-1, descending=True, stable=True).indices
        picked_BK = order[:, :count].sort(-1).values
        tokens_BK, positions_BK = token_BG.gather(1, picked_BK), picked_BK + block.start
        x_BT.scatter_(1, positions_BK, tokens_BK)
        return positions_BK.tolist(), tokens_BK.tolist()

    return step


def one_block(
    sound: Any, lm: Any, prompts: Any, gen_length: int, steps: int, _: int, *a: Any, **k: Any
) -> Any:
    return sound(lm, prompts, gen_length, steps, gen_length, *a, **k)


def at_temperature_1(
    sound: Any,
    lm: Any,
    prompts: Any,
    gen_length: int,
    steps: int,
    block: int,
    _t: float,
    *a: Any,
    **k: Any,
) -> Any:
    return sound(lm, prompts, gen_length, steps, block, 1.0, *a, **k)


def all_at_once(masked: int, steps: int) -> list[int]:
    return [masked] + [0] * (steps - 1)


def no_end_of_text(sound: Any, lm: DiffusionLM, ids_BT: Tensor) -> Tensor:
    found: Tensor = sound(lm, ids_BT).clone()
    found[..., lm.eos_id] = -1e4  # finite, as the samplers want it
    return found


def at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dream_sampler, "DEFAULT", "origin")


def by_highest_entropy(sound: Any, *args: Any) -> Tensor:
    found: Tensor = sound(*args)
    return -found


def all_in_the_first_step(sound: Any, step: int, steps: int) -> Fraction:
    return Fraction(1) if step == 0 else Fraction(sound(step, steps))


FAULTS = (
    of_evaluation(
        "confidence-in-bf16-ties-from-the-end",
        "rtn",
        "W4A4",
        "math",
        replaced((samplers, "_denoise"), by=denoise(lambda x: x.bfloat16(), from_the_end=True)),
        "Confidence is taken in bf16, where ties are routine, and the last of equals is committed.",
    ),
    of_evaluation(
        "sampler-commits-the-least-confident",
        "rtn",
        "W3A16-g64",
        "math",
        replaced((samplers, "_denoise"), by=denoise(lambda x: -x)),
        "The least confident positions are committed first.",
    ),
    of_evaluation(
        "sampler-writes-over-what-it-committed",
        "quarot",
        "W8A8",
        "code",
        replaced((samplers, "_denoise"), by=denoise(committed_stay=False)),
        "Committed positions take part in the next step, so that masks are left at the end.",
    ),
    of_evaluation(
        "sampler-ignores-blocks",
        "duquant",
        "W4A4",
        "math",
        wrapped(samplers, "generate", one_block),
        "Positions beyond the current block are not excluded: the answer is one block.",
    ),
    of_evaluation(
        "sampler-draws-at-temperature-0",
        "rtn",
        "W4A16-g64",
        "code",
        wrapped(samplers, "generate", at_temperature_1),
        "Gumbel noise is added although temperature 0 was asked.",
    ),
    of_evaluation(
        "sampler-commits-all-at-once",
        "smoothquant",
        "W4A4",
        "math",
        replaced((samplers, "transfer_counts"), by=all_at_once),
        "A block is filled in its first step.",
    ),
    of_evaluation(
        "end-of-text-suppressed",
        "awq",
        "W4A16-g64",
        "math",
        wrapped(samplers, "logits", no_end_of_text),
        "The end of text is suppressed, as for an Instruct model, so that answers never end.",
    ),
    of_evaluation(
        "dream-end-of-text-suppressed",
        "duquant",
        "W8A8",
        "math",
        wrapped(dream_sampler, "logits", no_end_of_text),
        "The end of text is suppressed, as for an Instruct model, so that answers never end.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-positions-at-random",
        "quarot",
        "W4A4",
        "math",
        at_random,
        "Positions are filled at random (algorithm origin) instead of by entropy.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-fills-by-highest-entropy",
        "rtn",
        "W3A16-g64",
        "math",
        wrapped(dream_sampler, "_confidence", by_highest_entropy),
        "Entropy has the wrong sign: the least certain positions are filled first.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-fills-all-at-once",
        "smoothquant",
        "W4A4",
        "math",
        wrapped(dream_sampler, "transfer_share", all_in_the_first_step),
        "The first step of a block fills all of it.",
        model=DREAM,
    ),
)
