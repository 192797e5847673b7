"""GPTQ checkpoints: ``qweight``, ``qzeros``, ``scales`` and ``g_idx``, as AutoGPTQ and GPTQModel write.

Notable:
- a word holds codes of neighbouring inputs (``qweight``) or neighbouring outputs (``qzeros``); 3-bit
  codes run on from word to word;
- version 1 (``checkpoint_format`` ``gptq``, or none given) stores zero points less one, wrapped around;
  ``gptq_v2`` stores them as they are. Read with the wrong one, every weight is a step off;
- ``g_idx`` gives each input's group; with act-order these are no runs of inputs.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323); the format is AutoGPTQ's.
Shapes: O outputs, I inputs, G groups, b bits: qweight ``[I b / 32, O]``, qzeros ``[G, O b / 32]``,
scales ``[G, O]``, g_idx ``[I]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dllm_qbench.checkpoints.codes import Published
from dllm_qbench.checkpoints.files import TensorFiles
from dllm_qbench.checkpoints.stated import Stated
from dllm_qbench.checkpoints.words import unpack_words, words_for
from dllm_qbench.errors import CheckpointError

MARK = "qweight"
BITS = (2, 3, 4, 8)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_FORMATS = ("gptq", "gptq_v2")


def symmetric(stated: Stated) -> bool:
    """Return whether the checkpoint says that its grids are symmetric."""
    return bool(stated.get("sym", bool, False))


def layers(
    stated: Stated, files: TensorFiles, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Published]]:
    """Yield every quantized layer's name and what the files say of its weight.

    Args:
        stated: the configuration.
        files: the tensors.
        shapes: (outputs, inputs) of every linear of the model, by name.

    Raises:
        CheckpointError: what is not supported, missing or of the wrong shape; names file and field or
            tensor.
    """
    stated.refuse("is_marlin_format", "weights in Marlin's layout are not read: convert to gptq")
    kind = "checkpoint_format" if "checkpoint_format" in stated.raw else "format"
    version = stated.get(kind, str, "gptq")
    if version not in _FORMATS:
        raise CheckpointError(
            f"{stated.at(kind)} is {version!r}; read are {' and '.join(map(repr, _FORMATS))}"
        )
    less_one = version == "gptq"
    overrides = stated.inside("dynamic")
    for name, shape in shapes.items():
        if not files.has(name, MARK):
            continue
        own = _of_layer(stated, overrides, name, files.spelled[name])
        bits = own.get("bits", int)
        if bits not in BITS:
            raise CheckpointError(f"{own.at('bits')} is {bits}; expected one of {BITS}")
        group = own.get("group_size", int, -1)
        if group != -1 and group < 1:
            raise CheckpointError(f"{own.at('group_size')} is {group}; expected -1 or 1 and more")
        yield name, _layer(own, files, name, shape, bits, None if group == -1 else group, less_one)


def _layer(
    own: Stated,
    files: TensorFiles,
    name: str,
    shape: tuple[int, int],
    bits: int,
    group: int | None,
    less_one: bool,
) -> Published:
    O, I = shape  # noqa: E741 (the legend's names)
    count = 1 if group is None else -(-I // group)
    qweight = files.get(name, MARK, (words_for(I, bits), O), (torch.int32,))
    qzeros = files.get(name, "qzeros", (count, words_for(O, bits)), (torch.int32,))
    scales = files.get(name, "scales", (count, O), FLOATS)
    groups = None
    if files.has(name, "g_idx"):
        groups = files.get(name, "g_idx", (I,), (torch.int32, torch.int64))
        if int(groups.min()) < 0 or int(groups.max()) >= count:
            raise CheckpointError(
                f"{files.place(name, 'g_idx')} names groups {int(groups.min())}..{int(groups.max())};"
                f" there are {count}"
            )
    elif own.get("desc_act", bool, False):
        raise CheckpointError(
            f"{files.place(name, 'g_idx')} is missing, and {own.at('desc_act')} is true: nothing says"
            " which group an input belongs to"
        )
    codes_OI = unpack_words(qweight.T.contiguous(), bits, I)
    zero_OG = unpack_words(qzeros, bits, O).T.contiguous()
    if less_one:
        zero_OG = (zero_OG + 1) & (2**bits - 1)
    return on_grid(codes_OI, scales.T.contiguous(), zero_OG, bits, group, symmetric(own), groups)


def on_grid(
    codes_OI: Tensor,
    scale_OG: Tensor,
    zero_OG: Tensor,
    bits: int,
    group: int | None,
    declared: bool,
    groups: Tensor | None = None,
) -> Published:
    """Return a weight of codes 0..2^bits - 1; its grid is symmetric where all zero points are the middle.

    A checkpoint that is declared symmetric and is not stays asymmetric, for the grid audit to say so.
    auto-round turns some groups of a symmetric grid around, by a negative scale, to have its one more
    code on the side of the largest weight. With the scale's sign undone their zero point is one less.
    """
    middle, last = 2 ** (bits - 1), 2**bits - 1
    if not (declared and bool((zero_OG == middle).all())):
        return Published(codes_OI, scale_OG, zero_OG, bits, group, groups=groups)
    turned_OG = scale_OG < 0
    if not bool(turned_OG.any()):
        return Published(codes_OI - middle, scale_OG, None, bits, group, groups=groups)
    inputs = codes_OI.shape[1]
    groups_I = torch.arange(inputs) // (group or inputs) if groups is None else groups.long()
    codes_OI = torch.where(turned_OG[:, groups_I], last - codes_OI, codes_OI)
    zero_OG = torch.where(turned_OG, last - zero_OG, zero_OG)
    return Published(codes_OI, scale_OG.abs(), zero_OG, bits, group, groups=groups, turned=True)


def _of_layer(stated: Stated, overrides: Stated | None, name: str, spelled: str) -> Stated:
    """Return what is stated of one layer: GPTQModel's ``dynamic`` rules come first."""
    for rule in overrides.raw if overrides is not None else ():
        pattern = rule[2:] if rule.startswith(("+:", "-:")) else rule
        try:
            hit = any(re.match(pattern, known) for known in (name, spelled))
        except re.error as error:
            raise CheckpointError(
                f"{stated.at('dynamic')}: {rule!r} is no pattern ({error})"
            ) from error
        if not hit:
            continue
        if rule.startswith("-:"):
            raise CheckpointError(
                f"{stated.at('dynamic')}: {rule!r} leaves {spelled} at 16 bits, and the files hold it"
                " quantized"
            )
        assert overrides is not None
        given = overrides.inside(rule)
        return Stated({**stated.raw, **(given.raw if given else {})}, stated.where)
    return stated
