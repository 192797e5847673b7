"""Faults of the activations: their scales, their rounding, where rounding sits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.quant import layers
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import QuantLinear, quantize_tokens
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from tests.meta.faults.fault import DREAM, of_method
from tests.meta.faults.patches import around_method, replaced, wrapped


def _rounded(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    scale = scale.clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scale).round().clamp(low, high) * scale


def per_tensor(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2 ** (bits - 1) - 1
    return _rounded(x, x.abs().amax() * clip / last, -last, last)


def per_channel(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2 ** (bits - 1) - 1
    channels = tuple(range(x.dim() - 1))
    return _rounded(x, x.abs().amax(channels, keepdim=True) * clip / last, -last, last)


def floored(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(-1, keepdim=True) * clip / last).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scale).floor().clamp(-last, last) * scale


def wrapping(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    half = 2 ** (bits - 1)
    scale = (x.abs().amax(-1, keepdim=True) * clip / half).clamp(min=torch.finfo(x.dtype).tiny)
    return (((x / scale).round() + half) % (2 * half) - half) * scale


def unsigned(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2**bits - 1
    return _rounded(x, x.amax(-1, keepdim=True) * clip / last, 0, last)


def clipped(sound: Any, x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    found: Tensor = sound(x, bits, 0.9 * clip)
    return found


def of_the_token_before(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True) * clip / last
    if x.dim() > 1:
        scale = torch.cat((scale[..., :1, :], scale[..., :-1, :]), dim=-2)
    return _rounded(x, scale, -last, last)


def at_eight_bits(sound: Any, x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    found: Tensor = sound(x, 8, clip)
    return found


def left_alone(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    return x


def rounded_before_it_is_turned(self: QuantLinear, x: Tensor) -> Tensor:
    if self.scheme.act_bits != UNTOUCHED:
        x = quantize_tokens(x, self.scheme.act_bits, self.act_clip)
    return F.linear(self.turned(x), self.weight, self.bias)


def with_stale_scales(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Fix each layer's activation scale at what its first calibration sequence needs."""

    def around(
        apply: Any, model: Any, scheme: Scheme, data: Calibration, *rest: Any, **settings: Any
    ) -> None:
        apply(model, scheme, data, *rest, **settings)
        hooks = [
            module.register_forward_pre_hook(_remember)
            for module in model.modules()
            if isinstance(module, QuantLinear)
        ]
        model(input_ids=data.ids[:1], attention_mask=data.attention_mask[:1])
        for hook in hooks:
            hook.remove()

    def forward(self: QuantLinear, x: Tensor) -> Tensor:
        x = self.turned(x)
        if self.scheme.act_bits != UNTOUCHED:
            last = 2 ** (self.scheme.act_bits - 1) - 1
            # While the method itself calibrates there is none yet.
            absmax = getattr(self, "stale_absmax", None)
            scale = (x.abs().amax(-1, keepdim=True) if absmax is None else absmax) / last
            x = _rounded(x, scale, -last, last)
        return F.linear(x, self.weight, self.bias)

    around_method(method, around)(monkeypatch)
    monkeypatch.setattr(QuantLinear, "forward", forward)


def _remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(module, QuantLinear)
    module.stale_absmax = module.turned(args[0]).abs().amax()


def stale_for(method: str) -> Any:
    return lambda monkeypatch: with_stale_scales(monkeypatch, method)


def _tokens(by: Any) -> Any:
    return replaced((layers, "quantize_tokens"), by=by)


FAULTS = (
    of_method(
        "activations-per-tensor",
        "rtn",
        "W4A4",
        "general",
        _tokens(per_tensor),
        "All tokens of a batch share one activation scale.",
    ),
    of_method(
        "activations-per-tensor",
        "smoothquant",
        "W8A8",
        "math",
        _tokens(per_tensor),
        "All tokens of a batch share one activation scale.",
        model=DREAM,
    ),
    of_method(
        "activations-per-channel",
        "quarot",
        "W4A4",
        "math",
        _tokens(per_channel),
        "Activation scales run along the wrong axis: one for each channel instead of each token.",
    ),
    of_method(
        "activations-floored",
        "rtn",
        "W8A8",
        "math",
        _tokens(floored),
        "Activations are truncated to the level below instead of rounded.",
        model=DREAM,
    ),
    of_method(
        "activations-wrap-around",
        "smoothquant",
        "W8A8",
        "general",
        _tokens(wrapping),
        "With scale absmax / 128 a token's largest positive value is stored as -128.",
    ),
    of_method(
        "activations-unsigned",
        "quarot",
        "W8A8",
        "general",
        _tokens(unsigned),
        "Activations are stored as unsigned integers without a zero point: negative ones become 0.",
        model=DREAM,
    ),
    of_method(
        "activations-clipped-at-0.9",
        "quarot",
        "W8A8",
        "math",
        wrapped(layers, "quantize_tokens", clipped),
        "Activations are clipped at 0.9 of a token's largest magnitude.",
    ),
    of_method(
        "activation-scale-of-the-token-before",
        "duquant",
        "W8A8",
        "general",
        _tokens(of_the_token_before),
        "Token t is rounded with the scale of token t - 1.",
    ),
    of_method(
        "activations-at-8-bits-instead-of-4",
        "quarot",
        "W4A4",
        "math",
        wrapped(layers, "quantize_tokens", at_eight_bits),
        "The scheme says 4-bit activations, they have 8.",
        model=DREAM,
    ),
    of_method(
        "activations-not-rounded",
        "smoothquant",
        "W4A4",
        "general",
        _tokens(left_alone),
        "Activations are not rounded at all.",
        model=DREAM,
    ),
    of_method(
        "activations-rounded-before-the-rotation",
        "duquant",
        "W4A4",
        "general",
        replaced((QuantLinear, "forward"), by=rounded_before_it_is_turned),
        "Inputs are rounded first and rotated then.",
    ),
    of_method(
        "activations-rounded-before-the-rotation",
        "quarot",
        "W8A8",
        "math",
        replaced((QuantLinear, "forward"), by=rounded_before_it_is_turned),
        "down's input is rounded first and rotated then, so that massive activations set the scale.",
    ),
    of_method(
        "stale-activation-scales",
        "smoothquant",
        "W8A8",
        "math",
        stale_for("smoothquant"),
        "Activation scales are fixed at the first calibration sequence's where dynamic ones were asked.",
    ),
    of_method(
        "stale-activation-scales",
        "quarot",
        "W4A4",
        "math",
        stale_for("quarot"),
        "Activation scales are fixed at the first calibration sequence's where dynamic ones were asked.",
        model=DREAM,
    ),
)
