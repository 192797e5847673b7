"""``quantize``: what holds for every method, whatever it does to a weight."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError, QBenchError, SchemeError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layer_error import weight_error
from dllm_qbench.quant.layers import QuantLinear, target_names
from dllm_qbench.quant.methods import gptq
from dllm_qbench.quant.quantize import METHODS, recipe_hash
from tests.helpers.tiny import tiny_llada

CELLS = [
    ("rtn", "W4A16-g20"),
    ("rtn", "W8A8"),
    ("gptq", "W3A16-g20"),
    ("gptq", "W4A4"),
    ("smoothquant", "W8A8"),
    ("smoothquant", "W4A4"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"n_kv_heads": 2},
    "tied": {"weight_tying": True},
}
IDS = torch.arange(4, 44).view(4, 10)


def data(lm: DiffusionLM) -> Any:
    return qb.calibration(lm, sequences=8, length=12)


def fresh_fingerprint(lm: DiffusionLM) -> str:
    lm._fingerprint = None
    return lm.fingerprint()


@pytest.mark.parametrize(("method", "scheme"), CELLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_input_is_untouched_and_every_linear_quantized(
    variant: str, method: str, scheme: str
) -> None:
    lm = tiny_llada(**VARIANTS[variant])
    before, logits = lm.fingerprint(), lm.logits(IDS)
    quantized = qb.quantize(lm, method, scheme, data(lm))
    assert fresh_fingerprint(lm) == before
    assert torch.equal(lm.logits(IDS), logits)
    assert lm.recipe is None
    parsed = qb.Scheme.parse(scheme)
    for name in target_names(quantized.model):
        layer = quantized.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        assert layer.scheme == parsed
        for part in layer.weight.split(parsed.group or layer.in_features, dim=1):
            assert all(len(row.unique()) <= 2**parsed.weight_bits for row in part)
    assert not any(
        isinstance(module, nn.Linear) for module in quantized.model.model.layers.modules()
    )
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(quantized.model.get_parameter(name), lm.model.get_parameter(name))
    found = quantized.logits(IDS)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, logits)


@pytest.mark.parametrize("method", METHODS)
def test_sixteen_bits_leave_the_logits_unchanged(method: str) -> None:
    lm = tiny_llada(dtype=torch.float64, n_kv_heads=2)
    found = qb.quantize(lm, method, "W16A16", data(lm)).logits(IDS)
    torch.testing.assert_close(found, lm.logits(IDS), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_models_work(method: str, dtype: torch.dtype) -> None:
    lm = tiny_llada(dtype=dtype)
    quantized = qb.quantize(lm, method, "W8A8", data(lm))
    assert {p.dtype for p in quantized.model.parameters()} == {dtype}
    assert torch.isfinite(quantized.logits(IDS)).all()


@pytest.mark.parametrize(("method", "scheme"), CELLS)
def test_two_runs_give_the_same_bits(method: str, scheme: str) -> None:
    lm = tiny_llada()
    first, second = (qb.quantize(lm, method, scheme, data(lm)) for _ in range(2))
    assert first.fingerprint() == second.fingerprint() != lm.fingerprint()
    assert first.recipe == second.recipe


def test_recipe_is_complete_json_and_its_hash_tells_recipes_apart() -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "gptq", "W4A16-g20", data(lm), act_order=True)
    assert quantized.name == lm.name
    recipe = dict(quantized.recipe or {})
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe.pop("calibration") == data(lm).recipe
    assert recipe == {
        "method": "gptq",
        "scheme": "W4A16-g20",
        "symmetric": False,
        "parameters": {"damp": 0.01, "act_order": True, "token_cap": 2.0},
    }
    others = [
        qb.quantize(lm, "gptq", "W4A16-g20", data(lm)),
        qb.quantize(lm, "gptq", "W3A16-g20", data(lm), act_order=True),
        qb.quantize(lm, "gptq", "W4A16-g20", qb.calibration(lm, 1, 8, 12), act_order=True),
        lm,
    ]
    hashes = {recipe_hash(other.recipe) for other in [quantized, *others]}
    assert len(hashes) == 5
    shuffled = dict(reversed(list((quantized.recipe or {}).items())))
    assert recipe_hash(shuffled) == recipe_hash(quantized.recipe)


def test_default_calibration_is_seed_zero_of_the_model() -> None:
    lm = tiny_llada()
    default = qb.quantize(lm, "gptq", "W4A16")
    assert (
        default.fingerprint() == qb.quantize(lm, "gptq", "W4A16", qb.calibration(lm)).fingerprint()
    )


def test_gptq_parameters_reach_the_weights() -> None:
    lm = tiny_llada()
    prints = {
        qb.quantize(lm, "gptq", "W3A16", data(lm), **parameters).fingerprint()
        for parameters in ({}, {"damp": 0.5}, {"act_order": True})
    }
    assert len(prints) == 3


def test_gptq_is_closer_than_rtn_to_full_precision() -> None:
    lm = tiny_llada()
    calibration = qb.calibration(lm, sequences=64)
    reference = lm.logits(calibration.ids)
    error = {
        method: float(
            (
                qb.quantize(lm, method, "W3A16", calibration).logits(calibration.ids) - reference
            ).norm()
        )
        for method in ("rtn", "gptq")
    }
    assert error["gptq"] < 0.9 * error["rtn"]


def test_gptq_model_holds_what_gptq_weight_gives_on_the_same_inputs() -> None:
    lm = tiny_llada()
    calibration = data(lm)
    seen: list[torch.Tensor] = []
    hook = lm.model.get_submodule("model.layers.0.self_attn.k_proj").register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].flatten(0, 1))
    )
    lm.logits(calibration.ids, calibration.attention_mask)
    hook.remove()
    x = seen[0].double()
    weight = lm.model.get_submodule("model.layers.0.self_attn.k_proj").weight
    quantized = qb.quantize(lm, "gptq", "W3A16-g20", calibration)
    found = quantized.model.get_submodule("model.layers.0.self_attn.k_proj").weight
    expected = gptq.gptq_weight(weight, x.T @ x, "W3A16-g20")
    # solved as one stack with q and v: rows do not see each other
    assert weight_error(found, expected, x.T @ x) < 1e-3 * weight_error(weight, expected, x.T @ x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"]
)
def test_nan_weight_is_an_error_that_names_the_module(method: str, name: str) -> None:
    lm = tiny_llada()
    lm.model.get_parameter(name).view(-1)[5] = torch.nan
    with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")):
        qb.quantize(lm, method, "W4A16", data(lm))


def test_unknown_method_scheme_and_parameter_are_named() -> None:
    lm = tiny_llada()
    methods = "rtn, gptq, awq, smoothquant, quarot, duquant"
    with pytest.raises(QBenchError, match=f"'gtpq' is unknown; methods: {methods}"):
        qb.quantize(lm, "gtpq", "W4A16")
    with pytest.raises(SchemeError, match="activations must be 4, 8 or 16 bits"):
        qb.quantize(lm, "rtn", "W4A5")
    with pytest.raises(QBenchError, match="unknown parameter 'dump'; parameters: damp, act_order"):
        qb.quantize(lm, "gptq", "W4A16", dump=0.1)


def test_quantizing_a_quantized_model_is_an_error() -> None:
    lm = tiny_llada()
    quantized = qb.quantize(lm, "rtn", "W8A8")
    with pytest.raises(QBenchError, match=r"already quantized \(rtn W8A8\)"):
        qb.quantize(quantized, "rtn", "W4A4")


def test_linear_that_no_group_covers_is_an_error() -> None:
    lm = tiny_llada()
    lm.model.model.layers[1].mlp.extra_proj = nn.Linear(4, 4)
    with pytest.raises(QBenchError, match=r"model\.layers\.1: .* not covered .* mlp\.extra_proj"):
        qb.quantize(lm, "rtn", "W4A16")
    del lm.model.model.layers[1].mlp.extra_proj
    lm.model.model.layers[0].self_attn.q_proj = nn.Identity()
    with pytest.raises(QBenchError, match=r"model\.layers\.0: .* missing: self_attn\.q_proj"):
        qb.quantize(lm, "rtn", "W4A16")


def test_model_without_blocks_is_an_error() -> None:
    with pytest.raises(QBenchError, match=r"Linear has no decoder layers at model\.layers"):
        target_names(nn.Linear(2, 2))


def test_quantized_layer_says_what_it_is() -> None:
    lm = qb.quantize(tiny_llada(), "rtn", "W4A16-g20")
    assert "32 -> 48, rtn W4A16-g20" in repr(lm.model)
