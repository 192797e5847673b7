"""Each audit is silent on sound models and fires on a fault planted for it.

The bugs of released code that DESIGN's list of audits answers to are planted under their own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.quant import audits, capture
from dllm_qbench.quant.audits import AUDITS, EXPENSIVE, Finding, Subject
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import QuantLinear, blocks, put, target_names
from dllm_qbench.quant.methods import gptq, quarot, rtn
from dllm_qbench.quant.quantize import METHODS, Method
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.tiny import tiny_dream, tiny_llada

# mlp_hidden_size three times the width, as in LLaDA-8B: q, k and v hold 23.1 % of the block weights.
WIDE = {"mlp_hidden_size": 96}
GROUPED = {"n_kv_heads": 2, "weight_tying": True}
WEIGHT_ONLY, BOTH = ("W4A16-g16", "W3A16-g20"), ("W8A8", "W4A4")
CELLS = [
    *((method, scheme) for method in ("rtn", "gptq", "awq") for scheme in WEIGHT_ONLY),
    *((m, scheme) for m in ("rtn", "smoothquant", "quarot", "duquant") for scheme in BOTH),
]
Q0 = "model.layers.0.self_attn.q_proj"


@cache
def reference(**overrides: Any) -> qb.DiffusionLM:
    return tiny_llada(**overrides)


@cache
def dream() -> qb.DiffusionLM:
    return tiny_dream()


@cache
def data(**overrides: Any) -> Calibration:
    return qb.calibration(reference(**overrides))


def quantized(method: str, scheme: str, **parameters: Any) -> qb.DiffusionLM:
    return qb.quantize(reference(), method, scheme, data(), **parameters)


def only(name: str, *args: Any, **kwargs: Any) -> list[Finding]:
    """Run one audit through the public function."""
    found = qb.audit(*args, skip=set(AUDITS) - {name}, **kwargs)
    assert all(finding.audit == name for finding in found)
    return found


def layer_of(lm: qb.DiffusionLM, name: str = Q0) -> QuantLinear:
    layer = lm.model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer


# --- sound models -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, GROUPED], ids=["plain", "grouped and tied"])
@pytest.mark.parametrize(("method", "scheme"), CELLS)
def test_all_audits_are_silent_on_sound_cells(
    method: str, scheme: str, shape: dict[str, Any]
) -> None:
    lm = reference(**shape)
    made = qb.quantize(lm, method, scheme, data(**shape))
    assert [str(finding) for finding in qb.audit(made, reference=lm)] == []


@pytest.mark.parametrize(("method", "scheme"), CELLS)
def test_all_audits_are_silent_on_sound_cells_of_dream(method: str, scheme: str) -> None:
    lm = dream()
    made = qb.quantize(lm, method, scheme, qb.calibration(lm))
    assert [str(finding) for finding in qb.audit(made, reference=lm)] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("method", "scheme"), [("rtn", "W8A8"), ("gptq", "W4A16-g16")])
def test_audits_of_stored_weights_are_silent_in_other_dtypes(
    method: str, scheme: str, dtype: torch.dtype
) -> None:
    lm = reference(dtype=dtype)
    made = qb.quantize(lm, method, scheme, data())
    assert qb.audit(made, lm, data()) == []


def test_degenerate_weights_are_no_finding() -> None:
    """Zero layers, constant rows and rows of one sign fill few codes, and that is not a fault."""
    lm = tiny_llada()
    with torch.no_grad():
        linears = [lm.model.get_parameter(f"{name}.weight") for name in target_names(lm.model)]
        linears[0].zero_()
        linears[1].fill_(0.5)
        linears[2].abs_()
        linears[3].abs_().neg_()
    for scheme in ("W4A16-g16", "W4A16-sym"):
        made = qb.quantize(lm, "rtn", scheme)
        assert qb.audit(made, lm, skip=("bidirectional",)) == []


def test_identity_scheme_is_no_finding() -> None:
    assert qb.audit(quantized("quarot", "W16A16"), reference()) == []


# --- coverage ---------------------------------------------------------------------------------


def quantize_by_names(lm: qb.DiffusionLM, names: tuple[str, ...]) -> qb.DiffusionLM:
    """Quantize the linears whose names end so, as released code does: no match, no complaint."""
    copy, scheme = lm.clone(), Scheme.parse("W4A16-g16")
    for name in target_names(copy.model):
        if name.endswith(names):
            linear = copy.model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight, grid = rtn.round_weight(linear.weight, scheme, False)
            put(copy.model, name, QuantLinear(weight, linear.bias, grid, scheme, "gptq"))
    return replace(copy, recipe={"method": "rtn", "scheme": str(scheme), "symmetric": False})


def test_official_bug_unmatched_layer_names() -> None:
    """Released GPTQ asks for attn_q, attn_k, attn_v, which LLaDA does not have."""
    lm = reference(**WIDE)
    names = ("attn_q", "attn_k", "attn_v", "o_proj", "gate_proj", "up_proj", "down_proj")
    made = quantize_by_names(lm, names)
    found = only("coverage", made, lm, targets=names)
    left = [f"model.layers.{i}.self_attn.{c}_proj" for i in range(2) for c in "qkv"]
    assert [finding.module for finding in found if "not quantized" in finding.message] == left
    text = "\n".join(map(str, found))
    assert "6 of 14 linears, 23.1% of the block weights, stay at 16 bits" in text
    assert all(f"the configured name '{name}' matches no linear" in text for name in names[:3])


def test_coverage_needs_every_configured_name_to_match() -> None:
    made = quantized("rtn", "W4A16-g16")
    assert only("coverage", made, reference(), targets=["q_proj", "mlp.down_proj", Q0]) == []
    (found,) = only("coverage", made, reference(), targets=["q_proj", "atn_proj"])
    assert "'atn_proj' matches no linear; did you mean" in found.message


def test_coverage_sees_a_quantized_head() -> None:
    """LLaDA's ff_out is each block's down projection and the LM head."""
    made = quantized("rtn", "W4A16-g16")
    put(made.model, "lm_head", layer_of(made, "model.layers.0.mlp.down_proj"))
    (found,) = audits.coverage(Subject(made, reference()))
    assert found.module == "lm_head"
    assert "ff_out" in found.message


def test_coverage_sees_another_scheme() -> None:
    made = quantized("rtn", "W4A4")
    layer_of(made).scheme = Scheme.parse("W4A16")
    (found,) = only("coverage", made, reference())
    assert found.module == Q0
    assert "is quantized under W4A16; expected W4A4" in found.message


# --- grid -------------------------------------------------------------------------------------


def spoil_weight(layer: QuantLinear) -> None:
    layer.weight[3, 20] += 0.4 * float(layer.scale[3, 1])  # type: ignore[index]


def spoil_boundaries(layer: QuantLinear) -> None:
    """Groups that begin one column late: the boundary off by one."""
    layer.weight.copy_(layer.weight.roll(1, dims=1))


def spoil_shape(layer: QuantLinear) -> None:
    layer.scale = layer.scale[:, :1]  # type: ignore[index]


def spoil_zero(layer: QuantLinear) -> None:
    layer.zero[5, 0] = 16  # type: ignore[index]


def spoil_scale(layer: QuantLinear) -> None:
    layer.scale[5, 0] = 0  # type: ignore[index]


def spoil_symmetry(layer: QuantLinear) -> None:
    layer.symmetric = True


def forget_grid(layer: QuantLinear) -> None:
    layer.scale = layer.zero = None


GRID_FAULTS: list[tuple[Callable[[QuantLinear], None], str]] = [
    (spoil_weight, "weights off the levels 0..15 in row 3 group 1,"),
    (spoil_boundaries, "check where groups begin"),
    (spoil_shape, "expected [32, 2], groups of 16 over 32 inputs"),
    (spoil_zero, "a zero point that is no code in row 5 group 0"),
    (spoil_scale, "a scale that is not a positive number in row 5 group 0"),
    (spoil_symmetry, "its grid is symmetric; expected asymmetric"),
    (forget_grid, "has no weight grid; expected 4 bits"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), GRID_FAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_grid_names_module_and_group(spoil: Callable[[QuantLinear], None], message: str) -> None:
    made = quantized("rtn", "W4A16-g16")
    with torch.no_grad():
        spoil(layer_of(made))
    found = only("grid", made, reference())
    assert {finding.module for finding in found} == {Q0}
    assert message in found[0].message


def test_grid_counts_levels_where_the_dtype_hides_them() -> None:
    """At 8 bits in bf16 any weight is near some level; more than 256 distinct ones still show."""
    lm = tiny_llada(dtype=torch.bfloat16, d_model=512, n_heads=4, mlp_hidden_size=16, n_layers=1)
    made = qb.quantize(lm, "rtn", "W8A16-sym")
    noise = torch.rand(512, 512, generator=torch.Generator().manual_seed(0)) - 0.5
    layer = layer_of(made)
    with torch.no_grad():
        layer.weight.copy_(noise * 254 * layer.scale)
        layer.weight.clamp_(-127 * layer.scale, 127 * layer.scale)  # type: ignore[operator]
    assert [finding.module for finding in audits.grid(Subject(made, lm))] == [Q0]


def test_grid_sees_weights_rounded_at_16_bits() -> None:
    made = quantized("rtn", "W4A16")
    made.recipe = {**(made.recipe or {}), "scheme": "W16A16"}
    assert "has a weight grid; expected none" in only("grid", made, reference())[0].message


# --- equivalence at 16 bits -------------------------------------------------------------------


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., qb.DiffusionLM]:
    """Put a method into the registry and quantize with it."""

    def make(apply: Callable[..., None], lm: qb.DiffusionLM) -> qb.DiffusionLM:
        method = Method(apply, False, lambda scheme: True)
        monkeypatch.setitem(METHODS, "faulty", method)  # type: ignore[arg-type]
        return qb.quantize(lm, "faulty", "W8A8")

    return make


def rotated_rtn(model: nn.Module, scheme: Scheme) -> None:
    """QuaRot's rotations with weights rounded to nearest."""
    quarot.rotate(model, seed=0)
    for name in target_names(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        layer.requantize(*rtn.round_weight(layer.weight, scheme, True), scheme)


def test_rotation_without_a_fault_is_silent(faulty: Callable[..., qb.DiffusionLM]) -> None:
    """The control of the faults below: the same method, nothing planted."""
    lm = dream()
    assert qb.audit(faulty(rotated_rtn, lm), lm) == []


def test_official_bug_embedding_mean_subtraction(faulty: Callable[..., qb.DiffusionLM]) -> None:
    """Released QuaRot subtracts each embedding's mean: right before LayerNorm, not before RMSNorm."""

    def apply(model: Any, scheme: Scheme) -> None:
        embedding = model.model.embed_tokens.weight
        embedding.sub_(embedding.mean(-1, keepdim=True))
        rotated_rtn(model, scheme)

    (found,) = only("equivalence", faulty(apply, reference()), reference())
    assert found.module == "model.embed_tokens"
    assert "subtracted from" in found.message


def test_official_bug_wrong_epsilon(faulty: Callable[..., qb.DiffusionLM]) -> None:
    """Released QuaRot writes 1e-5 into every norm; Dream's is 1e-6."""
    lm = dream()

    def apply(model: Any, scheme: Scheme) -> None:
        rotated_rtn(model, scheme)
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-5

    found = only("equivalence", faulty(apply, lm), lm)
    norms = ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    assert [finding.module for finding in found][:2] == norms
    assert "its epsilon is 1e-05; expected 1e-06" in found[0].message
    assert found[-1].module == "model.layers.0"  # the logits show it too, in float64


def test_epsilon_inside_a_module_of_its_own_shows_in_the_logits(
    faulty: Callable[..., qb.DiffusionLM],
) -> None:
    """Where a method brings its own norm, there may be no attribute to compare."""

    class Norm(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    def apply(model: Any, scheme: Scheme) -> None:
        rotated_rtn(model, scheme)
        model.model.norm = Norm(model.model.norm.weight)

    lm = reference(rms_norm_eps=1e-6)
    (found,) = only("equivalence", faulty(apply, lm), lm)
    assert found.module == "lm_head"  # behind the last block


def test_equivalence_sees_a_rotation_off_orthogonal(
    faulty: Callable[..., qb.DiffusionLM],
) -> None:
    """1e-2 off is invisible in accuracy and in layer errors."""

    def apply(model: Any, scheme: Scheme) -> None:
        rotated_rtn(model, scheme)
        layer = model.model.layers[1].mlp.down_proj
        weight = layer.weight.clone()
        weight[:, 0] *= 1.01
        layer.requantize(*rtn.round_weight(weight, scheme, True), scheme)

    (found,) = only("equivalence", faulty(apply, reference()), reference())
    assert found.module == "model.layers.1"


# --- bidirectional ----------------------------------------------------------------------------


def make_causal(model: nn.Module, layers: list[int]) -> None:
    """Make the attention of some blocks causal, whatever mask it is called with."""
    for index in layers:
        attention = blocks(model)[index].get_submodule("self_attn")

        def forward(*args: Any, _forward: Any = attention.forward, **kwargs: Any) -> Any:
            T = (args[0] if args else kwargs["hidden_states"]).shape[-2]
            mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
            return _forward(*args, **kwargs | {"attention_mask": mask})

        attention.forward = forward  # type: ignore[method-assign]


def test_bidirectional_names_the_one_causal_block() -> None:
    made = quantized("rtn", "W4A4")
    make_causal(made.model, [1])
    (found,) = only("bidirectional", made, reference())
    assert found.module == "model.layers.1.self_attn"


def test_bidirectional_sees_a_causal_model() -> None:
    made = quantized("rtn", "W8A8")
    make_causal(made.model, [0, 1])
    whole, *alone = only("bidirectional", made, reference())
    assert whole.module == "the whole model"
    assert [finding.module[-18:] for finding in alone] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]


# --- calibration contract ---------------------------------------------------------------------


def test_official_bug_calibration_without_masks() -> None:
    lm = reference()
    plain = qb.calibration(lm, mask_ratios=(0.0,))
    made = qb.quantize(lm, "gptq", "W4A16-g16", plain)
    (found,) = only("calibration_contract", made, lm)  # drawn again from its recipe
    assert "no calibration sequence holds a mask" in found.message


def test_official_bug_causal_calibration_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel's calibration of LLaDA2 expands the padding mask to a causal one."""
    enter = capture._enter

    def causal(*args: Any) -> Any:
        chunk = enter(*args)
        mask = chunk.attention_inputs["attention_mask"]
        chunk.attention_inputs["attention_mask"] = mask & torch.ones_like(mask).tril()
        return chunk

    monkeypatch.setattr(capture, "_enter", causal)
    made = quantized("gptq", "W4A16-g16")
    found = only("calibration_contract", made, reference(), data())
    assert [finding.module[-18:] for finding in found] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    assert "attends to earlier tokens only" in found[0].message
    assert only("bidirectional", made, reference()) == []  # the result alone does not show it


def contract_after(**changes: Any) -> list[str]:
    """Audit a sound model whose calibration recipe was changed; return the messages."""
    made = quantized("smoothquant", "W8A8")
    recipe = dict(made.recipe or {})
    made.recipe = recipe | {"calibration": dict(recipe["calibration"]) | changes}
    return [f.message for f in only("calibration_contract", made, reference(), data())]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratios": [0.0, 0.1]}, "the highest mask ratio seen is 0.1"),
        ({"attention": "causal"}, "attended in direction 'causal'"),
        ({"sha256": "0"}, "is not the one of the recipe"),
        ({"masked_share": 0}, "no calibration sequence holds a mask"),
    ],
)
def test_contract_reads_the_recipe(changes: dict[str, Any], message: str) -> None:
    (found,) = contract_after(**changes)
    assert message in found


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ({"sequences": 20}, "20 sequences; expected 128 or more"),
        ({"length": 1, "mask_ratios": (0.0, 1.0)}, "a sequence of 1 token(s)"),
        ({"length": 65}, "a sequence of 65 tokens; expected at most 64"),
    ],
)
def test_contract_looks_at_the_sequences(drawn: dict[str, Any], message: str) -> None:
    lm = reference()
    made = qb.quantize(lm, "smoothquant", "W8A8", qb.calibration(lm, **drawn))
    (found,) = only("calibration_contract", made, lm)
    assert message in found.message


