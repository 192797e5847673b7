"""Faults of QuaRot's rotations; DuQuant's are in ``duquant_faults.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm_qbench.quant import layers
from dllm_qbench.quant.layers import HadamardRotation, blocks
from dllm_qbench.quant.methods import gptq, quarot
from dllm_qbench.quant.rotation import block_hadamard
from tests.meta.faults.fault import DREAM, Fault
from tests.meta.faults.patches import quant_linear, replaced, wrapped


def no_online_hadamard(
    sound: Any, block: nn.Module, name: str, *rest: Any, online: bool = False
) -> None:
    sound(block, name, *rest, online=online)
    if online:
        quant_linear(block, name).transform = None


def no_inverse_in_the_weight(
    sound: Any, block: nn.Module, name: str, *rest: Any, online: bool = False
) -> None:
    sound(block, name, *rest, online=online)
    if online:
        layer = quant_linear(block, name)
        assert layer.transform is not None
        weight = layer.transform.inverse(layer.weight.double()).to(layer.weight.dtype)
        layer.requantize(weight, None, layer.scheme)


class Unnormalised(HadamardRotation):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.width**0.5


def unnormalised_online(
    sound: Any, block: nn.Module, name: str, *rest: Any, online: bool = False
) -> None:
    sound(block, name, *rest, online=online)
    if online:
        layer = quant_linear(block, name)
        layer.transform = Unnormalised(layer.in_features)


def paley_part_unnormalised(sound: Any, x: Tensor) -> Tensor:
    _, _, m = block_hadamard(x.shape[-1])
    found: Tensor = sound(x) * m**0.5
    return found


def keys_too(
    sound: Any,
    block: nn.Module,
    name: str,
    gain: Any,
    reads: Any,
    writes: Any,
    online: bool = False,
) -> None:
    sound(block, name, gain, reads, writes, online=online)
    if name == "self_attn.v_proj":
        k_proj = quant_linear(block, "self_attn.k_proj")
        turned = writes(k_proj.weight.double().T).T.to(k_proj.weight.dtype)
        k_proj.requantize(turned.contiguous(), None, k_proj.scheme)


def heads_interleaved(
    sound: Any, block: Any, name: str, gain: Any, reads: Any, writes: Any, online: bool = False
) -> None:
    if name == "self_attn.o_proj":
        groups, width = int(block.self_attn.num_key_value_groups), int(block.self_attn.head_dim)
        value_signs = reads.signs.view(-1, groups, width)[:, 0]
        reads = HadamardRotation(width, value_signs.repeat(groups, 1).reshape(-1))
    sound(block, name, gain, reads, writes, online=online)


def unsigned_output(
    sound: Any,
    block: nn.Module,
    name: str,
    gain: Any,
    reads: Any,
    writes: Any,
    online: bool = False,
) -> None:
    if name == "mlp.down_proj":
        writes = HadamardRotation(writes.width)
    sound(block, name, gain, reads, writes, online=online)


def gain_left_in_the_norm(norm: Any, where: str) -> Tensor:
    gain: Tensor = norm.weight.double().clone()
    return gain


def gain_not_folded(norm: Any, where: str) -> Tensor:
    return torch.ones_like(norm.weight, dtype=torch.float64)


def final_gain_lost(sound: Any, norm: Any, where: str) -> Tensor:
    gain: Tensor = sound(norm, where)
    return torch.ones_like(gain) if where == "model.norm" else gain


class Skewed(HadamardRotation):
    """R + 0.01 P with P a permutation: 1e-2 off orthogonal, and its inverse still R^T."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-2 * x.roll(1, -1)


def skewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarot, "HadamardRotation", Skewed)


def head_left(sound: Any, model: Any, seed: int, *rest: Any) -> None:
    head, gain = model.lm_head.weight.data.double(), model.model.norm.weight.data.double()
    sound(model, seed, *rest)
    model.lm_head.weight.data.copy_(head * gain)


def embeddings_centred(sound: Any, model: Any, seed: int, *rest: Any) -> None:
    embedding = model.model.embed_tokens.weight.data
    embedding.sub_(embedding.mean(-1, keepdim=True))
    sound(model, seed, *rest)


def epsilon_of_llada(sound: Any, model: Any, seed: int, *rest: Any) -> None:
    sound(model, seed, *rest)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5


class QueriesOnly(HadamardRotation):
    """Knows queries by their number of heads: with grouped heads there are fewer keys."""

    def __init__(self, width: int, query_heads: int) -> None:
        super().__init__(width)
        self.query_heads = query_heads

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] == self.query_heads else x


def queries_only(sound: Any, model: Any, seed: int, *rest: Any) -> None:
    sound(model, seed, *rest)
    for block in blocks(model):
        attention: Any = block.self_attn
        attention.query_key_rotation = QueriesOnly(
            int(attention.head_dim), int(model.config.num_attention_heads)
        )


