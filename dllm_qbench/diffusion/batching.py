"""Forward passes over many canvases, with results that do not depend on how they are batched.

Notable:
- canvases are bucketed by length, never padded with tokens: padding would need an attention mask, and a
  masked softmax rounds differently from an unmasked one;
- every forward pass has a multiple of 8 rows and at least 64 tokens (the last row is repeated). A matrix
  product with fewer rows takes another kernel, whose sums round differently; measured on CPU (MKL), from
  12 tokens on the bits of a row do not depend on the number of rows. This matters far beyond the last
  digit: an activation quantizer turns a last-digit difference into a whole step of its grid;
- so that few rows are repeated, a batch has a multiple of 8 rows where there are as many.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dllm_qbench.models.lm import DiffusionLM, tokens_at_once

_ROWS, _TOKENS = 8, 64
# On a CPU a token costs the embedded models 50 to 60 us in passes of 350 to 720 tokens, and up to 72 in
# passes of 1,000: what a block works on no longer stays in the core's cache (1 MiB on the one measured).
_CPU_TOKENS = 768
_LOGITS_AT_ONCE = (
    2**28
)  # float32 values, 1 GiB: the vocabulary of a real model decides, not its width


def batches(
    lm: DiffusionLM,
    lengths: Sequence[int],
    batch_tokens: int | None = None,
    batch_size: int | None = None,
) -> Iterator[list[int]]:
    """Yield the indices of ``lengths`` in batches of one length each, shortest first.

    Args:
        lm: its vocabulary limits the default batch.
        lengths: tokens of each canvas.
        batch_tokens: tokens in one forward pass; by default as many as ``tokens_at_once`` says, at most
            768 on a CPU, and less where the logits would not fit.
        batch_size: canvases in one forward pass; overrides ``batch_tokens``.

    Raises:
        ValueError: a batch limit below 1, or a canvas that is empty or longer than the model's positions.
    """
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    longest = int(lm.config.max_position_embeddings)
    if batch_tokens is None:
        batch_tokens = min(
            tokens_at_once(lm.device), max(1, _LOGITS_AT_ONCE // int(lm.config.vocab_size))
        )
        if lm.device.type == "cpu":
            batch_tokens = min(batch_tokens, _CPU_TOKENS)
    buckets: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        if not 1 <= length <= longest:
            raise ValueError(f"canvas {index} has {length} tokens; {lm.name} takes 1..{longest}")
        buckets[length].append(index)
    for length, members in sorted(buckets.items()):
        rows = batch_size or max(1, batch_tokens // length)
        if batch_size is None and rows > _ROWS:
            rows -= rows % _ROWS
        for start in range(0, len(members), rows):
            yield members[start : start + rows]


def logits(lm: DiffusionLM, ids_BT: Tensor) -> Tensor:
    """Return float32 logits ``[B, T, V]`` whose bits for a row do not depend on the other rows."""
    rows, length = ids_BT.shape
    wanted = max(rows, -(-_TOKENS // length))
    wanted = -(-wanted // _ROWS) * _ROWS
    if wanted > rows:
        ids_BT = torch.cat((ids_BT, ids_BT[-1:].expand(wanted - rows, length)))
    return lm.logits(ids_BT)[:rows]
