"""What was done to a weight, read off the error that it left.

A pattern is a simple model of what turned full precision's weight W into the one that a layer holds, Q,
with few free numbers: a factor for each output channel, say. Its *share* is the part of the squared
error Q - W that it explains, less what it explains of rounding to nearest, and less twice what chance
does (of n independent errors, one number explains 1 / n).

Limits stand clear of the largest share among sound linears: both embedded models, six methods,
W4A16-g64, W3A16-g64, W8A8 and W4A4 where a method has them (AWQ at W3 only), 728 linears.
Shapes: I inputs, O outputs, G groups of g weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from dllm_qbench.evaluation.own_basis import OwnBasis
from dllm_qbench.evaluation.weight_signs import Kind, Symptom, explained, factors, power

# A pattern with more numbers is preferred only where it explains this much more of the error, or
# leaves less than half of what the other one leaves.
_EARNED: Final = 0.05
# Error power by that of rounding to nearest from which a clip is a fault. Those that DuQuant and AWQ want
# come to 0.7 to 1.3 (a narrower range has finer steps); range halved: 1.9 at least, 11 in rtn W4.
_CUT_OFF: Final = 1.5
_CLIP: Final = "clipped"
_TINY: Final = 1e-300


def pattern(o: OwnBasis) -> Symptom | None:
    """Return what a weight's error looks like, ``None`` where nothing explains it."""
    if power(o.Q - o.W) == 0.0:
        return None
    best: str | None = None
    shares = pattern_shares(o)
    for name, (least, _rule) in PATTERNS.items():
        if shares[name] >= least and (best is None or _earned(shares[name], shares[best])):
            best = name
    return None if best is None else PATTERNS[best][1](o)[1]


def pattern_shares(o: OwnBasis) -> dict[str, float]:
    """Return the share of every pattern by name."""
    rounded = o.W + o.R
    if power(o.Q - o.W) < _CUT_OFF * power(o.R):
        # A clip that is wanted shrinks weights a little as well: rounding, then, in Q's own range.
        Q_OGg, W_OGg, R_OGg = (o.grouped(x) for x in (o.Q, o.W, o.R))
        kept_OGg = W_OGg.clamp(Q_OGg.amin(-1, keepdim=True), Q_OGg.amax(-1, keepdim=True))
        rounded[:, : W_OGg[0].numel()] = (kept_OGg + R_OGg).flatten(1)
    sound = replace(o, Q=rounded)
    shares = {name: rule(o)[0] for name, (_, rule) in PATTERNS.items()}
    return {
        name: share - (0.0 if name == _CLIP else max(0.0, PATTERNS[name][1](sound)[0]))
        for name, share in shares.items()
    }


def _share(found: Tensor, expected: Tensor, model: Tensor, numbers: int) -> float:
    """Return what a model of so many free numbers explains beyond twice what chance does."""
    return explained(found, expected, model) - 2 * numbers / found.numel()


def _earned(share: float, than: float) -> bool:
    return share > than + _EARNED or 1 - share < (1 - than) / 2


def _scaled(o: OwnBasis) -> tuple[float, Symptom]:
    a = float(factors(o.Q, o.W, (0, 1)))
    share = explained(o.Q, o.W, a * o.W)
    return share, Symptom("scale", f"output is {a:.2f} times full precision's on every channel")


def _scaled_outputs(o: OwnBasis) -> tuple[float, Symptom]:
    a_O1 = factors(o.Q, o.W, 1)
    return _share(o.Q, o.W, a_O1 * o.W, len(o.W)), _said("scale", "output channel", a_O1)


def _scaled_inputs(o: OwnBasis) -> tuple[float, Symptom]:
    c_1I = factors(o.Q, o.W, 0)
    share = _share(o.Q, o.W, c_1I * o.W, c_1I.numel())
    return share, _said("axis", "input channel", c_1I)


def _scaled_unturned(o: OwnBasis) -> tuple[float, Symptom]:
    Q, W = o.unturned(o.Q), o.unturned(o.W)
    c_1I = factors(Q, W, 0)
    share = _share(Q, W, c_1I * W, c_1I.numel())
    return share, _said("axis", "input channel before the rotation", c_1I)


def _scaled_both(o: OwnBasis) -> tuple[float, Symptom]:
    a_O1, b_1I = torch.ones_like(o.W[:, :1]), torch.ones_like(o.W[:1])
    for _ in range(8):  # alternating least squares, which settle in a few rounds
        a_O1 = factors(o.Q, o.W * b_1I, 1)
        b_1I = factors(o.Q, o.W * a_O1, 0)
    share = _share(o.Q, o.W, a_O1 * o.W * b_1I, a_O1.numel() + b_1I.numel())
    return share, _said("axis", "output channel and each input channel", b_1I)


