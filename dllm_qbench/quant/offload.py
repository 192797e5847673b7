"""A model that lives in one memory and is computed in another, block by block.

An 8B model in half precision is 15 GiB, its quantized copy as much again: both fit into a
workstation's memory, neither leaves room on a 24 GB card for what a method needs. So blocks are lent
to the device one at a time, and what outlives a block (hidden states, above all) stays at home.

Where home and device are the same, nothing here copies or moves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.layers import blocks

# Rows of a large matrix are worked on so many values at a time: 0.5 GiB of float64.
_VALUES_AT_ONCE = 2**26


def home_of(module: nn.Module) -> torch.device:
    """Return where a module's first parameter lives."""
    return next(module.parameters()).device


@contextmanager
def lent(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have ``module`` on ``device`` inside, and back home afterwards with all that was put into it."""
    home = home_of(module)
    if device is None or device == home:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def visited(model: nn.Module, device: torch.device | None) -> Iterator[tuple[int, Any]]:
    """Yield every block and its number, first to last, each lent to ``device`` for its turn."""
    for index, block in enumerate(blocks(model)):
        with lent(block, device):
            yield index, block


def change_rows(
    x_RD: Tensor, change: Callable[[Tensor], Tensor], device: torch.device | None
) -> None:
    """Replace each row of a matrix by what ``change`` makes of it on ``device``, some at a time."""
    rows = max(1, _VALUES_AT_ONCE // max(1, x_RD.shape[1]))
    for part_RD in x_RD.split(rows):
        part_RD.copy_(change(part_RD if device is None else part_RD.to(device)))
