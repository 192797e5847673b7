"""Linears that read one tensor turn and round it once, and never see a stale result."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.quant import layers
from dllm_qbench.quant.layers import HadamardRotation, QuantLinear
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.tiny import tiny_llada

SIZE = 16


def layer(
    seed: int = 0, scheme: str = "W16A4", transform: HadamardRotation | None = None
) -> QuantLinear:
    weight = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    made = QuantLinear(weight, None, None, Scheme.parse(scheme), "test")
    made.transform = transform
    return made


def given(seed: int = 9) -> Tensor:
    return torch.randn(5, SIZE, generator=torch.Generator().manual_seed(seed))


def alone(made: QuantLinear, x: Tensor) -> Tensor:
    """What a layer gives for a copy, of which nothing can be known."""
    out: Tensor = made(x.clone())
    return out


@pytest.mark.parametrize("method", ["rtn", "duquant"])
def test_a_block_rounds_four_inputs_for_its_seven_linears(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, method, "W8A8", qb.calibration(lm, sequences=4))
    rounded = layers.quantize_tokens
    calls: list[int] = []

    def counted(x: Tensor, *how: float) -> Tensor:
        calls.append(1)
        return rounded(x, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(layers, "quantize_tokens", counted)
    quantized.logits([5, 6, 7])
    assert len(calls) == 4 * lm.config.num_hidden_layers


def test_a_shared_input_gives_what_each_layer_gives_alone() -> None:
    rotation = HadamardRotation(SIZE)
    q, k, x = layer(0, transform=rotation), layer(1, transform=rotation), given()
    assert torch.equal(q(x), alone(q, x))
    assert torch.equal(k(x), alone(k, x))


def test_layers_that_read_one_tensor_differently_share_nothing() -> None:
    x = given()
    first = layer(0)
    for other in (
        layer(1, "W16A8"),
        layer(1, transform=HadamardRotation(SIZE)),
        layer(1, "W16A16", transform=HadamardRotation(SIZE)),
    ):
        first(x)
        assert torch.equal(other(x), alone(other, x))
    clipped = layer(1)
    clipped.act_clip = 0.5
    first(x)
    assert torch.equal(clipped(x), alone(clipped, x))


def test_a_layer_that_was_changed_reads_its_input_anew() -> None:
    rotation = HadamardRotation(SIZE, signs=torch.ones(SIZE))
    made, x = layer(transform=rotation), given()
    before = made(x)
    assert rotation.signs is not None
    rotation.signs[0] = -1
    after = made(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, alone(made, x))
    made.scheme = replace(made.scheme, act_bits=8)
    assert torch.equal(made(x), alone(made, x))


@pytest.mark.parametrize("inference", [False, True])
def test_another_tensor_is_another_input(inference: bool) -> None:
    with torch.inference_mode(inference):
        q, k, x = layer(0), layer(1), given()
        q(x)
        y = x * 2
        assert torch.equal(k(y), alone(k, y))


def test_an_input_that_was_changed_in_place_is_read_anew() -> None:
    q, k, x = layer(0), layer(1), given()
    q(x)
    x[0] *= 3
    assert torch.equal(k(x), alone(k, x))


def test_nothing_is_kept_once_the_input_is_gone() -> None:
    made, x = layer(), given()
    made(x)
    kept = layers._last._made
    assert kept is not None
    watch = weakref.ref(kept)
    del kept, x
    gc.collect()
    assert watch() is None
