"""A quantized linear beside full precision's, both in the terms in which the quantized one rounds.

A method that rescales or rotates a model changes what a linear reads and writes. What the quantized
layer keeps of that is applied to full precision's weight here, so that a weight can be compared with
the one that it should be the rounding of, element by element.

Steps and roundings are worked out here, plainly, and not by ``quant/grid.py``: a bug there would bend
the yardstick as well.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import QuantLinear, Rotation
from dllm_qbench.quant.scheme import Scheme

_MOST_TOKENS = 2048
_TINY = 1e-300
_FINEST_BITS = 12  # stands for 16 where a step is needed: half precision's rounding is about that


@dataclass(frozen=True, eq=False)
class OwnBasis:
    """One linear of two models, in the quantized one's terms, all in float64.

    Attributes:
        scheme: what the model's recipe says, else what the layer says.
        W: full precision's weight as the quantized layer should hold it before rounding, ``[O, I]``.
        Q: the weight that it holds.
        R: error of rounding W to nearest on the scheme's own grid; what an error is measured by.
        step: width of that grid's steps, spread to ``[O, I]``.
        across: the same of grids that run along outputs instead of inputs, by what they are.
        u: full precision's inputs, as the weight reads them before they are rounded, ``[N, I]``.
        bias, own_bias: the bias it should have and the one that it has, ``[O]``; 0 where none.
        out: what the layer puts out for u, ``[N, O]``.
        input_scale, output_scale: the layer's, or ``None``.
        rotations: of the inputs that W and Q read, in the order applied.
    """

    scheme: Scheme
    W: Tensor
    Q: Tensor
    R: Tensor
    step: Tensor
    across: Mapping[str, Tensor]
    u: Tensor
    bias: Tensor
    own_bias: Tensor
    out: Tensor
    input_scale: Tensor | None
    output_scale: Tensor | None
    rotations: tuple[Rotation, ...]

    def unturned(self, weight: Tensor) -> Tensor:
        """Return a weight without the rotations of its inputs: by the model's own channels."""
        for rotation in reversed(self.rotations):
            weight = rotation.inverse(weight)
        return weight

    def grouped(self, x: Tensor) -> Tensor:
        """Return ``x [O, I]`` by the scheme's groups ``[O, G, g]``; a shorter last one is left out."""
        size = x.shape[1]
        group = size if self.scheme.group is None else min(self.scheme.group, size)
        by_group: Tensor = x[:, : size // group * group].unflatten(1, (-1, group))
        return by_group

    def rounded_inputs(self, one_scale: bool = False) -> Tensor:
        """Return u on the grid that the scheme asks for, nowhere clipped; u itself at 16 bits.

        ``one_scale``: for all tokens, instead of one for each.
        """
        if not self.scheme.quantizes_activations:
            return self.u
        last = 2 ** (self.scheme.act_bits - 1) - 1
        largest = self.u.abs().amax() if one_scale else self.u.abs().amax(-1, keepdim=True)
        step = (largest / last).clamp(min=_TINY)
        rounded: Tensor = (self.u / step).round() * step
        return rounded

    def relative(self, y: Tensor) -> Tensor:
        """Return ``y [N, O]`` by the length of what each token should put out.

        As in the SQNR of a profile, tokens count alike: massive ones do not speak for all.
        """
        wanted_NO = self.u @ self.W.T + self.bias
        relative: Tensor = y / wanted_NO.norm(dim=-1, keepdim=True).clamp(min=_TINY)
        return relative


@torch.no_grad()
def own_basis(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    module: str,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> OwnBasis:
    """Look at one linear of both models; at most 2048 tokens, evenly spaced, of what is given.

    Raises:
        QBenchError: the module is no linear in one of the models, or their shapes differ.
    """
    plain = reference.model.get_submodule(module)
    layer = quantized.model.get_submodule(module)
    if not isinstance(plain, nn.Linear) or not isinstance(layer, nn.Linear | QuantLinear):
        raise QBenchError(
            f"symptom: {module} is no linear ({type(plain).__name__} in full precision,"
            f" {type(layer).__name__} quantized)"
        )
    if plain.weight.shape != layer.weight.shape:
        raise QBenchError(
            f"symptom: {module} has a weight {list(layer.weight.shape)},"
            f" {list(plain.weight.shape)} in full precision"
        )
    scheme, symmetric = _recipe(quantized, layer)
    W, bias = plain.weight.double().to(layer.weight.device), _bias(plain, layer.weight.device)
    x = _inputs(reference, plain, ids, attention_mask).to(layer.weight.device)
    u = x.double()
    rotations: tuple[Rotation, ...] = ()
    if isinstance(layer, QuantLinear):
        if layer.output_scale is not None:
            s = layer.output_scale.double()
            W, bias = W / s[:, None], bias / s
        if layer.output_rotation is not None:
            W, bias = layer.output_rotation(W.T).T, layer.output_rotation(bias)
        W = W if layer.input_scale is None else W * layer.input_scale.double()
        rotations = tuple(r for r in (layer.input_rotation, layer.transform) if r is not None)
        for rotation in rotations:
            W = rotation(W)
        x = layer.from_reference(x)
        u = layer.turned(layer.from_reference(u))
    bits = min(scheme.weight_bits, _FINEST_BITS)
    step = _steps(W, bits, symmetric, scheme.group)
    lines = {"input channel": None, "group of outputs": scheme.group}
    across = {name: _steps(W.T, bits, symmetric, group).T for name, group in lines.items()}
    return OwnBasis(
        scheme,
        W,
        layer.weight.double(),
        (W / step).round() * step - W,
        step,
        across,
        u,
        bias,
        _bias(layer, layer.weight.device),
        layer(x.to(layer.weight.dtype)).double(),
        getattr(layer, "input_scale", None),
        getattr(layer, "output_scale", None),
        rotations,
    )


def _steps(W: Tensor, bits: int, symmetric: bool, group: int | None) -> Tensor:
    """Return the step of every element of ``W [R, D]`` on min-max grids of D's groups."""
    size = W.shape[1]
    group = size if group is None else min(group, size)
    W_RGg = F.pad(W, (0, -size % group)).unflatten(1, (-1, group))
    low, high = W_RGg.amin(-1).clamp(max=0), W_RGg.amax(-1).clamp(min=0)
    wide = 2 * torch.maximum(-low, high) if symmetric else high - low
    step = wide / (2**bits - 2 if symmetric else 2**bits - 1)
    return torch.where(step > 0, step, 1.0).repeat_interleave(group, 1)[:, :size]


def _recipe(quantized: DiffusionLM, layer: nn.Linear | QuantLinear) -> tuple[Scheme, bool]:
    """Return scheme and symmetry that the layer was meant to have."""
    recipe: Mapping[str, Any] = quantized.recipe or {}
    made = layer.scheme if isinstance(layer, QuantLinear) else Scheme(16, 16)
    scheme = Scheme.parse(recipe["scheme"]) if "scheme" in recipe else made
    symmetric = recipe.get("symmetric", getattr(layer, "symmetric", None))
    return scheme, scheme.is_symmetric(bool(symmetric))


def _bias(layer: nn.Linear | QuantLinear, device: torch.device) -> Tensor:
    if layer.bias is None:
        return torch.zeros(layer.out_features, dtype=torch.float64, device=device)
    return layer.bias.double().to(device)


def _inputs(
    lm: DiffusionLM, linear: nn.Module, ids: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """Return what a linear of full precision reads on real tokens, ``[N, I]``."""
    tokens_BT = lm.as_ids(ids)
    tokens_BT = tokens_BT[None] if tokens_BT.dim() == 1 else tokens_BT
    mask_BT = torch.ones_like(tokens_BT) if attention_mask is None else attention_mask
    mask_BT = mask_BT.to(tokens_BT.device).reshape(tokens_BT.shape)
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        lm.logits(tokens_BT, mask_BT)
    finally:
        hook.remove()
    x_NI = seen[-1][mask_BT.bool()]
    return x_NI[:: -(-len(x_NI) // _MOST_TOKENS)]
