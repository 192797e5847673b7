"""Monte Carlo log-likelihood of a target under a masked diffusion model.

Source: Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992), eq. 6 and algorithm 3: hide k of
the L target tokens, k uniform on 1..L; log p is estimated by the mean of  L / k * sum log p(hidden token).

Notable:
- the masks depend on the item's seed alone, so full precision and quantized see the same ones, and so do
  all choices of equal length of one item (common random numbers);
- equal canvases are run once. Choices that differ in one word share every canvas that hides the word.

Shapes: B canvases, T tokens, V vocabulary, M hidden tokens of a batch, N scored tokens of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm_qbench.diffusion.batching import batches, logits
from dllm_qbench.diffusion.masking import Mask, draw_masks
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.models.lm import DiffusionLM

Request = tuple[Sequence[int], Sequence[int], int]


@dataclass(frozen=True)
class Weighted:
    """A request's canvases: what it adds up, weight by weight.

    Attributes:
        context, target: token ids; the target is what is hidden and scored.
        after: token ids behind the target, never hidden.
        masks: hidden positions within the target -> weight of the sum of their log p.
    """

    context: Sequence[int]
    target: Sequence[int]
    after: Sequence[int]
    masks: dict[Mask, float]


@dataclass
class _Canvas:
    """A canvas to run, and every (request, term, true tokens) that is read off it."""

    ids: tuple[int, ...]
    hidden: tuple[int, ...]
    readers: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)


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
    """Estimate log p(target | context) in nats for each request.

    The result of a request depends on nothing but the model, the request and ``samples``.

    Args:
        lm: the model.
        requests: (context ids, target ids, seed); the seed draws the masks.
        samples: masks per request; one is exact for a single-token target, 9 for three tokens.
        batch_tokens: tokens in one forward pass.
        batch_size: canvases in one forward pass; overrides ``batch_tokens``.
        labels: what each request is called in an error.
        progress: called with (canvases done, canvases in all) after each forward pass.

    Raises:
        NonFiniteError: the model gave a NaN or an infinity; names the request.
        ValueError: an empty target, no samples, or a canvas longer than the model's positions.
    """
    weighted = []
    drawn: dict[tuple[int, int], dict[Mask, float]] = {}  # choices of one item share theirs
    for index, (context, target, seed) in enumerate(requests):
        require_target(target, labels, index)
        key = len(target), seed
        if key not in drawn:
            drawn[key] = {
                mask: repeats / samples * len(target) / len(mask)
                for mask, repeats in draw_masks(len(target), samples, seed).items()
            }
        weighted.append(Weighted(context, target, (), drawn[key]))
    return weighted_sums(lm, weighted, batch_tokens, batch_size, labels, progress)


def weighted_sums(
    lm: DiffusionLM,
    requests: Sequence[Weighted],
    batch_tokens: int | None,
    batch_size: int | None,
    labels: Sequence[str] | None,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    """Return, for each request, the weighted sum over its masks of sum log p(hidden token)."""
    canvases = _plan(lm, requests)
    terms = [[math.nan] * len(request.masks) for request in requests]
    done = 0
    for members in batches(lm, [len(canvas.ids) for canvas in canvases], batch_tokens, batch_size):
        batch = [canvases[row] for row in members]
        for (index, slot), value in _read(lm, batch).items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{_label(labels, index)}: log p of the hidden tokens is {value};"
                    " the model's logits hold a NaN or an infinity"
                )
            terms[index][slot] = value
        done += len(members)
        if progress is not None:
            progress(done, len(canvases))
    return [
        math.fsum(weight * term for weight, term in zip(request.masks.values(), found, strict=True))
        for request, found in zip(requests, terms, strict=True)
    ]


def require_target(target: Sequence[int], labels: Sequence[str] | None, index: int) -> None:
    """Raise a ValueError where there is nothing to score."""
    if not len(target):
        raise ValueError(f"{_label(labels, index)}: the target is empty; there is nothing to score")


def _plan(lm: DiffusionLM, requests: Sequence[Weighted]) -> list[_Canvas]:
    """Return the distinct canvases of all requests."""
    canvases: dict[tuple[tuple[int, ...], tuple[int, ...]], _Canvas] = {}
    for index, request in enumerate(requests):
        for slot, mask in enumerate(request.masks):
            ids = [*request.context, *request.target, *request.after]
            hidden = tuple(len(request.context) + position for position in mask)
            for position in hidden:
                ids[position] = lm.mask_id
            key = (tuple(ids), hidden)
            canvas = canvases.setdefault(key, _Canvas(*key))
            canvas.readers.append((index, slot, tuple(request.target[at] for at in mask)))
    return list(canvases.values())


def _read(lm: DiffusionLM, batch: Sequence[_Canvas]) -> dict[tuple[int, int], float]:
    """Run canvases of one length; return sum log p(true token) over the hidden ones for each reader."""
    ids_BT = torch.tensor([canvas.ids for canvas in batch], device=lm.device)
    where = [(b, position) for b, canvas in enumerate(batch) for position in canvas.hidden]
    b_M, t_M = torch.tensor(where, device=lm.device).T
    log_probs_MV = torch.log_softmax(logits(lm, ids_BT)[b_M, t_M].double(), dim=-1)
    picks: list[tuple[int, int]] = []
    first = 0
    for canvas in batch:
        for _, _, tokens in canvas.readers:
            picks += [(first + i, token) for i, token in enumerate(tokens)]
        first += len(canvas.hidden)
    m_N, v_N = torch.tensor(picks, device=lm.device).T
    found = iter(_tolist(log_probs_MV[m_N, v_N]))
    return {
        (index, slot): math.fsum(next(found) for _ in tokens)
        for canvas in batch
        for index, slot, tokens in canvas.readers
    }


def _tolist(values_N: Tensor) -> list[float]:
    return [float(value) for value in values_N.tolist()]


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None else f"request {index}"