def test_contract_wants_more_tokens_than_inputs() -> None:
    lm = reference(mlp_hidden_size=300)
    made = qb.quantize(lm, "smoothquant", "W8A8", qb.calibration(lm, sequences=128, length=2))
    (found,) = only("calibration_contract", made, lm)
    assert "256 tokens in all; expected at least 300" in found.message


def test_contract_does_not_believe_a_recipe_that_claims_masks() -> None:
    """A wrong mask id: the recipe is full of ratios, the sequences hold none of the model's mask."""
    lm = reference()
    wrong = data().ids.masked_fill(data().ids == lm.mask_id, 7)
    lied = replace(data(), ids=wrong)
    made = qb.quantize(lm, "smoothquant", "W8A8", lied)
    (found,) = only("calibration_contract", made, lm, lied)
    assert "the recipe claims masks" in found.message


def test_contract_sees_masks_that_no_row_predicts() -> None:
    """Dream's logits are shifted: its first token is never a mask."""
    lm = dream()
    drawn = qb.calibration(lm)
    ids = drawn.ids.clone()
    ids[:3, 0] = lm.mask_id
    made = qb.quantize(lm, "smoothquant", "W8A8", replace(drawn, ids=ids))
    (found,) = only("calibration_contract", made, lm, replace(drawn, ids=ids))
    assert "3 sequences begin with a mask" in found.message
    assert qb.audit(made, lm, replace(drawn, ids=ids), skip=("calibration_contract",)) == []


