"""Other quantizers' models: what is read off them, what runs, and what the audits then say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.quant.audits import EXPENSIVE, audit
from dllm_qbench.quant.grid import find_grid, quantize_dequantize
from dllm_qbench.quant.layer_error import local_errors
from dllm_qbench.quant.layers import put, quantize_tokens, target_names
from dllm_qbench.subjects import AdoptedLinear, Subject, adopt, find_subject
from tests.helpers.tiny import tiny_dream, tiny_llada

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"
SCHEME = "W4A16-g16"
IDS = torch.arange(4, 20)[None]
Change = Callable[[nn.Linear, str], nn.Module]


class Codes(nn.Module):
    """A layer as other libraries write them: integers and scales, no weight, a bias of its own."""

    def __init__(self, linear: nn.Linear, act_bits: int = 16) -> None:
        super().__init__()
        grid = find_grid(linear.weight, 4, True, 16)
        self.register_buffer("codes", grid.codes(linear.weight).to(torch.int8))
        self.register_buffer("steps", grid.scale.float())
        self.offset = None if linear.bias is None else linear.bias.detach().clone()
        self.act_bits = act_bits

    def forward(self, x: Tensor) -> Tensor:
        weight = self.codes.float() * self.steps.repeat_interleave(16, 1)
        x = x if self.act_bits == 16 else quantize_tokens(x, self.act_bits)
        return F.linear(x, weight.to(x.dtype), self.offset)


def rounded(linear: nn.Linear, bits: int = 4, group: int = 16) -> nn.Linear:
    linear.weight.data = quantize_dequantize(linear.weight.data, bits, True, group)
    return linear


def changed(lm: qb.DiffusionLM, change: Change) -> nn.Module:
    model = lm.clone().model
    for name in target_names(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        put(model, name, change(linear, name))
    return model


def findings(made: nn.Module, lm: qb.DiffusionLM, scheme: str = SCHEME, **how: Any) -> list[str]:
    quantized = adopt(made, lm, "theirs", scheme, **how)
    return [str(finding) for finding in audit(quantized, lm, skip=EXPENSIVE)]


@pytest.mark.parametrize("make", [tiny_llada, tiny_dream])
def test_sound_layers_of_any_kind_have_no_findings(make: Callable[[], qb.DiffusionLM]) -> None:
    lm = make()
    assert findings(changed(lm, lambda linear, _: rounded(linear)), lm) == []
    assert findings(changed(lm, lambda linear, _: Codes(linear)), lm) == []


@pytest.mark.parametrize("make", [tiny_llada, tiny_dream])
def test_the_quantizers_own_layer_runs_and_its_weight_is_read_off(
    make: Callable[[], qb.DiffusionLM],
) -> None:
    lm = make()
    theirs = changed(lm, lambda linear, _: Codes(linear))
    expected = theirs(input_ids=IDS).logits
    quantized = adopt(theirs, lm, "theirs", SCHEME)
    assert torch.equal(quantized.model(input_ids=IDS).logits, expected)
    layer = quantized.model.get_submodule(Q0)
    assert isinstance(layer, AdoptedLinear)
    assert isinstance(layer.module, Codes)
    own = lm.model.get_submodule(Q0)
    assert isinstance(own, nn.Linear)
    torch.testing.assert_close(layer.weight.data, quantize_dequantize(own.weight.data, 4, True, 16))
    assert (layer.bias is None) == (own.bias is None)
    if own.bias is not None and layer.bias is not None:
        torch.testing.assert_close(layer.bias.data, own.bias.data)


def test_recipe_and_cell_say_whose_it_is() -> None:
    lm = tiny_llada()
    made = adopt(
        changed(lm, lambda linear, _: rounded(linear)),
        lm,
        "theirs",
        SCHEME,
        parameters={"alpha": 1},
    )
    assert made.recipe == {
        "method": "theirs",
        "scheme": SCHEME,
        "symmetric": True,
        "parameters": {"alpha": 1},
        "calibration": None,
    }
    assert made.fingerprint() != lm.fingerprint()


def test_layer_left_at_full_precision_is_named() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, name: linear if name == DOWN1 else rounded(linear))
    assert any(text.startswith(f"coverage: {DOWN1}: is Linear") for text in findings(made, lm))


def test_layer_with_more_bits_than_said_is_named() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, name: rounded(linear, 6 if name == DOWN1 else 4))
    found = findings(made, lm)
    assert found
    assert all(text.split(": ")[1] == DOWN1 for text in found)
    assert any(text.startswith("grid: ") for text in found)


def test_layer_with_other_groups_than_said_is_named() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, name: rounded(linear, 4, 8 if name == DOWN1 else 16))
    assert any(text.startswith(f"grid: {DOWN1}: ") for text in findings(made, lm))


def test_layer_that_does_not_round_its_inputs_is_named() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, name: Codes(linear, 16 if name == DOWN1 else 8))
    (found,) = findings(made, lm, "W4A8-g16")
    assert found.startswith(f"coverage: {DOWN1}: does not round its inputs; expected 8 bits")


def test_layer_that_rounds_inputs_that_it_should_not_is_named() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, name: Codes(linear, 8 if name == DOWN1 else 16))
    (found,) = findings(made, lm)
    assert found.startswith(f"coverage: {DOWN1}: rounds its inputs; expected them untouched")


def test_levels_that_are_no_steps_pass_only_where_they_are_said_to_be() -> None:
    lm = tiny_llada()
    table = torch.linspace(-1, 1, 16).sign() * torch.linspace(-1, 1, 16).square()

    def nearest(linear: nn.Linear, _: str) -> nn.Linear:
        w = linear.weight.data.unflatten(1, (-1, 16))
        most = w.abs().amax(-1, keepdim=True)
        index = (w[..., None] / most[..., None] - table).abs().argmin(-1)
        linear.weight.data = (table[index] * most).flatten(1)
        return linear

    made = changed(lm, nearest)
    assert any(text.startswith("grid: ") for text in findings(made, lm))
    assert findings(changed(lm, nearest), lm, grid="levels") == []
    coarse = findings(changed(lm, nearest), lm, "W3A16-g16", grid="levels")
    assert any("more than 8 distinct weights" in text for text in coarse)


def test_scales_moved_into_a_norm_leave_a_layers_own_error_comparable() -> None:
    lm = tiny_llada()
    model = lm.clone().model
    scale = torch.linspace(0.5, 4.0, 32)
    model.get_parameter("model.layers.0.input_layernorm.weight").data /= scale
    for name in target_names(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if name.startswith("model.layers.0.self_attn") and not name.endswith("o_proj"):
            linear.weight.data *= scale
        rounded(linear, 8)
    own = local_errors(lm, adopt(model, lm, "theirs", "W8A16-g16"), IDS)
    plain = changed(lm, lambda linear, _: rounded(linear, 8))
    before = local_errors(lm, adopt(plain, lm, "theirs", "W8A16-g16"), IDS)
    assert own.keys() == before.keys()
    assert all(abs(own[name] - before[name]) < 6 for name in own)


def test_model_can_be_copied_and_converted_with_the_layers_in_it() -> None:
    lm = tiny_llada()
    quantized = adopt(changed(lm, lambda linear, _: Codes(linear)), lm, "theirs", SCHEME)
    copy = quantized.clone()
    layer = copy.model.get_submodule(Q0)
    assert isinstance(layer, AdoptedLinear)
    layer.module.steps.mul_(2)  # type: ignore[operator, union-attr]
    assert not torch.equal(copy.logits(IDS), quantized.logits(IDS))
    wide = quantized.clone()
    wide.model.double()
    assert wide.logits(IDS).dtype == torch.float64


# --- what cannot be adopted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda lm: lm.model, "changed the full-precision model itself; quantize a copy"),
        (
            lambda _: None,
            "returned NoneType; expected a DiffusionLM or the quantized torch.nn.Module",
        ),
        (lambda _: nn.Linear(2, 2), f"no module {Q0}"),
        (
            lambda lm: changed(lm, lambda linear, _: nn.Sequential(linear, nn.ReLU())),
            f"{Q0}: Sequential gives outputs .* expected a linear layer",
        ),
        (
            lambda lm: changed(lm, lambda linear, _: nn.Embedding(4, 4)),
            f"{Q0}: Embedding cannot be called",
        ),
        (
            lambda lm: changed(lm, lambda linear, _: nn.Linear(linear.in_features, 7)),
            rf"{Q0}: its weight has shape \[7, 32\], expected \[32, 32\]",
        ),
    ],
)
def test_what_cannot_be_adopted_is_an_error_that_names_it(
    made: Callable[[qb.DiffusionLM], Any], error: str
) -> None:
    lm = tiny_llada()
    with pytest.raises(QBenchError, match=error):
        adopt(made(lm), lm, "theirs", SCHEME)


def test_nan_in_a_weight_names_the_layer() -> None:
    lm = tiny_llada()
    made = changed(lm, lambda linear, _: rounded(linear))
    made.get_parameter(f"{Q0}.weight").data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"theirs: {Q0}: its weight holds 1 non-finite"):
        adopt(made, lm, "theirs", SCHEME)


def test_method_with_a_slash_is_an_error() -> None:
    lm = tiny_llada()
    with pytest.raises(QBenchError, match="expected a name without slashes"):
        adopt(lm.clone(), lm, "a/b", SCHEME)


# --- functions by name -------------------------------------------------------------------------


def quantize_mine(lm: qb.DiffusionLM, scheme: qb.Scheme, calibration: qb.Calibration) -> nn.Module:
    for name in target_names(lm.model):
        linear = lm.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        rounded(linear, scheme.weight_bits, scheme.group or linear.in_features)
    return lm.model


def test_function_is_found_by_its_name_and_may_change_its_copy() -> None:
    lm = tiny_llada()
    before = lm.fingerprint()
    subject = Subject.of(f"{__name__}:quantize_mine")
    made = subject.apply(lm, qb.Scheme.parse(SCHEME), qb.calibration(lm))
    assert subject.method == "quantize_mine"
    assert made.recipe is not None
    assert made.recipe["calibration"]["source"] == "random tokens"
    lm._fingerprint = None
    assert lm.fingerprint() == before


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing", "expected package.module:function"),
        ("no_such_module_here:f", "no_such_module_here cannot be imported .ModuleNotFoundError"),
        (f"{__name__}:nothing", "has no 'nothing'"),
        (f"{__name__}:SCHEME", "is str, expected a function"),
    ],
)
def test_name_that_is_no_function_is_an_error(name: str, error: str) -> None:
    with pytest.raises(QBenchError, match=error):
        find_subject(name)


def test_what_a_function_raises_names_it_and_the_scheme() -> None:
    lm = tiny_llada()

    def failing(*_: Any) -> Any:
        raise KeyError("scale")

    with pytest.raises(
        QBenchError, match=r"subject failing: raised KeyError on .* at W4A16-g16: 'scale'"
    ):
        Subject.of(failing).apply(lm, qb.Scheme.parse(SCHEME), qb.calibration(lm))
