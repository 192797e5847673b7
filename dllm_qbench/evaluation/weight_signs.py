"""Signs of one particular fault in a weight, which leave no doubt: looked for before any pattern.

W is the weight that a layer should hold the rounding of, Q the one that it holds (``own_basis.py``).
Limits state what sound linears show, and planted faults (``tests/helpers/one_layer.py``), on both
embedded models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from dllm_qbench.evaluation.own_basis import OwnBasis

Kind = Literal[
    "scale", "axis", "saturation", "missing inverse", "not quantized", "offset", "noise", "outside"
]


@dataclass(frozen=True)
class Symptom:
    """What kind of error a module shows.

    Attributes:
        kind: ``"scale"``: one factor, or one for each output channel or group;
            ``"axis"``: factors of input channels, or scales for other things than the scheme says;
            ``"saturation"``: the largest values are cut off or wrap around;
            ``"missing inverse"``: rotated, permuted or rescaled on one side only;
            ``"not quantized"``; ``"offset"``: shifted by a share of a step, or a bias that is off;
            ``"noise"``: none of these; ``"outside"``: no linear is at fault.
        text: one sentence with the number that decided.
    """

    kind: Kind
    text: str


# A rotation or a permutation on one side leaves W W' or W' W as it was. How much these change, by what
# rounding to nearest changes them, over the root of the error's power, by that of rounding: 0.06 to 0.37
# for such faults (W3 to W4, 1008 planted), 0.73 or more for other faults but coarse grids, 0.28 with
# a length that is 1.25.
_KEPT: Final = 0.5
# Error power by that of rounding to nearest from which this is looked at; sound: 3.4 at most (GPTQ);
# such faults: 14 or more.
_TURNED: Final = 6.0
# The weight's energy then is that of full precision's and of its rounding errors: 0.97 to 1.13.
_LENGTH: Final = (0.85, 1.2)
# In steps. Rounding to nearest is within 0.5 on its own grid and only there.
_HALF_STEP: Final = 0.52
# Share of the squared error in weights that are off by 0.6 to 1.3 of the grid's range; sound: 0.
_WRAPPED: Final = 0.8
# Correlation of factors with a layer's own scales, in logarithms; theirs with anything else is near 0.
_SAME_SCALE: Final = 0.9
_TINY: Final = 1e-300


def power(x: Tensor) -> float:
    """Return the sum of squares."""
    return float(x.square().sum())


def explained(found: Tensor, expected: Tensor, model: Tensor) -> float:
    """Return the share of ``found - expected``'s power that a model of ``found`` accounts for."""
    return 1 - power(found - model) / max(power(found - expected), _TINY)


