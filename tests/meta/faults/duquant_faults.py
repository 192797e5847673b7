"""Faults of DuQuant's rotations and of its permutation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.layers import BlockRotation, QuantLinear
from dllm_qbench.quant.methods import duquant
from dllm_qbench.quant.rotation import _spreading_rotation
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import replaced, wrapped


def _own(layer: QuantLinear) -> BlockRotation:
    rotation = layer.transform
    assert isinstance(rotation, BlockRotation)
    return rotation


def unpermuted_online(sound: Any, block: nn.Module, name: str, layer: QuantLinear) -> None:
    R = _own(layer)
    layer.transform = BlockRotation(R.first, torch.arange(len(R.order)), R.second)
    sound(block, name, layer)


def second_missing_online(sound: Any, block: nn.Module, name: str, layer: QuantLinear) -> None:
    R = _own(layer)
    layer.transform = BlockRotation(
        R.first, R.order, torch.eye(R.second.shape[1]).expand_as(R.second)
    )
    sound(block, name, layer)


def transposed_online(sound: Any, block: nn.Module, name: str, layer: QuantLinear) -> None:
    R = _own(layer)
    layer.transform = BlockRotation(R.first.mT, R.order, R.second.mT)
    sound(block, name, layer)


def clipped_at_eight_bits(sound: Any, block: nn.Module, name: str, layer: QuantLinear) -> None:
    layer.act_clip = 0.9
    sound(block, name, layer)


def weight_clip_squared(
    sound: Any, weight: Tensor, scheme: Any, symmetric: bool, clip: float
) -> Any:
    return sound(weight, scheme, symmetric, clip * clip)


def swapped_by_row(activations: Tensor, block_size: int, steps: int, seed: int = 0) -> Tensor:
    x_NbB = activations.reshape(-1, activations.shape[-1] // block_size, block_size).double()
    spread = _spreading_rotation(block_size, seed)
    made = []
    for x_NB in x_NbB.unbind(1):
        total = best = torch.eye(block_size, dtype=torch.float64)
        lowest = float(x_NB.abs().max())
        for _ in range(steps):
            outlier = int(x_NB.abs().amax(dim=1).argmax()) % block_size
            swap = torch.arange(block_size)
            swap[0], swap[outlier] = outlier, 0
            x_NB, total = x_NB @ spread[swap], total @ spread[swap]
            if float(x_NB.abs().max()) < lowest:
                lowest, best = float(x_NB.abs().max()), total
        made.append(best)
    return torch.stack(made)


def sorted_into_blocks(magnitudes: Tensor, blocks: int) -> Tensor:
    return torch.argsort(magnitudes, descending=True, stable=True)


def off_orthogonal(sound: Any, *args: Any) -> Tensor:
    found: Tensor = sound(*args)
    return found + 1e-2 * torch.eye(found.shape[1], dtype=found.dtype).roll(1, 0)


def identities(activations: Tensor, block_size: int, steps: int, seed: int = 0) -> Tensor:
    count = activations.shape[-1] // block_size
    return torch.eye(block_size, dtype=torch.float64).repeat(count, 1, 1)


def _fault(name: str, scheme: str, task: str, plant: Any, what: str, **more: Any) -> Fault:
    return Fault(f"duquant-{name}", "harmful", "duquant", scheme, task, plant, what, **more)


FAULTS = (
    _fault(
        "permutation-applied-to-one-side",
        "W8A8",
        "general",
        wrapped(duquant, "put", unpermuted_online),
        "Weights are permuted, their inputs are not.",
    ),
    _fault(
        "second-rotation-missing-online",
        "W4A4",
        "general",
        wrapped(duquant, "put", second_missing_online),
        "Inputs are rotated once and permuted; the weights are rotated twice.",
        model=DREAM,
    ),
    _fault(
        "rotation-transposed-online",
        "W8A8",
        "math",
        wrapped(duquant, "put", transposed_online),
        "Inputs are turned by the blocks' transposes, that is, backwards.",
    ),
    _fault(
        "activations-clipped-at-8-bits",
        "W8A8",
        "math",
        wrapped(duquant, "put", clipped_at_eight_bits),
        "The activation clip of 0.9 acts at 8 bits too, where the recipe turns it off.",
    ),
    _fault(
        "weight-clip-applied-twice",
        "W4A4",
        "math",
        wrapped(duquant, "_round", weight_clip_squared),
        "The weight clip of 0.8 is applied twice.",
    ),
    _fault(
        "outliers-swapped-by-row",
        "W4A4",
        "math",
        replaced((duquant, "greedy_block_rotation"), by=swapped_by_row),
        "The greedy rotation takes the largest token's index for the outlier channel (a known bug).",
    ),
    _fault(
        "largest-channels-in-one-block",
        "W4A4",
        "math",
        replaced((duquant, "zigzag_permutation"), by=sorted_into_blocks),
        "Channels are sorted into blocks instead of dealt out to them.",
        model=DREAM,
    ),
    _fault(
        "rotation-1e-2-off-orthogonal",
        "W8A8",
        "math",
        wrapped(duquant, "greedy_block_rotation", off_orthogonal),
        "Both block rotations are 1e-2 off orthogonal.",
    ),
    _fault(
        "no-rotation-at-all",
        "W4A4",
        "math",
        replaced((duquant, "greedy_block_rotation"), by=identities),
        "The greedy search hands back what it started from: the identity.",
        model=DREAM,
    ),
)
