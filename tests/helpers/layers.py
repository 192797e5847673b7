"""Single layers with the input statistics that make methods differ."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated_layer(
    rows: int, columns: int, seed: int = 0, massive: tuple[int, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Return a float64 weight ``[rows, columns]`` and ``X^T X`` of strongly correlated inputs.

    ``massive = (channel, factor)`` multiplies one channel on every 50th token only.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -1.5, columns, dtype=torch.float64)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    x = (x * spread) @ mixing
    if massive is not None:
        channel, factor = massive
        x[::50, channel] *= factor
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, x.T @ x
