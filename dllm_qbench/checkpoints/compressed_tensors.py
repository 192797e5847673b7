"""Integer checkpoints of compressed-tensors, the format of llm-compressor and vLLM.

=================  =================================================================================
pack-quantized     ``weight_packed`` (codes of b bits in int32 words), ``weight_scale``,
                   ``weight_shape``, ``weight_zero_point`` where asymmetric
int-quantized,     ``weight`` (int8), ``weight_scale``, ``weight_zero_point`` where asymmetric
naive-quantized
=================  =================================================================================

Notable:
- words are unpacked by the library itself, which is an optional dependency; those of 3, 5, 6 and 7 bits
  here, since the library packed them otherwise before version 0.18 (no code in two words), and each
  version reads its own only. A row's width tells which it is, or, of a few codes, the version;
- its codes are signed, -2^(b-1).., also on asymmetric grids; those are moved to 0.. here;
- layers' schemes are those of the configuration's groups: by class (``Linear``), name or ``re:`` pattern;
- activations may be left alone, or rounded token by token when they arrive; all else is refused by name.

Shapes: O outputs, I inputs, G groups, b bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.checkpoints.codes import Published
from dllm_qbench.checkpoints.files import TensorFiles
from dllm_qbench.checkpoints.stated import Stated
from dllm_qbench.checkpoints.words import WORD, unpack_words, words_for
from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.quant.scheme import ACT_BITS, WEIGHT_BITS

PACKED, NAIVE, INT = "pack-quantized", "naive-quantized", "int-quantized"
FORMATS = (PACKED, INT, NAIVE)
# In quantization_config of what we exported: who wrote it, and how activations are rounded.
OWN_FIELD, OWN_ACTIVATIONS = "dllm_qbench", "absmax / q"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_MIXED = "mixed-precision"
_DENSE_SINCE = (0, 18)
_CODES = (torch.int8,)


@dataclass(frozen=True)
class Group:
    """What the configuration says of the layers that it targets.

    Attributes:
        targets: class names, names or ``re:`` patterns of modules.
        bits, symmetric, act_bits: as in a scheme.
        strategy: ``"tensor"``, ``"channel"`` or ``"group"``.
        group: inputs that share a scale; ``None`` unless the strategy is ``"group"``.
        format: one of ``FORMATS``.
        loose: whether a version wrote it that let no code lie in two words.
        where: for messages.
    """

    targets: tuple[str, ...]
    bits: int
    symmetric: bool
    act_bits: int
    strategy: str
    group: int | None
    format: str
    loose: bool
    where: str


def library() -> Any:
    """Return compressed-tensors' packing module.

    Raises:
        QBenchError: it is not installed, or too old.
    """
    try:
        return import_module("compressed_tensors.compressors.pack_quantized.helpers")
    except ImportError as error:
        raise QBenchError(
            f"packed words are read and written by compressed-tensors 0.15 or newer ({error}); install it"
            " with: pip install 'dllm-qbench[checkpoints]'"
        ) from error


def groups(stated: Stated) -> list[Group]:
    """Return the configuration's groups of layers.

    Raises:
        CheckpointError: something that is not supported; names file and field.
    """
    stated.refuse("kv_cache_scheme", "quantized keys and values are not supported")
    stated.refuse("transform_config", "transforms of activations are not supported")
    sparsity = stated.inside("sparsity_config")
    if sparsity is not None:
        sparsity.refuse("format", "sparse weights are not supported", (None, "dense"))
    whole = stated.get("format", str, _MIXED)
    version = re.match(r"(\d+)\.(\d+)", stated.get("version", str, ""))
    loose = version is not None and tuple(map(int, version.groups())) < _DENSE_SINCE
    found = stated.inside("config_groups")
    if found is None or not found.raw:
        raise CheckpointError(f"{stated.at('config_groups')} is missing or empty")
    made = []
    for name in found.raw:
        group = found.inside(name)
        if group is None:
            raise CheckpointError(f"{found.at(name)} is null; expected a JSON object")
        made.append(_group(group, whole, loose))
    return made


def layers(
    stated: Stated, files: TensorFiles, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Published]]:
    """Yield every quantized layer's name and what the files say of its weight.

    Arguments and errors are those of :func:`dllm_qbench.checkpoints.gptq.layers`.
    """
    known = groups(stated)
    ours = stated.inside(OWN_FIELD)
    own_rounding = ours is not None and ours.get("activations", str, "") == OWN_ACTIVATIONS
    for name, shape in shapes.items():
        if not files.has(name, "weight_packed") and not files.has(name, "weight_scale"):
            continue
        spelled = files.spelled[name]
        group = next((g for g in known if _targets(g, name, spelled)), None)
        if group is None:
            raise CheckpointError(
                f"{files.place(name, 'weight_scale')}: the layer is quantized, and no target of"
                f" {stated.at('config_groups')} is it"
            )
        yield name, replace(_layer(group, files, name, shape), own_rounding=own_rounding)


def _group(stated: Stated, whole: str, loose: bool) -> Group:
    weights = stated.inside("weights")
    if weights is None:
        raise CheckpointError(f"{stated.at('weights')} is missing: weights must be quantized")
    if weights.get("type", str, "int") != "int":
        raise CheckpointError(f"{weights.at('type')} is {weights.raw['type']!r}; read is 'int'")
    bits = weights.get("num_bits", int, 8)
    if bits not in WEIGHT_BITS[:-1]:
        raise CheckpointError(f"{weights.at('num_bits')} is {bits}; expected 2 to 8")
    size = weights.get("group_size", int, required=False)
    strategy = weights.get("strategy", str, required=False)
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy not in ("tensor", "channel", "group"):
        raise CheckpointError(
            f"{weights.at('strategy')} is {strategy!r}; read are 'tensor', 'channel' and 'group'"
        )
    if strategy == "group" and (size is None or size < 1):
        raise CheckpointError(f"{weights.at('group_size')} is {size}; expected 1 or more")
    stated.refuse("output_activations", "quantized outputs are not supported")
    kind = stated.get("format", str, whole)
    if kind not in FORMATS:
        raise CheckpointError(f"{stated.at('format')} is {kind!r}; read are {', '.join(FORMATS)}")
    return Group(
        tuple(map(str, stated.get("targets", list))),
        bits,
        weights.get("symmetric", bool, True),
        _act_bits(stated.inside("input_activations")),
        strategy,
        size if strategy == "group" else None,
        kind,
        loose,
        stated.where.rstrip("'"),
    )


def _act_bits(inputs: Stated | None) -> int:
    """Return bits of activations: 16 where they are left alone."""
    if inputs is None:
        return 16
    if inputs.get("type", str, "int") != "int":
        raise CheckpointError(f"{inputs.at('type')} is {inputs.raw['type']!r}; read is 'int'")
    dynamic = inputs.raw.get("dynamic", False)
    if dynamic is not True:
        raise CheckpointError(
            f"{inputs.at('dynamic')} is {dynamic!r}: scales of activations that were fixed beforehand are"
            " not supported; expected true"
        )
    strategy = inputs.get("strategy", str, "token")
    if strategy != "token":
        raise CheckpointError(f"{inputs.at('strategy')} is {strategy!r}; read is 'token'")
    if not inputs.get("symmetric", bool, True):
        raise CheckpointError(
            f"{inputs.at('symmetric')} is false; activations' grids are symmetric"
        )
    bits = inputs.get("num_bits", int, 8)
    if bits not in ACT_BITS[:-1]:
        raise CheckpointError(f"{inputs.at('num_bits')} is {bits}; expected 4 or 8")
    return int(bits)


def _targets(group: Group, name: str, spelled: str) -> bool:
    for target in group.targets:
        if target == "Linear" or target in (name, spelled):
            return True
        if target.startswith("re:"):
            try:
                if any(re.match(target[3:], known) for known in (name, spelled)):
                    return True
            except re.error as error:
                raise CheckpointError(
                    f"{group.where}.targets': {target!r} is no pattern ({error})"
                ) from error
    return False


def _layer(group: Group, files: TensorFiles, name: str, shape: tuple[int, int]) -> Published:
    O, I = shape  # noqa: E741 (the legend's names)
    count = 1 if group.group is None else -(-I // group.group)
    scale_OG = _scale(group, files, name, O, count)
    if group.format == PACKED:
        packed = files.get(name, "weight_packed", kinds=(torch.int32,))
        stored = files.get(name, "weight_shape", (2,)).tolist()
        if stored != [O, I]:
            raise CheckpointError(
                f"{files.place(name, 'weight_shape')} says {stored}; the config asks for {[O, I]}"
            )
        codes_OI = _unpacked(packed, group, shape, files.place(name, "weight_packed"))
    else:
        codes_OI = files.get(name, "weight", shape, _CODES)
    zero_OG = None if group.symmetric else _zero(group, files, name, O, count)
    groups_I = None
    if files.has(name, "weight_g_idx"):
        groups_I = files.get(name, "weight_g_idx", (I,), (torch.int32, torch.int64))
        if bool((groups_I == -1).all()):  # declared, and never set
            groups_I = None
        elif int(groups_I.min()) < 0 or int(groups_I.max()) >= count:
            raise CheckpointError(
                f"{files.place(name, 'weight_g_idx')} names groups {int(groups_I.min())}.."
                f"{int(groups_I.max())}; there are {count}"
            )
    wide_OI = codes_OI.to(torch.int32)
    _check_codes(wide_OI, group.bits, files.place(name, "weight"))
    if zero_OG is not None:
        middle = 2 ** (group.bits - 1)
        wide_OI, zero_OG = wide_OI + middle, zero_OG + middle
    return Published(wide_OI, scale_OG, zero_OG, group.bits, group.group, group.act_bits, groups_I)


def _scale(group: Group, files: TensorFiles, name: str, outputs: int, count: int) -> Tensor:
    scale = files.get(name, "weight_scale", kinds=FLOATS)
    if group.strategy == "tensor" and scale.numel() == 1:
        return scale.reshape(1, 1).expand(outputs, 1).contiguous()
    if scale.dim() == 1 and count == 1:
        scale = scale[:, None]
    if tuple(scale.shape) != (outputs, count):
        raise CheckpointError(
            f"{files.place(name, 'weight_scale')} has shape {list(scale.shape)}, expected"
            f" {[outputs, count]}: {group.where}.weights' has strategy {group.strategy!r}, groups of"
            f" {group.group or 'all inputs'}"
        )
    return scale


def _zero(group: Group, files: TensorFiles, name: str, outputs: int, count: int) -> Tensor:
    """Return signed zero points ``[O, G]``; packed along outputs, or bytes in older files."""
    part = "weight_zero_point"
    zero = files.get(name, part, kinds=(torch.int8, torch.int32))
    if zero.dtype == torch.int32:
        place = files.place(name, part)
        zero = _unpacked(zero.T.contiguous(), group, (count, outputs), place).T
    elif zero.numel() == 1 and group.strategy == "tensor":
        zero = zero.reshape(1, 1).expand(outputs, 1)
    elif zero.dim() == 1 and count == 1:
        zero = zero[:, None]
    if list(zero.shape) != [outputs, count]:
        raise CheckpointError(
            f"{files.place(name, part)} has shape {list(zero.shape)}, expected {[outputs, count]}"
        )
    wide: Tensor = zero.to(torch.int32)
    _check_codes(wide, group.bits, files.place(name, part))
    return wide


def _unpacked(words_NW: Tensor, group: Group, shape: tuple[int, int], place: str) -> Tensor:
    """Return signed codes ``[N, C]`` of words ``[N, W]``."""
    (N, C), bits = shape, group.bits
    dense, a_word = words_for(C, bits), WORD // bits
    loose = -(-C // a_word)
    if words_NW.dim() != 2 or tuple(words_NW.shape) not in {(N, dense), (N, loose)}:
        raise CheckpointError(
            f"{place} has {list(words_NW.shape)} (rows, words); expected {[N, dense]} for {C} codes of"
            f" {bits} bits a row"
        )
    if WORD % bits == 0:
        unpacked: Tensor = library().unpack_from_int32(words_NW, bits, torch.Size(shape))
        return unpacked
    if words_NW.shape[1] == dense and not (group.loose and dense == loose):
        codes_NC = unpack_words(words_NW, bits, C)
    else:
        codes_NC = unpack_words(words_NW.reshape(-1, 1), bits, a_word).reshape(N, -1)[:, :C]
    signed_NC: Tensor = codes_NC - 2 ** (bits - 1)
    return signed_NC


def _check_codes(codes: Tensor, bits: int, place: str) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
        raise CheckpointError(
            f"{place} holds codes {int(codes.min())}..{int(codes.max())}; {bits} bits go from {low} to"
            f" {high}"
        )