def hessian_of_unrotated_inputs(sound: Any, weight: Tensor, hessian: Tensor, *rest: Any) -> Any:
    outputs, inputs = weight.shape
    if inputs > outputs:  # down: the only linear with an online rotation
        R4 = HadamardRotation(inputs)
        hessian = R4.inverse(R4.inverse(hessian).T).T
    return sound(weight, hessian, *rest)


def unseeded_signs(n: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (n,)).double() * 2 - 1


def _fault(name: str, scheme: str, task: str, plant: Any, what: str, **more: Any) -> Fault:
    return Fault(f"quarot-{name}", "harmful", "quarot", scheme, task, plant, what, **more)


FAULTS = (
    _fault(
        "online-hadamard-missing",
        "W4A4",
        "general",
        wrapped(quarot, "_turn", no_online_hadamard),
        "down's weight is rotated by R4, its input is not.",
    ),
    _fault(
        "online-hadamard-missing-its-inverse",
        "W8A8",
        "general",
        wrapped(quarot, "_turn", no_inverse_in_the_weight),
        "down's input is rotated by R4, its weight is not.",
        model=DREAM,
    ),
    _fault(
        "online-hadamard-not-normalised",
        "W8A8",
        "general",
        wrapped(quarot, "_turn", unnormalised_online),
        "The online transform of down's input leaves out 1 / sqrt(n).",
    ),
    _fault(
        "normalisation-forgets-the-paley-part",
        "W4A4",
        "math",
        wrapped(layers, "hadamard_transform", paley_part_unnormalised),
        "Sizes that are no power of two are divided by the root of their power of two only.",
    ),
    _fault(
        "r2-applied-to-k",
        "W8A8",
        "math",
        wrapped(quarot, "_turn", keys_too),
        "k is rotated by R2 as v is, queries are not, and RoPE would not commute with it either.",
    ),
    _fault(
        "gqa-head-mapping-wrong",
        "W8A8",
        "math",
        wrapped(quarot, "_turn", heads_interleaved),
        "o undoes R2 as if value heads were dealt to query heads in turn instead of in groups.",
        model=DREAM,
    ),
    _fault(
        "signs-on-one-side-only",
        "W4A4",
        "general",
        wrapped(quarot, "_turn", unsigned_output),
        "down writes to the residual stream without R1's random signs.",
    ),
    _fault(
        "norm-gain-folded-twice",
        "W4A4",
        "math",
        replaced((quarot, "_take_gain"), by=gain_left_in_the_norm),
        "Norm gains are folded into the weights and stay in the norms as well.",
    ),
    _fault(
        "norm-gain-not-folded",
        "W8A8",
        "math",
        replaced((quarot, "_take_gain"), by=gain_not_folded),
        "The residual stream is rotated with the gains still in the norms, which do not commute with it.",
        model=DREAM,
    ),
    _fault(
        "final-norm-gain-lost",
        "W8A8",
        "code",
        wrapped(quarot, "_take_gain", final_gain_lost),
        "The last norm's gain is set to 1 and not folded into the LM head.",
    ),
    _fault(
        "rotation-1e-2-off-orthogonal",
        "W8A8",
        "math",
        skewed,
        "All rotations are 1e-2 off orthogonal.",
    ),
    _fault(
        "lm-head-not-rotated",
        "W8A8",
        "general",
        wrapped(quarot, "rotate", head_left),
        "The LM head reads the rotated stream with its own weights.",
        model=DREAM,
    ),
    _fault(
        "embedding-mean-subtracted",
        "W8A8",
        "math",
        wrapped(quarot, "rotate", embeddings_centred),
        "The mean of each embedding is subtracted, as for LayerNorm (a bug of the released code).",
    ),
    _fault(
        "epsilon-of-another-model",
        "W8A8",
        "math",
        wrapped(quarot, "rotate", epsilon_of_llada),
        "Norms get epsilon 1e-5, which Dream does not have (a bug of the released code).",
        model=DREAM,
    ),
    _fault(
        "r3-on-queries-only",
        "W8A8",
        "math",
        wrapped(quarot, "rotate", queries_only),
        "Queries are rotated after RoPE, keys are not.",
        model=DREAM,
    ),
    _fault(
        "hessian-of-unrotated-inputs",
        "W4A4",
        "math",
        wrapped(gptq, "solve", hessian_of_unrotated_inputs),
        "GPTQ solves down's rotated weight against its unrotated inputs.",
    ),
    _fault(
        "rotation-without-a-seed",
        "W8A8",
        "math",
        replaced((quarot, "random_signs"), by=unseeded_signs),
        "Signs are drawn from the global generator: no run gives the same bits as the one before.",
    ),
)
