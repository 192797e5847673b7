"""A stand-in for a model whose logits the test writes down, so that trajectories can be worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

MASK = 0


class Scripted:
    """Has what likelihood and samplers use of a ``DiffusionLM``; counts its forward passes.

    Args:
        script: canvas ``[T]`` -> logits ``[T, V]``.
        vocabulary: V.
        longest: positions.
    """

    def __init__(
        self, script: Callable[[Tensor], Tensor], vocabulary: int = 4, longest: int = 64
    ) -> None:
        self.script = script
        self.config = SimpleNamespace(vocab_size=vocabulary, max_position_embeddings=longest)
        self.mask_id = MASK
        self.name = "scripted"
        self.device = torch.device("cpu")
        self.calls = 0

    def logits(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return torch.stack([self.script(row) for row in ids]).float()


def confident(rows: dict[int, tuple[int, float]], length: int, vocabulary: int = 4) -> Tensor:
    """Logits ``[length, vocabulary]``: zeros, but ``rows[position] = (token, logit)``."""
    logits = torch.zeros(length, vocabulary)
    for position, (token, value) in rows.items():
        logits[position, token] = value
    return logits
