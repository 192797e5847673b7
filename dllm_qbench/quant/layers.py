"""The linears that a scheme targets, and the layer that replaces them.

Notable:
- quantized weights are stored as the floating-point values that they stand for ("fake" quantization):
  accuracy is that of the integers, speed and memory are not; for those see ``quant/packed.py``;
- activations are rounded per token, symmetrically, with a scale computed when the token arrives;
- a layer may turn its input by an orthogonal map before rounding it; its weight then reads turned
  inputs, so the product is the same;
- a layer keeps what an audit needs: its grid, its scheme, its method, and, where a method rescaled
  or rotated the model around it, what leads back to the full-precision layer's inputs and outputs.

Shapes: N tokens, I inputs, O outputs, G weight groups of an output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.quant.grid import Grid, code_range
from dllm_qbench.quant.rotation import hadamard_transform, inverse_hadamard_transform
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from dllm_qbench.quant.shared_inputs import LastMade
from dllm_qbench.quant.stored_grid import StoredGrid, store_grid

# The linears of one block in forward order; those of one tuple read the same input.
BLOCK_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def quantize_tokens(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    """Round ``x [..., I]`` on a symmetric grid of its own for every token.

    Scale ``clip * absmax / q`` with q = 2^(bits-1) - 1: at ``clip`` 1 nothing is clipped, below it
    values beyond that share of the token's largest magnitude are. A zero token stays zero. Ties go
    to even. A NaN makes its whole token NaN, where evaluation finds and reports it.
    """
    last = 2 ** (bits - 1) - 1
    wide = x.detach()
    if wide.dtype in (torch.float16, torch.bfloat16):
        wide = wide.float()
    # One temporary in all, and not torch.aminmax, which is several times slower here: at 4 and 8
    # bits this function is a good part of an evaluation.
    rounded = wide.abs()
    scale = rounded.amax(-1, keepdim=True).mul_(clip / last)
    # The smallest normal number instead of 0: a zero token divides to 0, not to NaN.
    scale.clamp_(min=torch.finfo(wide.dtype).tiny)
    torch.div(wide, scale, out=rounded).round_()
    if clip < 1:
        rounded.clamp_(-last, last)
    return rounded.mul_(scale).to(x.dtype)


class Rotation(nn.Module):
    """An orthogonal map R of the last dimension, ``x -> x R``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x R`` for ``x [..., I]``."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``y R^T`` for ``y [..., I]``."""
        raise NotImplementedError