def test_contract_sees_a_calibrator_that_casts_down() -> None:
    lm = reference()

    def in_half(full: qb.DiffusionLM, scheme: Scheme) -> qb.DiffusionLM:
        copy = full.clone()
        copy.model.to(torch.bfloat16)
        with torch.no_grad():
            gptq.quantize_model(copy.model, scheme, data())
        copy.model.to(torch.float32)
        recipe = {"method": "gptq", "scheme": str(scheme), "calibration": dict(data().recipe)}
        return replace(copy, recipe=recipe)

    made = in_half(lm, Scheme.parse("W4A16-g16"))
    found = only("calibration_contract", made, lm, data(), quantizer=in_half)
    assert [finding.module[-18:] for finding in found] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    assert "runs in torch.bfloat16; expected torch.float32" in found[0].message


def test_contract_misses_a_calibration_that_is_not_recorded() -> None:
    made = quantized("gptq", "W4A16-g16")
    made.recipe = {**(made.recipe or {}), "calibration": None}
    found = only("calibration_contract", made, reference(), data())
    assert "says nothing of the calibration that gptq needs" in found[0].message


# --- finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_finite_names_the_weight(value: float) -> None:
    made = quantized("rtn", "W4A16-g16")
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        layer_of(made, name).weight[0, 0] = value
    found = only("finite", made, reference())
    assert [finding.module for finding in found] == [name, name]
    assert "weight holds 1 non-finite value(s) of 1536" in found[0].message
    assert "the first module to do so" in found[1].message


