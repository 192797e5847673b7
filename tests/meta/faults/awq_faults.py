"""Faults of AWQ: what its scales come from, and where they are folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.quant.layers import BLOCK_GROUPS
from dllm_qbench.quant.methods import awq
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import replaced, wrapped

_NORMS = ("input_layernorm", "post_attention_layernorm")


def _gains(block: Any) -> dict[str, Tensor]:
    return {name: block.get_submodule(name).weight.data.clone() for name in _NORMS}


def not_folded(sound: Any, block: Any, *rest: Any) -> None:
    before = _gains(block)
    sound(block, *rest)
    for name, gain in before.items():
        block.get_submodule(name).weight.data.copy_(gain)


def folded_twice(sound: Any, block: Any, *rest: Any) -> None:
    before = _gains(block)
    sound(block, *rest)
    for name, gain in before.items():
        folded = block.get_submodule(name).weight.data
        folded.mul_(torch.where(gain == 0, 1.0, folded / gain))


def from_weights(sound: Any, self: Any, *args: Any) -> None:
    sound(self, *args)
    self._magnitude_I = torch.cat(self._weights).abs().mean(0)
    if self._names == BLOCK_GROUPS[1]:
        self._magnitude_I = awq._share_heads(self._block, self._magnitude_I)


def last_ratio(
    sound: Any, self: Any, scheme: Any, symmetric: bool, ratios: int, *rest: Any
) -> awq.Choice:
    found: awq.Choice = sound(self, scheme, symmetric, ratios, *rest)
    if not scheme.quantizes_weights:
        return found
    return replace(found, s=awq.scaling_factors(self._magnitude_I, (ratios - 1) / ratios))


def clips_exchanged(
    sound: Any, block: Any, where: str, choices: Mapping[Any, awq.Choice], *rest: Any
) -> None:
    turned = {
        names: replace(choice, shares=choice.shares[::-1]) for names, choice in choices.items()
    }
    sound(block, where, turned, *rest)


def bias_left(sound: Any, block: Any, *rest: Any) -> None:
    bias = block.self_attn.v_proj.bias.data.clone()
    sound(block, *rest)
    block.self_attn.v_proj.bias.data.copy_(bias)


def heads_interleaved(block: Any, magnitude: Tensor) -> Tensor:
    groups, width = int(block.self_attn.num_key_value_groups), int(block.self_attn.head_dim)
    heads = magnitude.view(groups, -1, width)
    return heads.mean(0, keepdim=True).expand_as(heads).reshape(-1)


def into_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(awq._WRITERS, BLOCK_GROUPS[3], "mlp.gate_proj")


def loss_that_leaves_its_weights(
    sound: Any, self: Any, weights: Sequence[Tensor], parts: Any
) -> float:
    loss: float = sound(self, weights, parts)
    for linear, weight in zip(self._linears, weights, strict=True):
        linear.weight.data = weight.to(linear.weight.dtype)
    return loss


def always_clipped(sound: Any, self: Any, *rest: Any) -> awq.Choice:
    scheme, _symmetric, _ratios, clip_steps, unclipped = rest
    found: awq.Choice = sound(self, *rest)
    if not scheme.quantizes_weights or not clip_steps:
        return found
    shares = tuple(
        None if name.rpartition(".")[2] in unclipped else torch.tensor(0.5, dtype=torch.float64)
        for name in self._names
    )
    return replace(found, shares=shares)


def _fault(name: str, scheme: str, task: str, plant: Any, what: str, **more: Any) -> Fault:
    return Fault(f"awq-{name}", "harmful", "awq", scheme, task, plant, what, **more)


FAULTS = (
    _fault(
        "scale-not-folded",
        "W4A16-g64",
        "general",
        wrapped(awq, "_replace", not_folded),
        "Weights are multiplied by s, but the norms before them are not divided by it.",
    ),
    _fault(
        "scale-folded-twice",
        "W4A16-g64",
        "math",
        wrapped(awq, "_replace", folded_twice),
        "The norms are divided by s twice.",
        model=DREAM,
    ),
    _fault(
        "scale-from-weights-instead-of-activations",
        "W3A16-g64",
        "math",
        wrapped(awq._Place, "__init__", from_weights),
        "s comes from the mean magnitude of the weights that read a channel, not of the channel.",
    ),
    _fault(
        "last-ratio-kept",
        "W4A16-g64",
        "math",
        wrapped(awq._Place, "search", last_ratio),
        "The search hands back the ratio that it tried last instead of the best one.",
    ),
    _fault(
        "clips-of-gate-applied-to-up",
        "W3A16-g64",
        "math",
        wrapped(awq, "_replace", clips_exchanged),
        "Clips go to the linears of a group in the wrong order: gate's to up, v's to q.",
    ),
    _fault(
        "clip-search-takes-its-last-step",
        "W4A16-g64",
        "math",
        wrapped(awq._Place, "search", always_clipped),
        "The clip search hands back its last step, 0.5, for every group.",
        model=DREAM,
    ),
    _fault(
        "bias-of-v-not-divided",
        "W4A16-g64",
        "math",
        wrapped(awq, "_replace", bias_left),
        "v's weight is divided by o's s, its bias is not.",
        model=DREAM,
    ),
    _fault(
        "gqa-head-mapping-wrong",
        "W4A16-g64",
        "general",
        replaced((awq, "_share_heads"), by=heads_interleaved),
        "Query heads share s with the heads that lie a group apart, not with those that read one value head.",
        model=DREAM,
    ),
    _fault(
        "down-scale-folded-into-the-gate",
        "W4A16-g64",
        "general",
        into_the_gate,
        "down's s is folded into the gate, whose SiLU does not commute with a scale, instead of into up.",
    ),
    _fault(
        "weights-not-restored-after-the-search",
        "W3A16-g64",
        "math",
        wrapped(awq._Place, "_loss_of_half", loss_that_leaves_its_weights),
        "The search leaves the weights that it tried last in the model, and they are rounded again.",
    ),
)
