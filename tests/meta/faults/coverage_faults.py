"""Faults of coverage: a layer skipped, quantized twice, at other bits; what should stay, rounded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.grid import find_grid
from dllm_qbench.quant.layers import QuantLinear, put
from dllm_qbench.quant.methods import gptq, quarot, rtn
from dllm_qbench.quant.scheme import Scheme
from tests.meta.faults.fault import DREAM, of_method
from tests.meta.faults.patches import after_method, quant_linear, replaced, wrapped

ONE = "model.layers.1.mlp.down_proj"


def one_left_out(model: nn.Module, before: nn.Module, _scheme: Scheme) -> None:
    put(model, ONE, before.get_submodule(ONE))


def names_that_match_nothing(sound: Any, *args: Any) -> Iterator[Any]:
    for name, weight, grid in sound(*args):
        if not name.endswith(("q_proj", "k_proj", "v_proj")):
            yield name, weight, grid


def last_block_missed(sound: Any, model: Any, *rest: Any) -> Iterator[Any]:
    last = len(model.model.layers) - 1
    return ((index, block) for index, block in sound(model, *rest) if index != last)


def weight_not_written(model: nn.Module, before: nn.Module, _scheme: Scheme) -> None:
    weight = before.get_parameter(f"{ONE}.weight").detach()
    quant_linear(model, ONE).weight.data.copy_(weight)


def one_at_a_bit_less(sound: Any, model: nn.Module, name: str, layer: QuantLinear) -> None:
    if name == ONE and layer.scheme.quantizes_weights:
        scheme = layer.scheme
        grid = find_grid(layer.weight, scheme.weight_bits - 1, False, scheme.group)
        layer.requantize(grid.nearest(layer.weight), grid, scheme)
    sound(model, name, layer)


def one_rounded_before(sound: Any, block: Any, where: str, *rest: Any) -> None:
    if ONE.startswith(f"{where}."):
        weight = block.get_submodule(ONE.removeprefix(f"{where}.")).weight.data
        weight.copy_(find_grid(weight, 4, True).nearest(weight))
    sound(block, where, *rest)


def _rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    if not scheme.quantizes_weights:
        return weight.clone()
    return find_grid(weight, scheme.weight_bits, False, scheme.group).nearest(weight)


def head_quantized(model: Any, _before: nn.Module, scheme: Scheme) -> None:
    weight = model.lm_head.weight.detach()
    grid = None
    if scheme.quantizes_weights:
        grid = find_grid(weight, scheme.weight_bits, False, scheme.group)
    put(model, "lm_head", QuantLinear(_rounded(weight, scheme), None, grid, scheme, rtn.NAME))


def head_rounded(model: Any, _before: nn.Module, scheme: Scheme) -> None:
    model.lm_head.weight.data.copy_(_rounded(model.lm_head.weight.detach(), scheme))


def embeddings_rounded(model: Any, _before: nn.Module, scheme: Scheme) -> None:
    weight = model.model.embed_tokens.weight
    weight.data.copy_(_rounded(weight.detach(), scheme))


def norms_rounded(model: nn.Module, _before: nn.Module, scheme: Scheme) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.copy_(_rounded(parameter.detach(), scheme))


def biases_dropped(weight: Tensor, _bias: Any, *rest: Any) -> QuantLinear:
    return QuantLinear(weight, None, *rest)


def biases_rounded(model: nn.Module, _before: nn.Module, scheme: Scheme) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(_rounded(parameter.detach(), scheme))


def gate_and_up_exchanged(model: nn.Module, _before: nn.Module, _scheme: Scheme) -> None:
    mlp: Any = model.get_submodule("model.layers.1.mlp")
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def block_written_twice(model: nn.Module, _before: nn.Module, _scheme: Scheme) -> None:
    inner: Any = model.get_submodule("model")
    inner.layers[1] = copy.deepcopy(inner.layers[0])


def parameters_shared(self: DiffusionLM) -> DiffusionLM:
    kept = {id(parameter): parameter for parameter in self.model.parameters()}
    return replace(self, model=copy.deepcopy(self.model, kept), _fingerprint=None)


def channel_dropped(model: nn.Module, _before: nn.Module, _scheme: Scheme) -> None:
    layer = quant_linear(model, ONE)
    layer.weight.data[:, -1] = torch.zeros_like(layer.weight[:, -1])


FAULTS = (
    of_method(
        "one-linear-skipped",
        "rtn",
        "W3A16-g64",
        "math",
        after_method("rtn", one_left_out),
        "One linear keeps 16 bits: its name is missing from the list.",
        linear=ONE,
    ),
    of_method(
        "one-weight-not-written-back",
        "gptq",
        "W3A16-g64",
        "math",
        after_method("gptq", weight_not_written),
        "One linear says that it is quantized and still holds its 16-bit weight.",
        linear=ONE,
    ),
    of_method(
        "names-that-match-nothing",
        "gptq",
        "W4A16-g64",
        "math",
        wrapped(gptq, "solved_weights", names_that_match_nothing),
        "The configured names of q, k and v match no linear, which then keep 16 bits (a released bug).",
    ),
    of_method(
        "last-block-missed",
        "gptq",
        "W3A16-g64",
        "general",
        wrapped(gptq, "visited", last_block_missed),
        "The loop over blocks ends one early: the last block keeps 16 bits.",
        model=DREAM,
    ),
    of_method(
        "one-linear-at-3-bits-instead-of-4",
        "gptq",
        "W4A16-g64",
        "math",
        wrapped(gptq, "put", one_at_a_bit_less),
        "One linear gets one bit less than the scheme says.",
        linear=ONE,
    ),
    of_method(
        "one-linear-quantized-twice",
        "quarot",
        "W4A4",
        "math",
        wrapped(quarot, "_rotate_block", one_rounded_before),
        "One linear is rounded to 4 bits before the rotation and again after it.",
        linear=ONE,
    ),
    of_method(
        "lm-head-quantized",
        "rtn",
        "W3A16-g64",
        "general",
        after_method("rtn", head_quantized),
        "The LM head is quantized as well: LLaDA calls it ff_out, as it does every down projection.",
    ),
    of_method(
        "lm-head-rounded-in-place",
        "rtn",
        "W3A16-g64",
        "math",
        after_method("rtn", head_rounded),
        "The LM head's weights are rounded in place; it still looks like a plain linear.",
        model=DREAM,
    ),
    of_method(
        "embeddings-rounded-in-place",
        "rtn",
        "W4A16-g64",
        "math",
        after_method("rtn", embeddings_rounded),
        "The embeddings are rounded to the weights' bits.",
    ),
    of_method(
        "norm-gains-rounded",
        "duquant",
        "W4A4",
        "math",
        after_method("duquant", norms_rounded),
        "Norm gains are rounded to the weights' bits.",
    ),
    of_method(
        "biases-dropped",
        "rtn",
        "W4A16-g64",
        "general",
        replaced((rtn, "QuantLinear"), by=biases_dropped),
        "The layer that replaces a linear does not take over its bias.",
        model=DREAM,
    ),
    of_method(
        "biases-rounded",
        "smoothquant",
        "W4A4",
        "math",
        after_method("smoothquant", biases_rounded),
        "Biases are rounded to the weights' bits.",
        model=DREAM,
    ),
    of_method(
        "gate-and-up-exchanged",
        "awq",
        "W4A16-g64",
        "general",
        after_method("awq", gate_and_up_exchanged),
        "In one block gate and up are written to each other's place.",
    ),
    of_method(
        "block-written-twice",
        "quarot",
        "W8A8",
        "general",
        after_method("quarot", block_written_twice),
        "Block 0 is also written where block 1 belongs: two shards with one index.",
    ),
    of_method(
        "last-input-channel-dropped",
        "rtn",
        "W8A8",
        "code",
        after_method("rtn", channel_dropped),
        "A loop over the input channels of one linear ends one early: the last one's weights are 0.",
        linear=ONE,
    ),
    of_method(
        "full-precision-model-changed",
        "smoothquant",
        "W8A8",
        "math",
        replaced((DiffusionLM, "clone"), by=parameters_shared),
        "The copy to be quantized shares its parameters with the full-precision model, which is changed too.",
    ),
)