def test_finite_names_the_scale() -> None:
    made = quantized("rtn", "W4A16-g16")
    layer_of(made).scale[0, 0] = float("nan")  # type: ignore[index]
    (found,) = only("finite", made, reference())
    assert found.module == Q0
    assert found.message.startswith("scale holds 1")


def test_finite_names_the_first_module_that_overflows() -> None:
    made = quantized("rtn", "W4A16-g16")
    made.model.to(torch.float16)
    name = "model.layers.0.mlp.gate_proj"
    with torch.no_grad():
        layer_of(made, name).weight.mul_(3e4)
    found = only("finite", made, reference())
    assert [finding.module for finding in found] == [name]


# --- input untouched --------------------------------------------------------------------------


def in_place(lm: qb.DiffusionLM, scheme: Scheme) -> qb.DiffusionLM:
    """Quantize a copy, but first scale a norm of the model that was handed in."""
    with torch.no_grad():
        lm.model.get_parameter("model.layers.1.input_layernorm.weight").mul_(1.5)
    return qb.quantize(lm, "rtn", scheme)


def test_input_untouched_names_what_the_quantizer_changes() -> None:
    made = quantized("rtn", "W4A16-g16")
    (found,) = only("input_untouched", made, reference(), quantizer=in_place)
    assert found.module == "model.layers.1.input_layernorm"
    assert "changes weight of the full-precision model" in found.message