class HadamardRotation(Rotation):
    """Flip signs, then transform every ``width`` neighbours: R = diag(signs) (I (x) H^T).

    The signs come first: after them, no vector that a model is likely to hold (a constant one, above
    all) is gathered into a single channel.

    Attributes:
        signs: ``[I]`` of +1 and -1, or ``None`` for H alone.
        width: size of H; divides I.
    """

    signs: Tensor | None

    def __init__(self, width: int, signs: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("signs", signs)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x R`` for ``x [..., I]``."""
        if self.signs is not None:
            x = x * self.signs.to(x)
        return hadamard_transform(x.unflatten(-1, (-1, self.width))).flatten(-2)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``y R^T`` for ``y [..., I]``."""
        y = inverse_hadamard_transform(y.unflatten(-1, (-1, self.width))).flatten(-2)
        return y if self.signs is None else y * self.signs.to(y)


class BlockRotation(Rotation):
    """DuQuant's: rotate blocks, deal the channels out anew, rotate blocks again: R = A P B.

    Attributes:
        first, second: A and B's blocks, orthogonal, each ``[I / b, b, b]``.
        order: ``[I]``; channel i after P is channel ``order[i]`` before it.
    """

    first: Tensor
    order: Tensor
    second: Tensor

    def __init__(self, first: Tensor, order: Tensor, second: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", first)
        self.register_buffer("order", order)
        self.register_buffer("second", second)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x R`` for ``x [..., I]``."""
        return _by_block(_by_block(x, self.first)[..., self.order], self.second)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``y R^T`` for ``y [..., I]``."""
        y = _by_block(y, self.second.mT)[..., self.order.argsort()]
        return _by_block(y, self.first.mT)


def _by_block(x: Tensor, blocks_bBB: Tensor) -> Tensor:
    """Multiply block b of the last dimension by ``blocks[b]``, half precisions in float32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    # One product of all tokens for each block: broadcasting would copy the blocks for each token.
    parts_bNB = wide.reshape(-1, *blocks_bBB.shape[:2]).transpose(0, 1)
    turned_bNB = torch.bmm(parts_bNB, blocks_bBB.to(wide))
    return turned_bNB.transpose(0, 1).reshape(x.shape).to(x.dtype)


_last = LastMade()


class QuantLinear(nn.Module):
    """A linear with quantized weights and, below 16 activation bits, quantized inputs.

    Attributes:
        weight: dequantized values ``[O, I]``; each group holds at most ``2^weight_bits`` levels.
        bias: ``[O]`` or ``None``; never quantized.
        scale, zero: the weight grid, ``[O, G]``; ``None`` where weights are 16 bits.
        scheme, method, symmetric: how the layer was made.
        full_range: whether its symmetric grid has the code -2^(bits - 1) too, as most other libraries'
            grids do; ours end at -(2^(bits - 1) - 1).
        transform: applied to every input before rounding, or ``None``; ``weight`` reads its result.
        act_clip: share of a token's largest magnitude at which activations are clipped; 1: nowhere.
        input_scale, input_rotation: this layer reads the full-precision input divided by the one
            ``[I]`` and turned by the other; ``None`` where the method has none.
        output_scale, output_rotation: its output is the full-precision one divided by the one
            ``[O]`` and turned by the other; ``None`` where the method has none.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None
    zero: Tensor | None
    input_scale: Tensor | None
    output_scale: Tensor | None
    full_range: bool = False

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        grid: Grid | None,
        scheme: Scheme,
        method: str,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", None)
        self.register_buffer("zero", None)
        self.requantize(weight, grid, scheme)
        self._begin(weight.shape, bias, method)

    def _begin(self, shape: Sequence[int], bias: Tensor | None, method: str) -> None:
        """Set all but weight, grid and scheme."""
        self.out_features, self.in_features = shape
        self.method = method
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("input_scale", None)
        self.register_buffer("output_scale", None)
        self.transform: Rotation | None = None
        self.input_rotation: Rotation | None = None
        self.output_rotation: Rotation | None = None
        self.act_clip = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``."""
        return F.linear(self._read(x), self.weight, self.bias)

    def _read(self, x: Tensor) -> Any:
        """Turn and round an input; once for layers that read one tensor in one way."""
        if self.transform is None and self.scheme.act_bits == UNTOUCHED:
            return x
        how = (type(self), self.transform, self.scheme.act_bits, self.act_clip)
        made = _last.of(x, how, self)
        if made is None:
            made = self._turned_and_rounded(x)
            _last.keep(x, how, self, made)
        return made

    def _turned_and_rounded(self, x: Tensor) -> Any:
        """Return what this kind of layer multiplies."""
        made = self.turned(x)
        if self.scheme.act_bits == UNTOUCHED:
            return made
        return quantize_tokens(made, self.scheme.act_bits, self.act_clip)

    def turned(self, x: Tensor) -> Tensor:
        """Return what the weight reads of an input ``[..., I]``, before rounding."""
        return x if self.transform is None else self.transform(x)

    def from_reference(self, x: Tensor) -> Tensor:
        """Return what this layer reads where the full-precision layer reads ``x [..., I]``."""
        x = x if self.input_scale is None else x / self.input_scale.to(x)
        return x if self.input_rotation is None else self.input_rotation(x)

    def to_reference(self, y: Tensor) -> Tensor:
        """Return the full-precision layer's output where this layer's is ``y [..., O]``."""
        y = y if self.output_rotation is None else self.output_rotation.inverse(y)
        return y if self.output_scale is None else y * self.output_scale.to(y)

    def requantize(self, weight: Tensor, grid: Grid | None, scheme: Scheme) -> None:
        """Take another weight ``[O, I]``, its grid and a scheme; all else stays."""
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.scheme = scheme
        self.symmetric = None if grid is None else grid.symmetric
        self.scale = None if grid is None else grid.scale.float()
        self.zero = None if grid is None else grid.zero.float()

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weight's values."""
        return self.weight.dtype

    @property
    def rounded(self) -> Tensor:
        """The values ``[O, I]`` that lie on the weight's grid."""
        return self.weight

    @property
    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code that its weight grid has."""
        low, high = code_range(self.scheme.weight_bits, bool(self.symmetric))
        return (low - 1, high) if self.symmetric and self.full_range else (low, high)

    def stored(self) -> StoredGrid:
        """Return the weight as codes and scales that give it back bit by bit.

        Raises:
            CheckpointError: there are none.
        """
        scheme = self.scheme
        if self.scale is None or self.zero is None or self.symmetric is None:
            raise CheckpointError("it has no weight grid")
        if not scheme.quantizes_weights:
            raise CheckpointError(f"it has a weight grid, and its scheme {scheme} has none")
        if self.symmetric and self.full_range:
            raise CheckpointError(
                f"its symmetric grid reaches {self.code_range[0]}, one code beyond what packed weights"
                " and this format hold"
            )
        group = min(scheme.group or self.in_features, self.in_features)
        weight, bits = self.weight.detach(), scheme.weight_bits
        return store_grid(weight, self.scale, self.zero, bits, self.symmetric, group)

    def extra_repr(self) -> str:
        """Return what ``repr(model)`` shows of this layer."""
        return f"{self.in_features} -> {self.out_features}, {self.method} {self.scheme}"


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers of a transformers model, first to last."""
    inner: Any = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise QBenchError(
            f"{type(model).__name__} has no decoder layers at model.layers; quantization needs the"
            " module layout of transformers' Llama classes"
        )
    return list(layers)


def target_names(model: nn.Module) -> list[str]:
    """Return the full names of all linears inside the blocks, in forward order.

    Raises:
        QBenchError: a block lacks one of the seven linears, or has one that no group covers: it
            would stay at 16 bits without anybody noticing.
    """
    known = [leaf for group in BLOCK_GROUPS for leaf in group]
    names: list[str] = []
    for index, block in enumerate(blocks(model)):
        kinds = (nn.Linear, QuantLinear)
        found = {name for name, module in block.named_modules() if isinstance(module, kinds)}
        if found != set(known):
            missing, extra = sorted(set(known) - found), sorted(found - set(known))
            raise QBenchError(
                f"model.layers.{index}: the linears are not the seven of a LLaDA block;"
                f" missing: {', '.join(missing) or 'none'};"
                f" not covered by any group: {', '.join(extra) or 'none'}"
            )
        names += [f"model.layers.{index}.{leaf}" for leaf in known]
    return names


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where the module called ``name`` is."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)
