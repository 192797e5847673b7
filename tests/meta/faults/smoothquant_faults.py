"""Faults of SmoothQuant, and of DuQuant's smoothing, which is the same code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.methods import smoothquant
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import replaced, wrapped


def direction_flipped(sound: Any, act_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    found: Tensor = sound(act_max, weight_max, alpha)
    return 1 / found


def strong_alpha(sound: Any, act_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    found: Tensor = sound(act_max, weight_max, 0.9)
    return found


def one_factor(sound: Any, act_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    found: Tensor = sound(act_max.amax(), weight_max.amax(), alpha)
    return found.expand_as(act_max).contiguous()


def norms_left(sound: Any, writer: Any, s: Tensor) -> None:
    if writer.weight.dim() == 2:
        sound(writer, s)


def linears_left(sound: Any, writer: Any, s: Tensor) -> None:
    if writer.weight.dim() == 1:
        sound(writer, s)


def divided_twice(sound: Any, writer: Any, s: Tensor) -> None:
    sound(writer, s.square())


def multiplied(sound: Any, writer: Any, s: Tensor) -> None:
    sound(writer, 1 / s)


def without_bias(writer: Any, s: Tensor) -> None:
    weight = writer.weight.data
    weight.copy_(weight.double() / (s if weight.dim() == 1 else s[:, None]))


def of_the_block_before(sound: Any, model: nn.Module, data: Any, *rest: Any) -> Any:
    found = sound(model, data, *rest)
    return [found[0], *found[:-1]]


def of_the_first_token(sound: Any, model: nn.Module, data: Any, *rest: Any) -> Any:
    only = type(data)(data.ids[:, :1], data.attention_mask[:, :1], data.recipe)
    return sound(model, only, *rest)


def by_neighbour(sound: Any, writer: Any, s: Tensor) -> None:
    sound(writer, torch.cat((s[:1], s[:-1])))


def _fault(name: str, scheme: str, task: str, plant: Any, what: str, **more: Any) -> Fault:
    return Fault(f"smoothquant-{name}", "harmful", "smoothquant", scheme, task, plant, what, **more)


FAULTS = (
    _fault(
        "alpha-flipped",
        "W8A8",
        "math",
        wrapped(smoothquant, "smoothing_factors", direction_flipped),
        "s is turned upside down: outliers of the weights move into the activations.",
    ),
    _fault(
        "alpha-0.9",
        "W4A4",
        "math",
        wrapped(smoothquant, "smoothing_factors", strong_alpha),
        "The recipe says alpha 0.5, the factors are those of 0.9.",
    ),
    _fault(
        "one-factor-for-all-channels",
        "W8A8",
        "math",
        wrapped(smoothquant, "smoothing_factors", one_factor),
        "Maxima are taken over the whole tensor, so that every channel gets the same s: nothing is smoothed.",
        model=DREAM,
    ),
    _fault(
        "not-folded-into-the-norms",
        "W8A8",
        "general",
        wrapped(smoothquant, "_divide", norms_left),
        "Weights behind a norm are multiplied by s, its gain is not divided by it.",
    ),
    _fault(
        "up-and-v-not-divided",
        "W8A8",
        "general",
        wrapped(smoothquant, "_divide", linears_left),
        "down and o are multiplied by s, up and v, which write their inputs, are not divided by it.",
        model=DREAM,
    ),
    _fault(
        "folded-twice",
        "W8A8",
        "math",
        wrapped(smoothquant, "_divide", divided_twice),
        "What writes a channel is divided by s twice.",
    ),
    _fault(
        "multiplied-instead-of-divided",
        "W8A8",
        "math",
        wrapped(smoothquant, "_divide", multiplied),
        "What writes a channel is multiplied by s instead of divided.",
    ),
    _fault(
        "bias-of-v-not-divided",
        "W8A8",
        "math",
        replaced((smoothquant, "_divide"), by=without_bias),
        "v's weight is divided by s, its bias is not.",
        model=DREAM,
    ),
    _fault(
        "channels-off-by-one",
        "W8A8",
        "math",
        wrapped(smoothquant, "_divide", by_neighbour),
        "What writes channel j is divided by the s of channel j - 1.",
    ),
    _fault(
        "maxima-of-the-block-before",
        "W4A4",
        "math",
        wrapped(smoothquant, "channel_maxima", of_the_block_before),
        "Block i is smoothed with the activations' maxima of block i - 1.",
    ),
    _fault(
        "maxima-of-the-first-token-only",
        "W4A4",
        "math",
        wrapped(smoothquant, "channel_maxima", of_the_first_token),
        "Maxima are taken over the first token of each sequence instead of over all.",
        model=DREAM,
    ),
    Fault(
        "duquant-smoothing-not-folded",
        "harmful",
        "duquant",
        "W8A8",
        "general",
        wrapped(smoothquant, "_divide", norms_left),
        "Weights behind a norm are multiplied by DuQuant's s, its gain is not divided by it.",
    ),
)
