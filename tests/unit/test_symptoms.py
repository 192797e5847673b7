"""Symptoms: each planted fault is called by its kind, in both architectures and five methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import nn

import dllm_qbench as qb
from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.own_basis import OwnBasis, own_basis
from dllm_qbench.evaluation.symptoms import Symptom, symptom
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import QuantLinear, put, target_names
from tests.helpers.one_layer import FAULTS, broken_copy
from tests.helpers.tiny import tiny_dream, tiny_llada

IDS = torch.arange(4, 60).view(4, 14)
SUBJECTS = (
    ("rtn", "W4A16-g16"),
    ("gptq", "W4A16-g16"),
    ("smoothquant", "W8A8"),
    ("quarot", "W4A4"),
    ("duquant", "W4A4"),
)
MODELS: dict[str, Callable[..., DiffusionLM]] = {"llada": tiny_llada, "dream": tiny_dream}
# Wide enough for a pattern to be told from chance; q and o square, the others not.
WIDE = {
    "llada": {"d_model": 64, "mlp_hidden_size": 96},
    "dream": {"hidden_size": 64, "intermediate_size": 96},
}
PLACES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
)


@cache
def pair(model: str, method: str, scheme: str) -> tuple[DiffusionLM, DiffusionLM]:
    lm = MODELS[model](**WIDE[model])
    calibration = qb.calibration(lm, sequences=32, length=16)
    return lm, qb.quantize(lm, method, scheme, calibration)


def linear(lm: DiffusionLM, name: str) -> QuantLinear:
    layer = lm.model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer


def look(model: str, method: str, scheme: str, place: str, fault: str) -> Symptom | None:
    lm, sound = pair(model, method, scheme)
    layer = linear(sound, place)
    if not FAULTS[fault].fits(layer):
        return None
    own = own_basis(lm, sound, place, IDS)
    put(sound.model, place, broken_copy(layer, FAULTS[fault], own))
    try:
        return symptom(lm, sound, place, IDS)
    finally:
        put(sound.model, place, layer)


def planted() -> Iterator[tuple[str, str, str, str]]:
    for model in MODELS:
        for method, scheme in SUBJECTS:
            # All scales of so small a model round up to the same power of two: one scale for all.
            for fault in sorted(FAULTS.keys() - {"scales rounded up to powers of two"}):
                yield model, method, scheme, fault


@pytest.mark.parametrize(("model", "method", "scheme", "fault"), list(planted()))
def test_planted_fault_is_called_by_its_kind(
    model: str, method: str, scheme: str, fault: str
) -> None:
    for place in PLACES:
        found = look(model, method, scheme, place, fault)
        assert found is None or found.kind == FAULTS[fault].kind, f"{place}: {found}"


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize(("method", "scheme"), SUBJECTS)
def test_sound_linear_shows_no_pattern(model: str, method: str, scheme: str) -> None:
    """Not even of DuQuant's clip, which is wanted."""
    lm, sound = pair(model, method, scheme)
    for name in target_names(lm.model):
        found = symptom(lm, sound, name, IDS)
        assert found.kind == "noise", f"{name}: {found}"
        assert "no pattern" in found.text


def texts(place: str, fault: str, method: str = "rtn", scheme: str = "W4A16-g16") -> str:
    found = look("llada", method, scheme, place, fault)
    assert found is not None
    return found.text


def test_texts_carry_the_number_that_decided() -> None:
    q = PLACES[0]
    assert texts(q, "weight doubled") == "output is 2.00 times full precision's on every channel"
    assert "-0.50 of a step off on average" in texts(q, "floor instead of round")
    assert "+1.00 of a step off" in texts(q, "zero point off by one").replace("+0.99", "+1.00")
    assert "cut off at 0.5" in texts(q, "range halved")
    assert "one scale for each" in texts(q, "grid along outputs")
    assert "on its input side a rotation or a permutation lacks" in texts(q, "inputs permuted")
    assert "on its output side a rotation or a permutation lacks" in texts(q, "outputs permuted")
    assert "about 16 steps, the grid's whole range" in texts(q, "codes wrap around")
    assert texts(q, "left at 16 bits") == (
        "the weight is full precision's own, where W4A16-g16 asks for 4 bits"
    )
    assert "dB closer to full precision's than 4 bits get" in texts(q, "three bits more")
    assert "bits coarser" in texts(q, "a bit fewer")
    smoothed = texts(q, "weight not multiplied by s", "smoothquant", "W8A8")
    assert "each input channel is off by the layer's own scale to the power of -1.0" in smoothed
    assert "cut off at about 0.3 of its token's" in texts(q, "input cut at 0.3", "quarot", "W4A4")
    unrounded = texts(q, "input left at 16 bits", "smoothquant", "W8A8")
    assert unrounded.startswith("the input is not rounded to 8 bits")