def test_input_untouched_remembers_the_fingerprint() -> None:
    lm = tiny_llada()
    before = lm.fingerprint()
    made = in_place(lm, Scheme.parse("W4A16-g16"))
    for remembered in (None, before):  # the reference remembers it by itself
        (found,) = only("input_untouched", made, lm, fingerprint=remembered)
        assert "is not what it was when its fingerprint was taken" in found.message


def test_input_untouched_sees_shared_memory() -> None:
    made = quantized("rtn", "W4A16-g16")
    norm: Any = made.model.get_submodule("model.norm")
    norm.weight = reference().model.get_parameter("model.norm.weight")
    (found,) = only("input_untouched", made, reference())
    assert found.module == "model.norm"
    assert "shares its memory with the full-precision model.norm.weight" in found.message


def test_audit_changes_neither_model() -> None:
    lm, made = reference(), quantized("gptq", "W4A16-g16")
    before = [replace(x, _fingerprint=None).fingerprint() for x in (lm, made)]
    qb.audit(made, lm, data())
    assert [replace(x, _fingerprint=None).fingerprint() for x in (lm, made)] == before


# --- deterministic ----------------------------------------------------------------------------


def test_deterministic_sees_draws_from_the_global_generator(
    faulty: Callable[..., qb.DiffusionLM],
) -> None:
    def apply(model: Any, scheme: Scheme) -> None:
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.add_(1e-2 * torch.randn_like(weight))
        rtn.quantize_model(model, scheme)

    (found,) = only("deterministic", faulty(apply, reference()), reference())
    assert found.module == "model.layers.1.mlp.up_proj"
    assert "a generator with a seed of its own" in found.message