def _scaled_groups(o: OwnBasis) -> tuple[float, Symptom]:
    Q_OGg, W_OGg = o.grouped(o.Q), o.grouped(o.W)
    c_OG1 = factors(Q_OGg, W_OGg, -1)
    share = _share(Q_OGg, W_OGg, c_OG1 * W_OGg, c_OG1.numel())
    return share, _said("scale", "group", c_OG1)


def _scaled_groups_alike(o: OwnBasis) -> tuple[float, Symptom]:
    Q_OGg, W_OGg = o.grouped(o.Q), o.grouped(o.W)
    c_1G1 = factors(Q_OGg, W_OGg, (0, 2))
    share = _share(Q_OGg, W_OGg, c_1G1 * W_OGg, c_1G1.numel())
    return share, _said("scale", "group, the same in all outputs,", c_1G1)


def _said(kind: Kind, what: str, found: Tensor) -> Symptom:
    low, high = (float(found.quantile(q)) for q in (0.05, 0.95))
    return Symptom(kind, f"each {what} has a factor of its own, {low:.2f} to {high:.2f}")


def _clipped(o: OwnBasis) -> tuple[float, Symptom]:
    Q_OGg, W_OGg = o.grouped(o.Q), o.grouped(o.W)
    low, high = Q_OGg.amin(-1, keepdim=True), Q_OGg.amax(-1, keepdim=True)
    kept = Q_OGg.abs().amax(-1) / W_OGg.abs().amax(-1).clamp(min=_TINY)
    text = f"weights are cut off at {float(kept.median()):.2f} of their group's largest magnitude"
    harmful = power(o.Q - o.W) > _CUT_OFF * power(o.R)
    share = explained(Q_OGg, W_OGg, W_OGg.clamp(low, high)) if harmful else 0.0
    return share, Symptom("saturation", text)


def _shifted(o: OwnBasis) -> tuple[float, Symptom]:
    steps = float(factors(o.Q - o.W, o.step, (0, 1)))
    text = f"weights are {steps:+.2f} of a step off on average, where rounding to nearest is at 0"
    return explained(o.Q, o.W, o.W + steps * o.step), Symptom("offset", text)


def _shifted_to_zero(o: OwnBasis) -> tuple[float, Symptom]:
    outward = o.step * o.W.sign()
    steps = float(factors(o.Q - o.W, outward, (0, 1)))
    side = "small: truncated instead of rounded?" if steps < 0 else "large"
    text = f"in magnitude weights are {abs(steps):.2f} of a step too {side}"
    return explained(o.Q, o.W, o.W + steps * outward), Symptom("offset", text)


def _shifted_groups(o: OwnBasis) -> tuple[float, Symptom]:
    Q_OGg, W_OGg, step_OGg = (o.grouped(x) for x in (o.Q, o.W, o.step))
    shift = (Q_OGg - W_OGg).mean(-1, keepdim=True)
    steps = float((shift / step_OGg[..., :1]).abs().median())
    text = f"each group is off by a shift of its own, {steps:.2f} steps in the median: zero points"
    return _share(Q_OGg, W_OGg, W_OGg + shift, shift.numel()), Symptom("offset", text)


Rule = Callable[[OwnBasis], tuple[float, Symptom]]

# Name: least share, and the rule; in rising order of free numbers. The largest share among sound linears
# is 0.06, in DuQuant W4A4, which clips weights at 0.8 of their range on purpose (0.26 of "clipped", were
# it not for _CUT_OFF).
PATTERNS: Final[Mapping[str, tuple[float, Rule]]] = {
    "one factor": (0.12, _scaled),
    "one offset": (0.12, _shifted),
    "an offset towards 0": (0.12, _shifted_to_zero),
    "factors of groups, alike in all outputs": (0.12, _scaled_groups_alike),
    "factors of outputs": (0.12, _scaled_outputs),
    _CLIP: (0.45, _clipped),
    "factors of inputs": (0.12, _scaled_inputs),
    "factors of inputs, unturned": (0.12, _scaled_unturned),
    "factors of both": (0.12, _scaled_both),
    "offsets of groups": (0.12, _shifted_groups),
    "factors of groups": (0.12, _scaled_groups),
}