def factors(found: Tensor, expected: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the least-squares factors along ``dim`` that lead from expected to found."""
    square = expected.square().sum(dim, keepdim=True).clamp(min=_TINY)
    return (found * expected).sum(dim, keepdim=True) / square


def sign(o: OwnBasis) -> Symptom | None:
    """Return the one fault that a weight shows beyond doubt, if it shows one."""
    for check in (_negated, _turned, _unscaled, _wrapped):
        if (found := check(o)) is not None:
            return found
    return None


def _negated(o: OwnBasis) -> Symptom | None:
    """Minus one is a rotation too; it is better called a factor."""
    factor = float(factors(o.Q, o.W, (0, 1)))
    if factor < 0 and explained(o.Q, o.W, factor * o.W) > 0.8:
        return Symptom("scale", f"output is {factor:.2f} times full precision's on every channel")
    return None


def _turned(o: OwnBasis) -> Symptom | None:
    relative = math.sqrt(power(o.Q - o.W) / max(power(o.R), _TINY))
    energy = power(o.Q) / max(power(o.W), _TINY)
    if relative**2 < _TURNED or not _LENGTH[0] < energy < _LENGTH[1]:
        return None
    kept = []
    for Q, W, rounded in ((o.Q, o.W, o.W + o.R), (o.Q.T, o.W.T, (o.W + o.R).T)):
        rounding = power(rounded @ rounded.T - W @ W.T)
        kept.append(math.sqrt(power(Q @ Q.T - W @ W.T) / max(rounding, _TINY)) / relative)
    if min(kept) > _KEPT:
        return None
    side = "input" if kept[0] <= kept[1] else "output"
    cosine = float((o.Q * o.W).sum()) / math.sqrt(max(power(o.Q) * power(o.W), _TINY))
    return Symptom(
        "missing inverse",
        f"the weight keeps its length ({energy:.2f} of the energy) but"
        f" not its direction (cosine {cosine:.2f}): on its {side} side a rotation or a permutation"
        " lacks its inverse",
    )


def _unscaled(o: OwnBasis) -> Symptom | None:
    """Look for factors that are the layer's own scales: smoothing, or a norm's gain, on one side only."""
    Q, W = o.unturned(o.Q), o.unturned(o.W)
    tries = [
        ("input", factors(o.Q, o.W, 0), o.input_scale),
        ("input", factors(Q, W, 0), o.input_scale),
        ("output", factors(o.Q, o.W, 1), o.output_scale),
    ]
    for side, found, scale in tries:
        if scale is None:
            continue
        s, c = scale.double().abs().clamp(min=_TINY).log(), found.abs().clamp(min=_TINY).log()
        s, c = s - s.mean(), c.flatten() - c.mean()
        if float(s.std()) < 0.01:  # all alike: nothing to compare with
            continue
        slope = float(s @ c) / power(s)
        correlation = float(s @ c) / math.sqrt(max(power(s) * power(c), _TINY))
        if abs(correlation) > _SAME_SCALE and 0.8 < abs(slope) < 1.2:
            text = (
                f"each {side} channel is off by the layer's own scale to the power of {slope:+.1f}"
            )
            return Symptom(
                "missing inverse", f"{text}: smoothing or a norm's gain on one side only"
            )
    return None


def _wrapped(o: OwnBasis) -> Symptom | None:
    if not o.scheme.quantizes_weights:
        return None
    error, whole = ((o.Q - o.W) / o.step).abs(), 2**o.scheme.weight_bits
    # Not exactly the range: rounding moves it, and a clip that is wanted.
    gross = (error > 0.6 * whole) & (error < 1.3 * whole)
    if power(error[gross]) < _WRAPPED * power(error):
        return None
    part = 100 * float(gross.double().mean())
    text = f"{part:.1f} % of the weights are off by about {whole} steps, the grid's whole range"
    return Symptom("saturation", f"{text}: their codes wrapped around")


def across(o: OwnBasis) -> Symptom | None:
    """Look for grids along another dimension: within half a step there, and not where they belong."""
    error = (o.Q - o.W).abs()
    worst = float((error / o.step).amax())
    if not o.scheme.quantizes_weights or worst <= _HALF_STEP:
        return None
    for name, step in o.across.items():
        if float((error / step).amax()) <= _HALF_STEP:
            return Symptom(
                "axis",
                f"weights are within half a step of a grid with one scale for each {name}, and up"
                f" to {worst:.1f} steps off the scheme's: the scales run along the wrong axis",
            )
    if float(o.step.amax()) == float(o.step.amin()):
        return None
    levels = o.Q.unique()
    # Twice 2^b where each group has a zero point of its own.
    if len(levels) < 2 or len(levels) > 2 * 2**o.scheme.weight_bits or _steps_differ(o, levels):
        return None
    each = "output channel" if o.scheme.group is None else "group"
    text = f"the whole weight holds {len(levels)} levels: one scale for all"
    return Symptom("axis", f"{text}, where {o.scheme} has one for each {each}")


def _steps_differ(o: OwnBasis, levels: Tensor) -> bool:
    """Whether some groups take every other level only: scales of 1, 2 and 4 share most levels."""
    codes_OGg = (o.grouped(o.Q) / levels.diff().amin()).round()
    wide = codes_OGg[codes_OGg.abs().amax(-1) >= 4]
    return bool((wide.remainder(2) == 0).all(-1).double().mean() > 0.05)
