"""Faults of what measures, samplers aside: likelihood, masks, logits, texts, scoring.

They change full precision's answers as well as the quantized model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.diffusion import dream_likelihood, likelihood, masking
from dllm_qbench.diffusion.likelihood import Weighted
from dllm_qbench.evaluation.adapter import DiffusionAdapter
from dllm_qbench.models import bidirectional
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.tasks.embedded import scoring
from tests.meta.faults.fault import DREAM, of_evaluation
from tests.meta.faults.patches import replaced, wrapped


def unweighted(sound: Any, lm: DiffusionLM, requests: Sequence[Weighted], *rest: Any) -> Any:
    """Take back L / k, or on average 1 / t: every mask counts as often as it was drawn."""
    plain = []
    for request in requests:
        length = len(request.target)
        masks = {mask: weight * len(mask) / length for mask, weight in request.masks.items()}
        plain.append(replace(request, masks=masks))
    return sound(lm, plain, *rest)


def never_all_masked(sound: Any, length: int, samples: int, offset: float) -> list[int]:
    return [max(1, count - 1) for count in sound(length, samples, offset)]


def first_token_only(length: int, samples: int, seed: int) -> Counter[tuple[int, ...]]:
    return Counter({(0,): samples})


def seed_of_each_choice(sound: Any, self: Any, request: Any, draw: str) -> int:
    return int(sound(self, request, draw)) ^ int(request.idx)


def hidden_behind_end_of_text(sound: Any, lm: DiffusionLM, requests: Any) -> Any:
    return sound(replace(lm, mask_id=lm.eos_id), requests)


def shifted_by(rows: int) -> Callable[..., Tensor]:
    """Read row i - ``rows`` for token i; sound is 0 for LLaDA and 1 for Dream."""

    def logits(self: DiffusionLM, ids: Any, attention_mask: Tensor | None = None) -> Tensor:
        tokens = self.as_ids(ids)
        flat = tokens[None] if tokens.dim() == 1 else tokens
        if attention_mask is not None:
            attention_mask = attention_mask.reshape(flat.shape)
        with torch.inference_mode():
            out: Tensor = self.model(input_ids=flat, attention_mask=attention_mask).logits
            last = out.shape[1] - 1
            out = out[:, (torch.arange(last + 1) - rows).clamp(0, last)]
        out = out if out.dtype == torch.float64 else out.float()
        return out[0] if tokens.dim() == 1 else out

    return logits


def target_left_open(sound: Any, lm: DiffusionLM, requests: Sequence[Weighted], *rest: Any) -> Any:
    return sound(lm, [replace(request, after=()) for request in requests], *rest)


def prompt_beheaded(sound: Any, self: Any, text: str) -> list[int]:
    return list(sound(self, text))[1:]


def everything_kept(self: DiffusionAdapter, ids: Sequence[int], until: Sequence[str]) -> str:
    return str(self.tokenizer.decode(list(ids)))


def lowest_wins(log_likelihoods: Sequence[float]) -> list[int]:
    worst = min(log_likelihoods)
    return [index for index, value in enumerate(log_likelihoods) if value == worst]


def first_output_only(
    doc: Mapping[str, Any], results: Sequence[Sequence[int | None]]
) -> dict[str, float]:
    return {"pass@1": float(list(results[0])[:1] == list(doc["outputs"])[:1])}


def causally(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Any, **settings: Any) -> Tensor:
        past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        both = past if attn_mask is None else attn_mask & past
        return F.scaled_dot_product_attention(q, k, v, attn_mask=both, **settings)

    monkeypatch.setattr(bidirectional, "F", SimpleNamespace(scaled_dot_product_attention=attention))


FAULTS = (
    of_evaluation(
        "likelihood-without-its-weight",
        "gptq",
        "W3A16-g64",
        "general",
        wrapped(likelihood, "weighted_sums", unweighted),
        "The estimate sums log p of hidden tokens without the weight L / k.",
    ),
    of_evaluation(
        "likelihood-never-hides-all",
        "rtn",
        "W3A16-g64",
        "general",
        wrapped(masking, "mask_counts", never_all_masked),
        "The number of hidden tokens is one too small: the fully masked target is never seen.",
    ),
    of_evaluation(
        "likelihood-hides-the-first-token-only",
        "rtn",
        "W4A16-g64",
        "general",
        replaced((likelihood, "draw_masks"), by=first_token_only),
        "The mask that is drawn does not reach the canvas: always the first token is hidden.",
    ),
    of_evaluation(
        "masks-differ-between-choices",
        "awq",
        "W4A16-g64",
        "general",
        wrapped(DiffusionAdapter, "_seed", seed_of_each_choice),
        "Each choice of an item draws its own masks, so that choices are compared on unequal terms.",
    ),
    of_evaluation(
        "likelihood-hides-behind-end-of-text",
        "gptq",
        "W4A16-g64",
        "general",
        wrapped(likelihood, "_plan", hidden_behind_end_of_text),
        "Tokens are hidden behind the end of text instead of the mask: the tokenizer has no mask token.",
    ),
    of_evaluation(
        "llada-logits-shifted",
        "gptq",
        "W4A16-g64",
        "math",
        replaced((DiffusionLM, "logits"), by=shifted_by(1)),
        "LLaDA's logits are shifted by one as Dream's are.",
    ),
    of_evaluation(
        "dream-shift-missing",
        "gptq",
        "W4A16-g64",
        "math",
        replaced((DiffusionLM, "logits"), by=shifted_by(0)),
        "Dream's logits are not shifted.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-shift-off-by-one",
        "rtn",
        "W4A16-g64",
        "general",
        replaced((DiffusionLM, "logits"), by=shifted_by(2)),
        "Dream's logits are shifted by two.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-shift-the-wrong-way",
        "smoothquant",
        "W8A8",
        "code",
        replaced((DiffusionLM, "logits"), by=shifted_by(-1)),
        "Dream's logits are shifted to the left.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-target-left-open",
        "quarot",
        "W8A8",
        "general",
        wrapped(dream_likelihood, "weighted_sums", target_left_open),
        "No end of text follows the target whose likelihood is estimated.",
        model=DREAM,
    ),
    of_evaluation(
        "dream-likelihood-without-its-weight",
        "gptq",
        "W3A16-g64",
        "general",
        wrapped(dream_likelihood, "weighted_sums", unweighted),
        "Masks lose the weight that grows as fewer tokens are hidden.",
        model=DREAM,
    ),
    of_evaluation(
        "prompt-loses-its-first-token",
        "rtn",
        "W8A8",
        "math",
        wrapped(DiffusionAdapter, "_encode", prompt_beheaded),
        "Prompts are cut by one token, the begin of text.",
    ),
    of_evaluation(
        "answer-keeps-what-follows-its-end",
        "smoothquant",
        "W8A8",
        "code",
        replaced((DiffusionAdapter, "_text"), by=everything_kept),
        "Answers are not cut at the end of text.",
    ),
    of_evaluation(
        "scoring-takes-the-least-likely-choice",
        "duquant",
        "W4A4",
        "general",
        replaced((scoring, "winners"), by=lowest_wins),
        "Losses are taken for likelihoods: the least likely choice is scored.",
    ),
    of_evaluation(
        "code-scored-on-one-input",
        "rtn",
        "W4A4",
        "code",
        replaced((scoring, "passes"), by=first_output_only),
        "A program passes if its first output is right.",
        model=DREAM,
    ),
    of_evaluation(
        "attention-runs-causally",
        "awq",
        "W4A16-g64",
        "math",
        causally,
        "The attention of both models gets a causal mask.",
        model=DREAM,
    ),
)