def test_deterministic_sees_weights_changed_after_quantizing() -> None:
    made = quantized("rtn", "W4A16-g16")
    with torch.no_grad():
        layer_of(made).weight.neg_()
    (found,) = only("deterministic", made, reference())
    assert found.module == Q0


def test_audits_that_cannot_run_the_quantizer_say_so() -> None:
    """A calibration of the user's own texts cannot be drawn again: silence would be a pass."""
    lm = reference()
    own = qb.calibration(lm, ids=data().ids.clamp(min=4))
    made = qb.quantize(lm, "gptq", "W4A16-g16", own)
    found = qb.audit(made, lm)
    assert {finding.audit for finding in found} == set(EXPENSIVE)
    assert all("pass calibration=" in finding.message for finding in found)
    assert qb.audit(made, lm, own) == []


# --- size -------------------------------------------------------------------------------------


def test_size_sees_a_linear_at_fewer_bits() -> None:
    made, name = quantized("rtn", "W4A16-g16"), "model.layers.1.self_attn.v_proj"
    weight = reference().model.get_parameter(f"{name}.weight")
    three = Scheme.parse("W3A16-g16")
    layer_of(made, name).requantize(*rtn.round_weight(weight, three, False), made_scheme(made))
    (found,) = only("size", made, reference())
    assert found.module == name
    # 3 + (16 + 3) / 16 against 4 + (16 + 4) / 16: codes, and a scale and a zero point a group
    assert "need 4.188 bits a weight; expected 5.250" in found.message
    assert only("grid", made, reference()) == []  # eight levels are at most sixteen


def made_scheme(lm: qb.DiffusionLM) -> Scheme:
    return Scheme.parse((lm.recipe or {})["scheme"])


def test_size_sees_other_groups_and_weights_left_alone() -> None:
    made = quantized("rtn", "W4A16-g16")
    coarse = Scheme.parse("W4A16")
    weight = reference().model.get_parameter(f"{Q0}.weight")
    layer_of(made).requantize(*rtn.round_weight(weight, coarse, False), made_scheme(made))
    other = layer_of(made, "model.layers.0.mlp.up_proj")
    other.requantize(other.weight, None, other.scheme)
    found = {finding.module: finding.message for finding in only("size", made, reference())}
    assert "need 4.625 bits a weight; expected 5.250" in found[Q0]
    assert "need 16.000 bits" in found["model.layers.0.mlp.up_proj"]


# --- the whole --------------------------------------------------------------------------------


def test_findings_travel_and_read_well() -> None:
    finding = Finding("grid", Q0, "has no weight grid")
    assert str(finding) == f"grid: {Q0}: has no weight grid"
    assert finding == replace(finding)
    assert hash(finding) == hash(replace(finding))


def test_nine_audits_by_their_names() -> None:
    assert len(AUDITS) == 9
    assert all(AUDITS[name].__name__ == name for name in AUDITS)
    assert set(EXPENSIVE) < set(AUDITS)


def test_skipping_an_unknown_audit_is_an_error() -> None:
    with pytest.raises(qb.QBenchError, match="'grids', which is no audit; audits: coverage, grid"):
        qb.audit(quantized("rtn", "W8A8"), reference(), skip=("grids",))


def test_skipped_audits_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Iterator[None]:
        raise AssertionError("ran the quantizer again")

    made = quantized("rtn", "W8A8")
    monkeypatch.setattr(Subject, "_run", refuse)
    assert qb.audit(made, reference(), skip=EXPENSIVE) == []


def test_reference_has_to_be_full_precision() -> None:
    made = quantized("rtn", "W8A8")
    with pytest.raises(qb.QBenchError, match="the reference tiny is quantized itself"):
        qb.audit(made, made)


def test_subject_without_a_scheme_is_an_error() -> None:
    with pytest.raises(qb.QBenchError, match="neither a recipe nor a quantized linear"):
        qb.audit(reference().clone(), reference())
