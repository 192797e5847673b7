"""The linears that a scheme targets, and the layer that replaces them.

Notable:
- quantized weights are stored as the floating-point values that they stand for ("fake" quantization):
  accuracy is that of the integers, speed and memory are not;
- activations are rounded per token, symmetrically, with a scale computed when the token arrives;
- a layer keeps what an audit needs: its grid, its scheme, its method, and, where a method rescaled
  the model around it, the factors that lead back to the full-precision layer's inputs and outputs.

Shapes: N tokens, I inputs, O outputs, G weight groups of an output channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.errors import QBenchError
from dllm_qbench.quant.grid import Grid
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme

# The linears of one block in forward order; those of one tuple read the same input.
BLOCK_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """Round ``x [..., I]`` on a symmetric grid of its own for every token.

    Scale absmax / q with q = 2^(bits-1) - 1, so nothing is clipped; a zero token stays zero. Ties
    go to even. A NaN makes its whole token NaN, where evaluation finds and reports it.
    """
    wide = x.detach()
    if wide.dtype in (torch.float16, torch.bfloat16):
        wide = wide.float()
    # One temporary in all, and not torch.aminmax, which is several times slower here: at 4 and 8
    # bits this function is a good part of an evaluation.
    rounded = wide.abs()
    scale = rounded.amax(-1, keepdim=True).div_(2 ** (bits - 1) - 1)
    # The smallest normal number instead of 0: a zero token divides to 0, not to NaN.
    scale.clamp_(min=torch.finfo(wide.dtype).tiny)
    return torch.div(wide, scale, out=rounded).round_().mul_(scale).to(x.dtype)


class QuantLinear(nn.Module):
    """A linear with quantized weights and, below 16 activation bits, quantized inputs.

    Attributes:
        weight: dequantized values ``[O, I]``; each group holds at most ``2^weight_bits`` levels.
        bias: ``[O]`` or ``None``; never quantized.
        scale, zero: the weight grid, ``[O, G]``; ``None`` where weights are 16 bits.
        scheme, method, symmetric: how the layer was made.
        input_scale: ``[I]`` or ``None``: this layer reads the full-precision input divided by it.
        output_scale: ``[O]`` or ``None``: its output times this is the full-precision one.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None
    zero: Tensor | None
    input_scale: Tensor | None
    output_scale: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        grid: Grid | None,
        scheme: Scheme,
        method: str,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.scheme, self.method = scheme, method
        self.symmetric = None if grid is None else grid.symmetric
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("scale", None if grid is None else grid.scale.float())
        self.register_buffer("zero", None if grid is None else grid.zero.float())
        self.register_buffer("input_scale", None)
        self.register_buffer("output_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``."""
        if self.scheme.act_bits != UNTOUCHED:
            x = quantize_tokens(x, self.scheme.act_bits)
        return F.linear(x, self.weight, self.bias)

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
