"""QuaRot: spread outliers over all channels by Hadamard rotations, then round.

Source: Ashkboos et al., "QuaRot" (arXiv 2404.00456), section 4. Rows are tokens, x -> x R:

    R1  residual stream, randomised    folded into embeddings, o, down (what writes it) and into
                                       q, k, v, gate, up, LM head (what reads it)
    R2  values of each head, randomised    folded into v (bias included) and o
    R3  queries and keys after RoPE        online; q R (k R)^T = q k^T
    R4  input of down                      online, its inverse folded into down

RMSNorm commutes with a rotation once its gain is 1, so the gains are folded first, into the linears
that read the norm. Its mean is never subtracted from an embedding: that belongs to LayerNorm, and
before RMSNorm it changes the function.

What the paper leaves open, or what is different here:
- **signs** are drawn for R1 once and for R2 per layer and value head; with grouped heads, the query
  heads of a group read the same value head and so share its R2. R3 and R4 have none;
- **no rotation across heads**: the paper transforms o's input across heads too, online. R2 is per
  head, so that nothing runs online there;
- **R3** serves 4-bit keys in a causal model's cache. A masked diffusion model has no cache, so R3
  changes rounding nowhere; it is here because a deployed QuaRot kernel has it;
- **tied embeddings** are untied, in the configuration as well: the LM head alone takes the final
  norm's gain;
- **sizes without a known Hadamard order** are rotated in blocks (``quant/rotation.py``);
- **weights** by GPTQ or by rounding to nearest, symmetric per output channel, min-max (the paper
  searches a clipping ratio). GPTQ's H is that of the rotated inputs;
- **activations** symmetric per token. ``act_clip`` is the paper's clipping ratio, where it is 0.9;
  the default here is 1, no clipping: a token whose one massive value R4 has spread evenly has *all*
  its channels at the maximum, and each would be clipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import QBenchError
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import (
    BLOCK_GROUPS,
    HadamardRotation,
    QuantLinear,
    Rotation,
    put,
    target_names,
)
from dllm_qbench.quant.methods.gptq import solved_weights
from dllm_qbench.quant.methods.rtn import round_weight
from dllm_qbench.quant.offload import change_rows, visited
from dllm_qbench.quant.rotation import random_signs
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from dllm_qbench.seeding import derive

NAME = "quarot"
_WEIGHTS = ("gptq", "rtn")


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return True


def quantize_model(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    device: torch.device | None = None,
    *,
    weights: str = "gptq",
    seed: int = 0,
    damp: float = 0.01,
    act_order: bool = False,
    token_cap: float | None = 2.0,
    act_clip: float = 1.0,
) -> None:
    """Rotate ``model`` and replace every targeted linear, in place.

    Raises:
        ValueError: ``weights`` is neither ``"gptq"`` nor ``"rtn"``, or ``act_clip`` outside (0, 1].
        QBenchError: norms that do not commute with a rotation, or attention without room for R3.
    """
    if weights not in _WEIGHTS:
        raise ValueError(f"quarot: weights must be one of {', '.join(_WEIGHTS)}, found {weights!r}")
    if not 0 < act_clip <= 1:
        raise ValueError(f"quarot: act_clip must lie in (0, 1], found {act_clip}")
    names = target_names(model)
    rotate(model, seed, device)
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    if weights == "gptq" and scheme.quantizes_weights:
        for name, weight, grid in solved_weights(
            model, scheme, calibration, symmetric, damp, act_order, token_cap, device
        ):
            _layer(model, name).requantize(weight, grid, scheme)
    else:
        for _, block in visited(model, device):
            for name in (name for names in BLOCK_GROUPS for name in names):
                layer = _layer(block, name)
                layer.requantize(*round_weight(layer.weight, scheme, symmetric), scheme)
    for name in names:
        _layer(model, name).act_clip = act_clip


@torch.no_grad()
def rotate(model: nn.Module, seed: int, device: torch.device | None = None) -> None:
    """Apply R1 to R4 in place; the function of the model is unchanged.

    Every targeted linear becomes a 16-bit :class:`QuantLinear` that knows its rotations. ``device`` is
    where to compute; ``None``: where the model lives.
    """
    whole: Any = model
    width = int(whole.config.hidden_size)
    R1 = HadamardRotation(width, random_signs(width, derive(seed, "quarot", "R1")))
    _untie(whole)
    gain_D = _take_gain(whole.model.norm, "model.norm")
    change_rows(whole.model.embed_tokens.weight, lambda rows: R1(rows.double()), device)
    change_rows(
        whole.lm_head.weight, lambda rows: R1(rows.double() * gain_D.to(rows.device)), device
    )
    for index, block in visited(model, device):
        _rotate_block(block, f"model.layers.{index}", R1, derive(seed, "quarot", "R2", index))


def _rotate_block(block: Any, where: str, R1: Rotation, seed: int) -> None:
    attention, mlp = block.self_attn, block.mlp
    if not hasattr(attention, "query_key_rotation"):
        raise QBenchError(
            f"quarot: {where}.self_attn ({type(attention).__name__}) has no query_key_rotation, the"
            " place for a rotation after RoPE; use one of this package's attention classes"
        )
    E, groups = int(attention.head_dim), int(attention.num_key_value_groups)
    value_signs = random_signs(attention.v_proj.out_features, seed)
    R2_values = HadamardRotation(E, value_signs)
    shared = value_signs.view(-1, 1, E).expand(-1, groups, -1)
    R2_heads = HadamardRotation(E, shared.reshape(-1))
    R4 = HadamardRotation(mlp.down_proj.in_features)
    attention.query_key_rotation = HadamardRotation(E)
    entering, (o_proj,), reading, (down_proj,) = BLOCK_GROUPS
    for norm, names in (("input_layernorm", entering), ("post_attention_layernorm", reading)):
        gain = _take_gain(getattr(block, norm), f"{where}.{norm}")
        for name in names:
            out = R2_values if name == "self_attn.v_proj" else None
            _turn(block, name, gain, R1, out)
    _turn(block, o_proj, None, R2_heads, R1)
    _turn(block, down_proj, None, R4, R1, online=True)


def _turn(
    block: nn.Module,
    name: str,
    gain: Tensor | None,
    reads: Rotation,
    writes: Rotation | None,
    online: bool = False,
) -> None:
    """Replace a linear by one that reads ``(x / gain) reads`` and writes ``y writes``.

    ``online``: the layer turns its input itself; whoever writes it does not.
    """
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.double()
    weight = reads(weight if gain is None else weight * gain)
    bias = linear.bias
    if writes is not None:
        weight = writes(weight.T).T
        bias = None if bias is None else writes(bias.double()).to(bias.dtype)
    dtype = linear.weight.dtype
    untouched = Scheme(UNTOUCHED, UNTOUCHED)
    layer = QuantLinear(weight.to(dtype).contiguous(), bias, None, untouched, NAME)
    if online:
        layer.transform = reads
    else:
        layer.input_rotation = reads
    if gain is not None:  # a channel of gain 0 holds 0, and the weights that read it are 0 now
        layer.input_scale = torch.where(gain == 0, 1.0, gain).to(dtype)
    layer.output_rotation = writes
    put(block, name, layer)


def _take_gain(norm: Any, where: str) -> Tensor:
    """Return the gain of an RMSNorm in float64 and set it to 1."""
    if isinstance(norm, nn.LayerNorm) or getattr(norm, "bias", None) is not None:
        raise QBenchError(
            f"quarot: {where} ({type(norm).__name__}) subtracts a mean or adds a bias; only RMSNorm"
            " commutes with a rotation"
        )
    gain: Tensor = norm.weight.double().clone()
    norm.weight.fill_(1.0)
    return gain


def _untie(model: Any) -> None:
    """Give the LM head a weight of its own."""
    if model.lm_head.weight is model.model.embed_tokens.weight:
        own = model.lm_head.weight.detach().clone()
        model.lm_head.weight = nn.Parameter(own, requires_grad=False)
    model.config.tie_word_embeddings = False


def _layer(model: nn.Module, name: str) -> QuantLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer
