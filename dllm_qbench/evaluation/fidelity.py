"""Fidelity: how far a quantized model's predictions are from its own full precision's.

Both models see the same canvases (same items, same masks). Everything is read at masked positions,
the only ones that a masked diffusion model predicts:

- SQNR of the logits in dB, by canvas: the mean over its masked tokens of the token's dB;
- KL(full precision || quantized) in nats: quartiles by mask ratio, and by canvas the mean of
  log10(KL + 1e-9). No plain mean: a handful of tokens carry it, and between two sound calibrations it
  moves several-fold;
- NLL of the true token, quantized minus full precision, in nats, by canvas;
- agreement: the share of masked tokens with the same most likely token.

Shapes: B canvases, T tokens, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dllm_qbench.evaluation.probe import Canvases
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layer_error import profile, token_sqnr

BINS: Final = {"low": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "high": (2 / 3, 1.0)}
"""Mask ratios, lower end excluded: late, middle and early denoising steps."""
_LEAST_KL: Final = 1e-9  # nats; what float32 logits can tell apart
_VALUES_AT_ONCE: Final = 2**25  # 0.25 GiB of float64, a few times over


@dataclass(frozen=True)
class Measured:
    """What one pass over the canvases gives; plain values, as records hold them.

    Attributes:
        layer_sqnr, local_sqnr: as in :class:`dllm_qbench.quant.layer_error.Profile`.
        metrics: the rest, by name.
    """

    layer_sqnr: dict[str, float]
    local_sqnr: dict[str, float]
    metrics: dict[str, Any]


def measure(reference: DiffusionLM, quantized: DiffusionLM, given: Canvases) -> Measured:
    """Run both models on the canvases; errors are those of ``profile``.

    Metrics: ``canvases`` and ``masked_tokens`` (counts), ``logit_sqnr`` (dB), ``nll_difference``
    (nats) and ``log10_kl``, each a list with one number a canvas; ``kl`` (for each mask-ratio bin
    ``tokens`` and quartiles ``q25``, ``q50``, ``q75`` in nats); ``agreement`` (0..1).
    """
    masked_BT = (given.ids == reference.mask_id) & given.attention_mask.bool()
    row_M, position_M = masked_BT.nonzero().T
    found = profile(reference, quantized, given.ids, given.attention_mask, masked_BT)
    truth_M = given.truth[row_M, position_M]
    sqnr_M, kl_M, nll_M, same_M = (
        torch.cat(parts)
        for parts in zip(
            *(
                _by_token(found.reference_logits[some], found.quantized_logits[some], truth_M[some])
                for some in torch.arange(len(truth_M)).split(_rows(found.reference_logits))
            ),
            strict=True,
        )
    )
    count = len(given.ids)
    metrics = {
        "canvases": count,
        "masked_tokens": len(row_M),
        "logit_sqnr": _by_canvas(sqnr_M, row_M, count),
        "nll_difference": _by_canvas(nll_M, row_M, count),
        "log10_kl": _by_canvas((kl_M + _LEAST_KL).log10(), row_M, count),
        "kl": _by_mask_ratio(kl_M, given.mask_ratio[row_M]),
        "agreement": float(same_M.double().mean()),
    }
    return Measured(found.layer_sqnr, found.local_sqnr, metrics)


def _rows(logits_MV: Tensor) -> int:
    """Return how many tokens' probabilities are held at a time: a real vocabulary is large."""
    return max(1, _VALUES_AT_ONCE // logits_MV.shape[1])


def _by_token(full_MV: Tensor, quantized_MV: Tensor, truth_M: Tensor) -> tuple[Tensor, ...]:
    """Return, for each masked token: SQNR, KL, the difference in NLL, whether both choose the same."""
    full_MV, quantized_MV = full_MV.double(), quantized_MV.double()
    full_log_MV, quantized_log_MV = full_MV.log_softmax(-1), quantized_MV.log_softmax(-1)
    return (
        token_sqnr(full_MV, quantized_MV),
        (full_log_MV.exp() * (full_log_MV - quantized_log_MV)).sum(-1).clamp(min=0.0),
        _at(full_log_MV, truth_M) - _at(quantized_log_MV, truth_M),
        full_MV.argmax(-1) == quantized_MV.argmax(-1),
    )


def _at(log_MV: Tensor, token_M: Tensor) -> Tensor:
    return log_MV.gather(-1, token_M[:, None])[:, 0]


def _by_canvas(value_M: Tensor, row_M: Tensor, count: int) -> list[float]:
    """Return the mean over each canvas's masked tokens, to 6 digits; every canvas has one."""
    total_B = torch.zeros(count, dtype=torch.float64).index_add_(0, row_M, value_M)
    return [round(mean, 6) for mean in (total_B / row_M.bincount(minlength=count)).tolist()]


def _by_mask_ratio(kl_M: Tensor, ratio_M: Tensor) -> dict[str, dict[str, float]]:
    """Return quartiles of KL in each bin that has tokens."""
    table = {}
    for name, (low, high) in BINS.items():
        inside_M = kl_M[(ratio_M > low) & (ratio_M <= high + 1e-6)]
        if len(inside_M):
            quartiles = inside_M.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
            table[name] = {
                "tokens": len(inside_M),
                **{f"q{at}": float(q) for at, q in zip((25, 50, 75), quartiles, strict=True)},
            }
    return table