def test_plain_linear_is_not_quantized() -> None:
    """As a method leaves it that a name filter kept from a layer."""
    lm, sound = pair("dream", "rtn", "W4A16-g16")
    layer = linear(sound, PLACES[1])
    put(sound.model, PLACES[1], lm.model.get_submodule(PLACES[1]))
    found = symptom(lm, sound, PLACES[1], IDS)
    put(sound.model, PLACES[1], layer)
    assert found.kind == "not quantized"


def test_rotation_that_the_bias_did_not_take() -> None:
    lm, sound = pair("dream", "quarot", "W4A4")
    place = "model.layers.1.self_attn.v_proj"
    layer = linear(sound, place)
    own: OwnBasis = own_basis(lm, sound, place, IDS)
    assert torch.allclose(own.bias, own.own_bias, atol=1e-5)
    assert layer.bias is not None
    turned, plain = layer.bias, lm.model.get_submodule(place).bias
    assert isinstance(plain, torch.Tensor)
    layer.bias = nn.Parameter(plain.clone(), requires_grad=False)
    found = symptom(lm, sound, place, IDS)
    layer.bias = turned
    assert found.kind == "missing inverse"
    assert "the bias has 1.00 of its length" in found.text


@pytest.mark.parametrize("method", ["smoothquant", "quarot", "duquant"])
def test_own_basis_undoes_what_a_method_did_to_the_model(method: str) -> None:
    """At 16 bits the weight is full precision's, in the layer's terms, to the last digits."""
    for model in MODELS:
        lm, sound = pair(model, method, "W16A16")
        for name in target_names(lm.model):
            own = own_basis(lm, sound, name, IDS)
            assert float((own.Q - own.W).abs().max() / own.W.abs().max()) < 1e-6
            assert torch.allclose(own.unturned(own.Q), own.unturned(own.W), atol=1e-5)
            expected = own.u @ own.W.T + own.bias
            assert torch.allclose(own.out, expected, atol=1e-4)


def test_a_tap_between_linears_is_outside() -> None:
    lm, sound = pair("llada", "rtn", "W4A16-g16")
    for tap, hint in (
        ("model.layers.0.input_layernorm", "the norm's gain"),
        ("model.layers.0.self_attn", "rotations of queries and keys"),
        ("lm_head", "the LM head"),
    ):
        found = symptom(lm, sound, tap, IDS)
        assert found.kind == "outside"
        assert hint in found.text


def test_padding_is_left_out_and_row_of_ids_is_a_batch_of_one() -> None:
    lm, sound = pair("llada", "rtn", "W4A16-g16")
    mask = torch.ones_like(IDS)
    mask[:, 9:] = 0
    padded = own_basis(lm, sound, PLACES[0], IDS, mask)
    assert padded.u.shape == own_basis(lm, sound, PLACES[0], IDS[:, :9]).u.shape
    assert torch.equal(
        own_basis(lm, sound, PLACES[0], IDS[0]).u, own_basis(lm, sound, PLACES[0], IDS[:1]).u
    )


def test_linears_of_different_size_are_an_error() -> None:
    lm, _ = pair("llada", "rtn", "W4A16-g16")
    with pytest.raises(QBenchError, match=r"q_proj has a weight \[32, 32\], \[64, 64\] in full"):
        symptom(lm, qb.quantize(tiny_llada(), "rtn", "W4A16"), PLACES[0], IDS)
