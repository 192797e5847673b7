"""Quantized models that hold codes, and multiply them: what fake quantization stands for, done.

Notable:
- a packed layer holds integer codes, float32 scales and packed zero points, nothing wider. Its weight
  is made when somebody asks (an audit, a symptom), and forgotten again;
- products are those of :mod:`dllm_qbench.kernels`: of the codes of weights and inputs where activations
  are 8 or 4 bits, of unpacked weights and float inputs where they are 16;
- codes are found from the values of the fake layer (``quant/stored_grid.py``), so every method's model
  can be packed. The values that they stand for are the fake layer's: bit by bit where a float32 scale
  gives those back, and within one unit in the last place where only a float64 scale did;
- a packed model has the recipe of the fake one: it is the same quantized model, run otherwise. What it
  computes differs by rounding in the last place (in half precision: products of exact integers where
  fake quantization multiplies values that were rounded to the data type), by a step of the grid where
  an activation lies that close to a tie. :func:`execution_of` tells them apart, and so does the
  provenance of a record.

Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dllm_qbench import kernels
from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.kernels import Codes, PackedWeight
from dllm_qbench.kernels.codes import laid_out
from dllm_qbench.kernels.packing import pack_codes, packed_width
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.grid import Grid, code_range
from dllm_qbench.quant.layers import HadamardRotation, QuantLinear, put
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from dllm_qbench.quant.stored_grid import StoredGrid

Execution = Literal["fake", "packed"]
_SIGN = 0x80  # 8-bit codes of a symmetric grid: stored plus 128, multiplied as int8
_VALUES_AT_ONCE = 2**22


class PackedLinear(QuantLinear):
    """A :class:`QuantLinear` that holds its weight as codes, and multiplies them.

    ``weight``, ``scale`` and ``zero`` can be read as those of any quantized linear, and not be changed:
    what is read is made from the codes, each time. :meth:`requantize` takes another weight.

    Attributes:
        codes, steps, zero_codes: data, scales and zero points of ``packed``.
        packed: the weight as kernels read it.
    """

    codes: Tensor
    steps: Tensor
    zero_codes: Tensor | None
    _packed: PackedWeight
    _dtype: torch.dtype

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None,
        scheme: Scheme,
        method: str,
        dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)  # a QuantLinear's own would register a float weight
        for name in ("codes", "steps", "zero_codes"):
            self.register_buffer(name, None)
        self._hold(packed, scheme, dtype)
        self._begin(packed.shape, bias, method)

    @classmethod
    def of(cls, layer: QuantLinear) -> PackedLinear:
        """Pack a layer; bias, factors and rotations are its own, not copies.

        Raises:
            CheckpointError: its values are on no grid, or on one that float32 scales cannot give back.
        """
        packed = packed_weight(layer.stored(), layer.dtype)
        made = cls(packed, layer.bias, layer.scheme, layer.method, layer.dtype)
        made.transform, made.act_clip = layer.transform, layer.act_clip
        made.input_scale, made.output_scale = layer.input_scale, layer.output_scale
        made.input_rotation, made.output_rotation = layer.input_rotation, layer.output_rotation
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``."""
        read = self._read(x)
        if isinstance(read, Codes):
            return kernels.linear_quantized(read, self.packed, self.bias, dtype=x.dtype)
        return kernels.linear(read, self.packed, self.bias)

    @property
    def packed(self) -> PackedWeight:
        """The weight as kernels read it: the same object, to which backends tie what they work out,
        until the layer is moved.
        """
        kept, own = self._packed, (self.codes, self.steps, self.zero_codes)
        if any(a is not b for a, b in zip(own, (kept.data, kept.scale, kept.zero), strict=True)):
            self._packed = replace(kept, data=own[0], scale=own[1], zero=own[2])
        return self._packed

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The values that the codes stand for, ``[O, I]``, made anew."""
        packed, rows = self.packed, max(1, _VALUES_AT_ONCE // max(1, self.in_features))
        made = torch.empty(packed.shape, dtype=self.dtype, device=self.codes.device)
        for start in range(0, self.out_features, rows):
            some = slice(start, start + rows)
            made[some] = packed.dequantize(self.dtype, some)
        return made

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Step of every group, float32 ``[O, G]``."""
        return self.steps

    @property
    def zero(self) -> Tensor:  # type: ignore[override]
        """Zero point of every group, float32 ``[O, G]``."""
        zeros = self.packed.zeros()
        return torch.zeros_like(self.steps) if zeros is None else zeros.float()

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weight's values."""
        return self._dtype

    @property
    def held_bits(self) -> float:
        """Bits in memory for each weight: all that is held but bias, factors and rotations."""
        apart = {"bias", "input_scale", "output_scale"}
        held = {**self._parameters, **self._buffers, **vars(self)}
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for name, tensor in held.items()
            if isinstance(tensor, Tensor) and name not in apart
        }
        return 8 * sum(storages.values()) / max(1, self.out_features * self.in_features)

    def stored(self) -> StoredGrid:
        """Return codes and scales as a checkpoint holds them."""
        packed = self.packed
        codes = packed.data
        if packed.bits == 8:
            codes = codes.contiguous()
            codes = codes.view(torch.uint8) ^ _SIGN if packed.symmetric else codes
        return StoredGrid(codes, packed.scale, packed.zeros(), packed.bits, packed.symmetric,
                          packed.group, packed.size)  # fmt: skip

    def read_in(self, dtype: torch.dtype) -> None:
        """Have ``weight`` read in another data type."""
        self._dtype = dtype

    def requantize(self, weight: Tensor, grid: Grid | None, scheme: Scheme) -> None:
        """Take another weight ``[O, I]``, its grid and a scheme; all else stays.

        Raises:
            CheckpointError: the weight is not on the grid, or there is none.
        """
        fake = QuantLinear(weight, None, grid, scheme, self.method)
        self._hold(packed_weight(fake.stored(), weight.dtype), scheme, weight.dtype)
        self.out_features, self.in_features = weight.shape

    def _hold(self, packed: PackedWeight, scheme: Scheme, dtype: torch.dtype) -> None:
        self.codes, self.steps, self.zero_codes = packed.data, packed.scale, packed.zero
        self._packed, self._dtype = packed, dtype
        self.scheme, self.symmetric = scheme, packed.symmetric

    def _turned_and_rounded(self, x: Tensor) -> Any:
        """Return the input turned, as codes where the scheme rounds it."""
        bits, turn = self.scheme.act_bits, self.transform
        if isinstance(turn, HadamardRotation):
            if bits == UNTOUCHED:
                return kernels.hadamard(x, width=turn.width, signs=turn.signs)
            return kernels.rotate_quantize(
                x, bits, width=turn.width, signs=turn.signs, clip=self.act_clip
            )
        turned = self.turned(x)
        return turned if bits == UNTOUCHED else kernels.quantize(turned, bits, clip=self.act_clip)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model, and take on its data type; scales stay float32."""
        steps = self.steps
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=steps.device)).dtype
        if self.steps.dtype != torch.float32:
            self.steps = steps.to(self.steps.device)
        if self._packed.bits == 8:
            self.codes = laid_out(self.codes)
        return self


def packed_weight(stored: StoredGrid, dtype: torch.dtype) -> PackedWeight:
    """Return a stored weight as kernels read it; its scales become float32.

    Args:
        stored: codes and scales.
        dtype: of the values that they stand for.

    Raises:
        CheckpointError: float32 scales would not give back the values within one unit in the last
            place, a level of the grid is beyond the data type, or codes are of another shape.
    """
    expected = (len(stored.scale), packed_width(stored.size, stored.bits))
    if stored.codes.dtype != torch.uint8 or tuple(stored.codes.shape) != expected:
        raise CheckpointError(
            f"codes are {stored.codes.dtype} {list(stored.codes.shape)}; expected uint8"
            f" {list(expected)} for {stored.size} inputs of {stored.bits} bits"
        )
    scale, tiny = stored.scale.float(), torch.finfo(torch.float32).tiny
    moved = scale.double() != stored.scale.double()
    if bool((moved & (scale < tiny)).any()):
        raise CheckpointError(f"a scale is below {tiny:.3g}, where float32 is not exact enough")
    low, high = code_range(stored.bits, stored.symmetric)
    zero = torch.zeros_like(scale) if stored.zero is None else stored.zero.float()
    if bool((torch.maximum(high - zero, zero - low) * scale > torch.finfo(dtype).max).any()):
        raise CheckpointError(f"a level of its grid is beyond the largest {dtype}")
    codes = stored.codes
    if stored.bits == 8:
        codes = laid_out((codes ^ _SIGN).view(torch.int8) if stored.symmetric else codes)
    zeros = None if stored.symmetric else pack_codes(zero.to(torch.uint8), stored.bits)
    return PackedWeight(codes, scale, zeros, stored.bits, stored.size, stored.group)


def pack(lm: DiffusionLM) -> DiffusionLM:
    """Return a quantized model that holds packed weights and runs on kernels; the input is untouched.

    Layers whose weights are 16 bits stay as they are.

    Args:
        lm: what ``quantize`` or ``load_quantized`` returned.

    Raises:
        QBenchError: full precision, or a layer whose weight is not on its grid; names it.
    """
    if not any(isinstance(module, QuantLinear) for module in lm.model.modules()):
        raise QBenchError(
            f"{lm.name} is not quantized: there is nothing to pack; quantize it first"
        )
    # What stands for a layer in the copy: so no float weight is copied, and rotations stay shared.
    copies: dict[int, Any] = {}
    for name, layer in _packable(lm.model):
        copies[id(layer)] = copy.deepcopy(_packed(name, layer), copies)
    model = copy.deepcopy(lm.model, copies)
    return DiffusionLM(model, lm.tokenizer, lm.mask_id, lm.name, lm.recipe)


def pack_layers(model: nn.Module) -> None:
    """Pack every quantized linear of a model, in place.

    Raises:
        QBenchError: a layer whose weight is not on its grid; names it.
    """
    for name, layer in _packable(model):
        put(model, name, _packed(name, layer))


def execution_of(lm: DiffusionLM) -> Execution:
    """Return ``"packed"`` where a layer of the model holds packed weights."""
    packed = any(isinstance(module, PackedLinear) for module in lm.model.modules())
    return "packed" if packed else "fake"


def checked_execution(execution: str) -> Execution:
    """Return an execution by its name.

    Raises:
        QBenchError: there is none of this name.
    """
    for known in get_args(Execution):
        if execution == known:
            return known  # type: ignore[no-any-return]
    raise QBenchError(
        f"execution {execution!r} is unknown; known are {', '.join(get_args(Execution))}"
    )


def _packable(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Yield the layers to pack, one at a time, so that each can be let go of."""
    names = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        if layer.scheme.quantizes_weights and not isinstance(layer, PackedLinear):
            yield name, layer


def _packed(name: str, layer: QuantLinear) -> PackedLinear:
    try:
        return PackedLinear.of(layer)
    except CheckpointError as error:
        raise QBenchError(f"{name}: cannot be packed: {error}") from error
