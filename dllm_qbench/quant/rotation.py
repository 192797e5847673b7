"""Rotations: orthonormal matrices that spread outliers, and their fast transforms.

Legend: n the size of the last dimension, n = 2^k * m. ``hadamard_transform(x)`` equals ``x @
hadamard_matrix(n).T`` without building the matrix.

Sizes without a known Hadamard order (6, 44 * 3, ...) fall back to blocks: the largest power-of-two
divisor of n is transformed block by block (``block_hadamard`` says which block). A size that is
odd stays as it is (blocks of 1).

Sources: QuaRot (Ashkboos et al., arXiv 2404.00456) for randomised Hadamard rotations; DuQuant (Lin
et al., arXiv 2406.01721) for the greedy block rotation (section 3.2) and the zigzag permutation
(section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_qbench.kernels.reference import (
    block_hadamard,
    hadamard_matrix,
    hadamard_transform,
    inverse_hadamard_transform,
)

__all__ = [
    "block_hadamard",
    "greedy_block_rotation",
    "hadamard_matrix",
    "hadamard_transform",
    "inverse_hadamard_transform",
    "random_hadamard",
    "random_orthogonal",
    "random_signs",
    "zigzag_permutation",
]


def random_hadamard(n: int, seed: int) -> Tensor:
    """Return a randomised Hadamard matrix ``[n, n]`` in float64: the columns' signs are drawn from
    ``seed``.
    """
    return hadamard_matrix(n) * random_signs(n, seed)


def random_signs(n: int, seed: int) -> Tensor:
    """Return ``[n]`` of +1 and -1 in float64, drawn from ``seed``."""
    drawn = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))
    return drawn.double() * 2 - 1


def random_orthogonal(n: int, seed: int) -> Tensor:
    """Return an orthogonal ``[n, n]`` in float64, uniform over the group (QR with the signs
    fixed).
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    out: Tensor = q * r.diagonal().sign()
    return out


def zigzag_permutation(magnitudes: Tensor, blocks: int) -> Tensor:
    """Deal channels to blocks back and forth in order of size, so that the blocks' sums come out
    even.

    Args:
        magnitudes: ``[n]``, how large each channel is.
        blocks: how many blocks of n / blocks channels.

    Returns:
        ``[n]`` channel indices: position i of the permuted vector takes channel ``result[i]``.

    Raises:
        ValueError: ``blocks`` does not divide n.
    """
    n = magnitudes.numel()
    if blocks < 1 or n % blocks:
        raise ValueError(f"zigzag_permutation: {blocks} blocks do not divide {n} channels")
    ranked = torch.argsort(magnitudes.flatten(), descending=True, stable=True).reshape(
        n // blocks, blocks
    )
    ranked[1::2] = ranked[1::2].flip(1)
    return ranked.T.reshape(-1)


def greedy_block_rotation(
    activations: Tensor, block_size: int, steps: int, seed: int = 0
) -> Tensor:
    """Rotate the largest channel of a block away, again and again (DuQuant, section 3.2).

    Each step swaps the block's largest channel to the front, multiplies by an orthogonal matrix
    whose first row is constant (so that channel spreads evenly over the block), and swaps back.
    The rotation after the step with the smallest maximum is kept, no rotation included.

    Args:
        activations: ``[N, n]`` calibration inputs.
        block_size: must divide n.
        steps: greedy steps a block.
        seed: of the random orthogonal remainder.

    Returns:
        float64 ``[n / block_size, block_size, block_size]``; a row block x becomes ``x @
        result[b]``.

    Raises:
        ValueError: ``block_size`` does not divide n.
    """
    n = activations.shape[-1]
    if block_size < 1 or n % block_size:
        raise ValueError(
            f"greedy_block_rotation: block size {block_size} does not divide {n} channels"
        )
    x_NbB = activations.reshape(-1, n // block_size, block_size).double()
    spread = _spreading_rotation(block_size, seed)
    made = []
    for block in range(n // block_size):
        x_NB = x_NbB[:, block]
        total = best = torch.eye(block_size, dtype=torch.float64)
        lowest = float(x_NB.abs().max())
        for _ in range(steps):
            # the column that holds the largest value, not the row: swapping by row index is a
            # known bug
            outlier = int(x_NB.abs().amax(dim=0).argmax())
            swap = torch.arange(block_size)
            swap[0], swap[outlier] = outlier, 0
            rotation = spread[swap]
            x_NB, total = x_NB @ rotation, total @ rotation
            largest = float(x_NB.abs().max())
            if largest < lowest:
                lowest, best = largest, total
        made.append(best)
    return torch.stack(made)


def _spreading_rotation(size: int, seed: int) -> Tensor:
    """Return an orthogonal matrix with first row 1/sqrt(size), the rest uniformly random."""
    first = torch.full((size,), size**-0.5, dtype=torch.float64)
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = random_orthogonal(size - 1, seed) if size > 1 else inner[1:, 1:]
    # the Householder reflection that takes e_0 to `first`
    v = first.clone()
    v[0] -= 1
    if float(v @ v) == 0:
        return inner
    mirror = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)
    return inner @ mirror
