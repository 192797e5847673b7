"""What a checkpoint of a quantized model holds of a layer and of its rotations.

Each is a JSON record and some tensors. A rotation that several layers share is stored once, and shared
again when it is read: layers that read one input in one way turn it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.errors import CheckpointError, SchemeError
from dllm_qbench.quant.layers import BlockRotation, HadamardRotation, QuantLinear, Rotation
from dllm_qbench.quant.packed import PackedLinear, packed_weight
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.quant.stored_grid import StoredGrid

_SIDES = ("transform", "input_rotation", "output_rotation")
_SCALES = ("bias", "input_scale", "output_scale")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
           "float64": torch.float64}  # fmt: skip


class Rotations:
    """A model's rotations by number.

    Attributes:
        records: what JSON says of each.
        tensors: what they are made of, by name.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self._known: list[Rotation] = []

    def number(self, rotation: Rotation) -> int:
        """Return a rotation's number; a new one is stored."""
        for number, known in enumerate(self._known):
            if known is rotation:
                return number
        number = len(self._known)
        record: dict[str, Any]
        if type(rotation) is HadamardRotation:
            record = {"kind": "hadamard", "width": rotation.width}
        elif type(rotation) is BlockRotation:
            record = {"kind": "block"}
        else:
            raise CheckpointError(
                f"{type(rotation).__name__} is a rotation that checkpoints do not know; known are"
                " HadamardRotation and BlockRotation"
            )
        parts = dict(rotation.named_buffers())
        record["tensors"] = sorted(parts)
        # Copies: two rotations may look at one memory, and a file holds each tensor for itself.
        self.tensors |= {f"rotations.{number}.{part}": x.clone() for part, x in parts.items()}
        self.records.append(record)
        self._known.append(rotation)
        return number

    def get(self, number: object, where: str) -> Rotation:
        """Return the rotation of a number; ``where`` is for errors."""
        if not isinstance(number, int) or not 0 <= number < len(self._known):
            raise CheckpointError(
                f"{where}: rotation {number!r}; there are {len(self._known)}, from 0 on"
            )
        return self._known[number]

    @classmethod
    def read(cls, records: Sequence[Any], tensors: Mapping[str, Tensor], where: str) -> Rotations:
        """Make all rotations again."""
        made = cls()
        for number, record in enumerate(records):
            place = f"{where}: field 'rotations', number {number}"
            if not isinstance(record, dict):
                raise CheckpointError(f"{place}: expected an object, found {record!r:.60}")

            def part(name: str, number: int = number, place: str = place) -> Tensor:
                key = f"rotations.{number}.{name}"
                if key not in tensors:
                    raise CheckpointError(f"{place}: no file holds {key}")
                return tensors[key]

            made._known.append(_rotation(record, part, place))
        return made


def layer_record(
    layer: QuantLinear, name: str, rotations: Rotations
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what JSON says of a layer, and its tensors by name.

    Raises:
        CheckpointError: its weight cannot be given back bit by bit.
    """
    record: dict[str, Any] = {
        "scheme": str(layer.scheme),
        "method": layer.method,
        "symmetric": layer.symmetric,
        "dtype": str(layer.dtype).removeprefix("torch."),
        "inputs": layer.in_features,
        "act_clip": layer.act_clip,
    }
    tensors: dict[str, Tensor] = {}
    if layer.scale is None or layer.zero is None:
        tensors["weight"] = layer.weight
        record["weight_bytes"] = layer.weight.numel() * layer.weight.element_size()
    else:
        stored = layer.stored()
        tensors |= {"codes": stored.codes, "scale": stored.scale}
        if stored.zero is not None:
            tensors["zero"] = stored.zero
        record["weight_bytes"] = stored.bytes
    for part in _SCALES:
        value = getattr(layer, part)
        if value is not None:
            tensors[part] = value
    for side in _SIDES:
        rotation = getattr(layer, side)
        if rotation is not None:
            record[side] = rotations.number(rotation)
    record["tensors"] = sorted(tensors)
    return record, {f"layer:{name}.{part}": tensor for part, tensor in tensors.items()}


def layer_from(
    record: Any,
    name: str,
    tensors: Mapping[str, Tensor],
    rotations: Rotations,
    where: str,
    packed: bool = False,
) -> QuantLinear:
    """Make a layer again from its record and a file's tensors.

    Args:
        record, name, tensors, rotations: what :func:`layer_record` returned, as it was read.
        where: for errors.
        packed: whether to hold codes where there are any.
    """
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: expected an object, found {record!r:.60}")
    parts = {
        part: tensors.get(f"layer:{name}.{part}") for part in _field(record, "tensors", list, where)
    }
    for part, tensor in parts.items():
        if tensor is None:
            raise CheckpointError(f"{where}: the file does not hold its {part}")
    try:
        scheme = Scheme.parse(_field(record, "scheme", str, where))
    except SchemeError as error:
        raise CheckpointError(f"{where}: field 'scheme': {error}") from error
    dtype = _DTYPES.get(_field(record, "dtype", str, where))
    if dtype is None:
        raise CheckpointError(
            f"{where}: field 'dtype' is {record['dtype']!r}; known are {', '.join(_DTYPES)}"
        )
    weight, bias = parts.get("weight"), parts.get("bias")
    method = _field(record, "method", str, where)
    if weight is not None:
        layer = QuantLinear(weight, bias, None, scheme, method)
    else:
        stored = _stored(record, parts, scheme, where)
        try:
            if packed:
                layer = PackedLinear(packed_weight(stored, dtype), bias, scheme, method, dtype)
            else:
                layer = QuantLinear(stored.weight(dtype), bias, stored.grid(), scheme, method)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
    layer.input_scale, layer.output_scale = parts.get("input_scale"), parts.get("output_scale")
    layer.act_clip = float(_field(record, "act_clip", (int, float), where))
    for side in _SIDES:
        if side in record:
            setattr(layer, side, rotations.get(record[side], f"{where}: field {side!r}"))
    return layer


def _stored(
    record: Mapping[str, Any], parts: Mapping[str, Tensor | None], scheme: Scheme, where: str
) -> StoredGrid:
    codes, scale, zero = parts.get("codes"), parts.get("scale"), parts.get("zero")
    symmetric = _field(record, "symmetric", bool, where)
    inputs = _field(record, "inputs", int, where)
    if codes is None or scale is None or (zero is None) != symmetric:
        raise CheckpointError(f"{where}: it needs codes, scale, and zero unless it is symmetric")
    group = min(scheme.group or inputs, inputs)
    shape = [len(codes), -(-inputs // max(1, group))]
    for part, found in (("scale", scale), ("zero", zero)):
        if found is not None and list(found.shape) != shape:
            raise CheckpointError(
                f"{where}: {part} has shape {list(found.shape)}, expected {shape}"
            )
    return StoredGrid(codes, scale, zero, scheme.weight_bits, symmetric, group, inputs)


def _rotation(record: Mapping[str, Any], part: Callable[[str], Tensor], where: str) -> Rotation:
    kind, names = record.get("kind"), _field(record, "tensors", list, where)
    if kind == "hadamard":
        signs = part("signs") if "signs" in names else None
        return HadamardRotation(_field(record, "width", int, where), signs)
    if kind == "block":
        return BlockRotation(part("first"), part("order"), part("second"))
    raise CheckpointError(f"{where}: field 'kind' is {kind!r}; known are 'hadamard' and 'block'")


def _field(record: Mapping[str, Any], field: str, kind: Any, where: str) -> Any:
    value = record.get(field)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"{where}: field {field!r} is missing or unusable: {value!r:.60}")
    return value
