"""What kind of error a module shows: a hint for whoever has to find the bug.

A linear's output error has three sources: its weight, the rounding of its input, its bias. The weight is
compared with full precision's in the terms in which it was rounded (``own_basis.py``) and its error read
by ``weight_signs.py`` and ``weight_patterns.py``; of the other two only the effect on the output is seen.

Limits state the extreme among sound linears; which those are, ``weight_patterns.py`` says.
"""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from dllm_qbench.evaluation.own_basis import OwnBasis, own_basis
from dllm_qbench.evaluation.weight_patterns import pattern
from dllm_qbench.evaluation.weight_signs import Symptom, across, explained, factors, power, sign
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import BLOCK_GROUPS

__all__ = ["Symptom", "symptom"]

# Error power by that of rounding to nearest. Sound: 0.70 (DuQuant, whose clips serve the many) to 3.4
# (GPTQ, which trades weights for outputs). One bit more gives 0.25; at 16 bits it is 1e-7 or less.
_UNROUNDED: Final = 0.15
# The same of inputs from which they are looked at.
_COARSE: Final = 4.0
_CUTS: Final = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # shares of a largest magnitude
_EXPLAINED: Final = 0.5  # of the output's error; what is above _COARSE is no rounding to begin with
_KNOWN: Final = (
    0.9  # of it, where what was done is known to the last digit; ties and digits are left
)
_TINY: Final = 1e-300


def symptom(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    module: str,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Symptom:
    """Say what kind of error a module of a quantized model shows.

    Args:
        reference: the full-precision model.
        quantized: a model made from it; its recipe says what was intended.
        module: a module that localisation named: a linear's full name, or a tap between linears.
        ids: long ``[T]`` or ``[B, T]``, the canvases of the profiles.
        attention_mask: ``[B, T]``, 0 for padding.

    Raises:
        QBenchError: the two models hold different things under that name.
    """
    if not any(module.endswith(f".{leaf}") for group in BLOCK_GROUPS for leaf in group):
        return Symptom("outside", _outside(module))
    o = own_basis(reference, quantized, module, ids, attention_mask)
    if (found := across(o)) is not None:  # may be finer than the scheme's own grid
        return found
    if o.scheme.quantizes_weights and power(o.Q - o.W) < _UNROUNDED * power(o.R):
        return Symptom("not quantized", _unrounded_text(o))
    weights = power(o.relative(o.u @ (o.Q - o.W).T))
    inputs = power(o.relative(o.out - (o.u @ o.Q.T + o.own_bias)))
    bias = power(o.relative((o.own_bias - o.bias).expand_as(o.out)))
    if bias > weights + inputs:
        return _of_bias(o)
    asked = power(o.relative((o.rounded_inputs() - o.u) @ o.Q.T))
    if inputs < _UNROUNDED * asked:
        times = f"its error power is {inputs / asked:.1g} of what that gives"
        text = f"the input is not rounded to {o.scheme.act_bits} bits: {times}"
        return Symptom("not quantized", text)
    if (found := _one_scale(o)) is not None:
        return found
    # Where inputs are not rounded, what the layer's own data type does.
    floor = max(asked, 1e-6 * power(o.relative(o.out)))
    if inputs > max(_COARSE * floor, weights):
        return _of_inputs(o, inputs / floor)
    return sign(o) or pattern(o) or Symptom("noise", _noise_text(o))


def _outside(module: str) -> str:
    places = {
        "self_attn": "rotations of queries and keys, RoPE, the attention's direction and its mask",
        "mlp": "the activation function, and what is scaled between up and down",
        "lm_head": "the final norm and the LM head",
    }
    otherwise = "the norm's gain, the residual stream and, in block 0, the embeddings"
    look = places.get(module.rpartition(".")[2], otherwise)
    return f"no linear up to here errs more than it did; look at {look}"


def _of_bias(o: OwnBasis) -> Symptom:
    b, q = o.bias, o.own_bias
    if not power(q):
        return Symptom("offset", "full precision's bias is missing")
    cosine = float(b @ q) / math.sqrt(max(power(b) * power(q), _TINY))
    length = math.sqrt(power(q) / max(power(b), _TINY))
    if cosine > 0.99:
        return Symptom("scale", f"the bias is {length:.2f} times what it should be")
    text = f"the bias has {length:.2f} of its length and a cosine of {cosine:.2f} with what it should be"
    if 0.8 < length < 1.25:
        return Symptom("missing inverse", f"{text}: not rotated or rescaled as the weight is?")
    return Symptom("offset", text)


def _one_scale(o: OwnBasis) -> Symptom | None:
    """Look for inputs that are rounded with one scale for all tokens: the output is then known."""
    if not o.scheme.quantizes_activations:
        return None
    out, plain = o.relative(o.out), o.relative(o.u @ o.Q.T + o.own_bias)
    each, one = (
        explained(out, plain, o.relative(o.rounded_inputs(one_scale) @ o.Q.T + o.own_bias))
        for one_scale in (False, True)
    )
    if one < _KNOWN or each > _KNOWN:
        return None
    text = "the input is rounded with one scale for all tokens, where each token has its own"
    return Symptom("axis", f"{text} (that gives the output to {100 * one:.0f} %)")


def _of_inputs(o: OwnBasis, times: float) -> Symptom:
    """Try a factor and cut-offs on the input; only the effect on the output is seen."""
    out, plain = o.relative(o.out), o.relative(o.u @ o.Q.T + o.own_bias)
    a = float(factors(out, plain, (0, 1)))
    best = explained(out, plain, a * plain)
    said = Symptom("scale", f"output is {a:.2f} times what its own weight and bias give")
    largest = o.u.abs().amax(-1, keepdim=True)
    for whose, of in (("its token's", largest), ("any token's", largest.amax())):
        for part in _CUTS:
            cut = o.relative(o.u.clamp(-part * of, part * of) @ o.Q.T + o.own_bias)
            share = explained(out, plain, cut)
            if share > best:
                text = f"inputs are cut off at about {part:g} of {whose} largest magnitude"
                best, said = share, Symptom("saturation", text)
    if best > _EXPLAINED:
        return said
    if not o.scheme.quantizes_activations:
        return Symptom(
            "noise", f"the input is changed on the way to the weight; {o.scheme} leaves it"
        )
    asked = f"{o.scheme.act_bits} bits"
    return Symptom("noise", f"rounding of the input costs {times:.1f} times what {asked} should")


def _unrounded_text(o: OwnBasis) -> str:
    ratio = power(o.Q - o.W) / max(power(o.R), _TINY)
    bits = o.scheme.weight_bits
    if ratio < 1e-4:
        return f"the weight is full precision's own, where {o.scheme} asks for {bits} bits"
    closer = f"{-10 * math.log10(ratio):.0f} dB closer to full precision's than {bits} bits get"
    return f"the weight is {closer}: rounded at more bits, or in part only"


def _noise_text(o: OwnBasis) -> str:
    ratio = power(o.Q - o.W) / max(power(o.R), _TINY)
    text = f"no pattern; the weight's error power is {ratio:.1f} times that of rounding to nearest"
    bits = math.log2(max(ratio, _TINY)) / 2
    return f"{text} at {o.scheme}" + (f", {bits:.1f} bits coarser" if bits > 0.5 else "")
