"""AWQ checkpoints: ``qweight``, ``qzeros`` and ``scales`` in the layout of AutoAWQ's ``gemm`` kernel.

Notable:
- a word holds eight 4-bit codes of neighbouring outputs, not in their order: 0 2 4 6 1 3 5 7;
- zero points are stored as they are;
- scales that AWQ moves into norms and into the layers before are part of the weights: see
  ``checkpoints/folded.py``.

Source: Lin et al., "AWQ" (arXiv 2306.00978); the format is AutoAWQ's.
Shapes: O outputs, I inputs, G groups: qweight ``[I, O / 8]``, qzeros ``[G, O / 8]``, scales ``[G, O]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dllm_qbench.checkpoints.codes import Published
from dllm_qbench.checkpoints.files import TensorFiles
from dllm_qbench.checkpoints.gptq import FLOATS, MARK, on_grid
from dllm_qbench.checkpoints.stated import Stated
from dllm_qbench.checkpoints.words import WORD, unpack_words
from dllm_qbench.errors import CheckpointError

BITS = 4
# The place in a word of each of its eight outputs.
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_A_WORD = WORD // BITS


def symmetric(stated: Stated) -> bool:
    """Return whether the checkpoint says that its grids are symmetric."""
    if "zero_point" in stated.raw:
        return not stated.get("zero_point", bool)
    return bool(stated.get("sym", bool, False))  # auto-round's word for it


def layers(
    stated: Stated, files: TensorFiles, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Published]]:
    """Yield every quantized layer's name and what the files say of its weight.

    Arguments and errors are those of :func:`dllm_qbench.checkpoints.gptq.layers`.
    """
    version = stated.get("version", str, "gemm").lower()
    if version != "gemm":
        raise CheckpointError(
            f"{stated.at('version')} is {version!r}; read is 'gemm' (others lay codes out for their"
            " kernels: convert)"
        )
    bits_field = "bits" if "bits" in stated.raw else "w_bit"
    bits = stated.get(bits_field, int)
    if bits != BITS:
        raise CheckpointError(f"{stated.at(bits_field)} is {bits}; AWQ's gemm layout has {BITS}")
    group_field = "group_size" if "group_size" in stated.raw else "q_group_size"
    group = stated.get(group_field, int, 128)
    if group != -1 and group < 1:
        raise CheckpointError(f"{stated.at(group_field)} is {group}; expected -1 or 1 and more")
    for name, (O, I) in shapes.items():  # noqa: E741 (the legend's names)
        if not files.has(name, MARK):
            continue
        if O % _A_WORD:
            raise CheckpointError(
                f"{files.place(name, MARK)}: {O} outputs are no multiple of {_A_WORD}, a word's codes"
            )
        count = 1 if group == -1 else -(-I // group)
        codes_IO = unpack(files.get(name, MARK, (I, O // _A_WORD), (torch.int32,)), O)
        scales = files.get(name, "scales", (count, O), FLOATS)
        if files.has(name, "qzeros"):
            given = files.get(name, "qzeros", (count, O // _A_WORD), (torch.int32,))
            zero_GO = unpack(given, O)
        elif symmetric(stated):
            zero_GO = torch.full((count, O), 2 ** (BITS - 1), dtype=torch.int32)
        else:
            raise CheckpointError(
                f"{files.place(name, 'qzeros')} is missing, and {stated.at('zero_point')} is true"
            )
        yield (
            name,
            on_grid(
                codes_IO.T.contiguous(),
                scales.T.contiguous(),
                zero_GO.T.contiguous(),
                BITS,
                None if group == -1 else group,
                symmetric(stated),
            ),
        )


def unpack(words_NW: Tensor, outputs: int) -> Tensor:
    """Return the codes ``[N, O]`` of words ``[N, O / 8]``, outputs in their order."""
    codes_NO = unpack_words(words_NW, BITS, outputs)
    in_order: Tensor = codes_NO.unflatten(1, (-1, _A_WORD))[..., list(PLACES)].flatten(1)
    return in_order
