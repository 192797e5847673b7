"""Other libraries' quantizers: what holds without any of them installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dllm_qbench as qb
from dllm_qbench.errors import QBenchError, SchemeError
from dllm_qbench.interop import catalogue, library
from dllm_qbench.interop.catalogue import MODULES, missing, subjects
from dllm_qbench.interop.library import Foreign, WithWeight, batches, foreign, group_for_all, need
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import QuantLinear, target_names
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.subjects.quantizers import Subject, find_subject
from dllm_qbench.verdict.judge import FAILING
from tests.helpers.tiny import tiny_llada
from tools.library_faults import FAULTS
from tools.other_libraries import FOUND, NEAREST, TABLE, document, key_of

_FOLDER = Path(library.__file__).parent
_NONE_HERE = "a-library-that-nobody-has"


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_llada()


@pytest.fixture(scope="module")
def calibration(lm: DiffusionLM) -> Calibration:
    rows = [[3, 4, 5], [6, 7, 8, 9, 10], [3, 5, 7], [4, 4, 4, 4, 4]]
    return qb.calibration(lm, ids=rows, mask_ratios=(0.0, 0.5))


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_imports_a_library_when_it_is_imported(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "dllm_qbench"}
    for node in ast.parse(path.read_text("utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        assert {name.partition(".")[0] for name in names} <= allowed


def test_every_module_of_the_folder_is_in_the_catalogue() -> None:
    found = {path.stem for path in _FOLDER.glob("*.py")} - {"__init__", "library", "catalogue"}
    assert found == set(MODULES)


@pytest.mark.parametrize("name", subjects())
def test_every_subject_is_found_by_its_name_and_named_for_its_method(name: str) -> None:
    subject = Subject.of(name)
    found: Any = find_subject(name)
    assert isinstance(found, Foreign)
    assert subject.method == found.method
    assert subject.grid == found.grid
    assert set(subject.parameters) >= {"library"}
    for scheme in found.schemes:
        assert str(Scheme.parse(scheme)) == scheme


def test_methods_are_told_apart() -> None:
    methods = [subject.method for subject in subjects().values()]
    assert len(set(methods)) == len(methods)


def test_a_missing_library_is_an_error_with_the_pip_command() -> None:
    with pytest.raises(QBenchError, match=f"pip install {_NONE_HERE}"):
        need("a_library_that_nobody_has.quantization", _NONE_HERE)


@pytest.mark.parametrize("name", subjects())
def test_a_subject_whose_library_is_not_here_says_so(
    name: str, lm: DiffusionLM, calibration: Calibration
) -> None:
    subject = subjects()[name]
    if missing(name) is None:
        pytest.skip(f"{subject.library} is installed")
    with pytest.raises(QBenchError, match="pip install"):
        subject(lm.clone(), Scheme.parse(subject.schemes[0]), calibration)


def test_missing_names_the_part_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "hqq", "json.decoder")
    assert missing("dllm_qbench.interop.hqq:hqq") is None
    monkeypatch.setitem(MODULES, "hqq", "a_library_that_nobody_has.part")
    assert missing("dllm_qbench.interop.hqq:hqq") == "a_library_that_nobody_has is not installed"


def _made(**how: Any) -> Foreign:
    @foreign("theirs", "torch", ("W8A16",), **how)
    def run(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
        raise AssertionError("it ran")

    return run


def test_a_scheme_that_a_library_does_not_have_is_refused_by_name(
    lm: DiffusionLM, calibration: Calibration
) -> None:
    with pytest.raises(SchemeError, match="theirs: scheme W4A4; expected one of W8A16"):
        _made()(lm, Scheme.parse("W4A4"), calibration)


def test_nothing_is_run_where_nothing_is_rounded_unless_it_transforms(
    lm: DiffusionLM, calibration: Calibration
) -> None:
    scheme = Scheme.parse("W16A16")
    assert _made()(lm, scheme, calibration) is lm.model
    with pytest.raises(AssertionError, match="it ran"):
        _made(transforms=True)(lm, scheme, calibration)


def test_a_recipe_names_the_version_of_the_library() -> None:
    subject = _made(alpha=0.5)
    assert subject.parameters == {"alpha": 0.5, "library": f"torch {library.version('torch')}"}
    assert library.version(_NONE_HERE) == "missing"


def test_batches_hold_every_sequence_once_and_no_padding(calibration: Calibration) -> None:
    seen = []
    for ids_BT, mask_BT in batches(calibration):
        assert bool(mask_BT.all())
        assert ids_BT.shape == mask_BT.shape
        seen += [tuple(row) for row in ids_BT.tolist()]
    lengths = calibration.attention_mask.sum(1).tolist()
    rows = calibration.ids.tolist()
    assert sorted(seen) == sorted(tuple(row[:n]) for row, n in zip(rows, lengths, strict=True))


def test_batches_are_split_where_many_sequences_have_one_length(lm: DiffusionLM) -> None:
    drawn = qb.calibration(lm, sequences=130, length=4)
    assert [len(ids) for ids, _ in batches(drawn)] == [64, 64, 2]


def test_groups_have_to_fill_the_inputs(lm: DiffusionLM) -> None:
    widths = {lm.model.get_submodule(name).in_features for name in target_names(lm.model)}
    narrow = min(int(width) for width in widths if isinstance(width, int))
    assert group_for_all(Scheme(4, 16, group=narrow // 2), lm) == narrow // 2
    with pytest.raises(SchemeError, match="no whole groups of 5"):
        group_for_all(Scheme(4, 16, group=5), lm)
    with pytest.raises(SchemeError, match="expected one size for all"):
        group_for_all(Scheme(4, 16), lm)


class _Static(nn.Module):
    """A layer whose inputs are rounded on one coarse grid: unit vectors do not read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training, "quantizers' layers run in evaluation mode"
        rounded: torch.Tensor = self.linear((x / 0.3).round() * 0.3)
        return rounded


def test_a_layer_that_says_its_weight_is_read_by_that_and_run_in_evaluation_mode(
    lm: DiffusionLM, calibration: Calibration
) -> None:
    @foreign("static", "torch", ("W8A8",))
    def static(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
        def make(_name: str, linear: nn.Linear) -> nn.Module:
            scale = linear.weight.abs().amax(1, keepdim=True) / 127
            rounded = nn.Linear(linear.in_features, linear.out_features, bias=False)
            rounded.weight = nn.Parameter((linear.weight / scale).round() * scale)
            return WithWeight(_Static(rounded).train(), rounded.weight)

        return library.replace_linears(lm, make)

    made = Subject.of(static).apply(lm, Scheme.parse("W8A8"), calibration)
    for name in target_names(lm.model):
        layer, linear = made.model.get_submodule(name), lm.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        step = linear.weight.abs().amax(1, keepdim=True) / 127
        assert bool(((layer.weight - linear.weight).abs() <= 0.51 * step).all())
    assert [str(f) for f in qb.audit(made, lm, calibration, skip=_SKIPPED)] == []


class _Scaled(nn.Module):
    """A layer that scales its inputs, rounds them by one scale for all, and multiplies."""

    def __init__(self, rounded: torch.Tensor, factor: torch.Tensor, step: float) -> None:
        super().__init__()
        self.rounded, self.factor, self.step = rounded, factor, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dim() == 3, "a layer is called with sequences, as in a model"
        u = (x * self.factor / self.step).round().clamp(-127, 127) * self.step
        return nn.functional.linear(u, self.rounded)


@pytest.mark.parametrize("step", [1e-2, 30.0])
def test_a_layer_that_scales_its_inputs_is_held_to_the_grid_before_it(
    lm: DiffusionLM, calibration: Calibration, step: float
) -> None:
    def scaled(own: bool) -> Any:
        def run(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
            def make(_name: str, linear: nn.Linear) -> nn.Module:
                factor = torch.linspace(0.5, 2.0, linear.in_features)
                weight = linear.weight / factor
                scale = weight.abs().amax(1, keepdim=True) / 127
                rounded = (weight / scale).round() * scale
                layer = _Scaled(rounded, factor, step)
                return WithWeight(layer, rounded * factor, rounded if own else None)

            return library.replace_linears(lm, make)

        return foreign("scaled", "torch", ("W8A8",))(run)

    scheme = Scheme.parse("W8A8")
    said, silent = (Subject.of(scaled(own)).apply(lm, scheme, calibration) for own in (True, False))
    # A step of 30 leaves nothing of this model's inputs, so that nothing is seen of other tokens.
    skip = (*_SKIPPED, "bidirectional")
    assert [str(f) for f in qb.audit(said, lm, calibration, skip=skip)] == []
    assert {f.audit for f in qb.audit(silent, lm, calibration, skip=skip)} >= {"grid"}
    layer = said.model.get_submodule(target_names(lm.model)[0])
    assert layer(torch.ones(5, lm.config.hidden_size)).shape[0] == 5


class _Codes(torch.Tensor):
    """Integer codes in a tensor subclass, without a dequantization of its own."""


def test_codes_of_a_tensor_subclass_are_not_taken_for_weights(
    lm: DiffusionLM, calibration: Calibration
) -> None:
    class Coded(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            codes = (linear.weight.detach() / self.scale).round().to(torch.int8)
            self.weight = codes.as_subclass(_Codes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight.as_subclass(torch.Tensor) * self.scale)

    @foreign("coded", "torch", ("W8A16",))
    def coded(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
        return library.replace_linears(lm, lambda _name, linear: Coded(linear))

    made = Subject.of(coded).apply(lm, Scheme.parse("W8A16"), calibration)
    for name in target_names(lm.model):
        layer, linear = made.model.get_submodule(name), lm.model.get_submodule(name)
        step = linear.weight.abs().amax(1, keepdim=True) / 127
        assert bool(((layer.weight - linear.weight).abs() <= 0.51 * step).all())


_SKIPPED = ("equivalence", "calibration_contract", "input_untouched", "deterministic")


def test_one_static_scale_leaves_hardly_any_input_of_a_down_projection() -> None:
    """Why ModelOpt's INT8 collapses: massive tokens set the scale, and other values round to 0."""
    lm = qb.load("llada-embedded")
    for module in lm.model.modules():
        if isinstance(module, nn.Linear) and module.in_features > module.out_features:
            module.register_forward_pre_hook(lambda module, args: seen[module].append(args[0]))
    seen: defaultdict[nn.Module, list[torch.Tensor]] = defaultdict(list)
    for ids_BT, mask_BT in batches(qb.calibration(lm, sequences=128)):
        lm.logits(ids_BT, mask_BT)
    assert len(seen) == len(lm.model.model.layers)
    for inputs in seen.values():
        values = torch.cat([x.flatten() for x in inputs]).abs()
        assert float((values < values.max() / 254).double().mean()) > 0.98


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_wrong_setting_is_planted_in_what_is_there(fault: Any) -> None:
    subject = subjects()[fault.subject]
    assert fault.scheme in subject.schemes
    assert f"{subject.method}/{fault.scheme}" in NEAREST
    module = import_module(fault.subject.partition(":")[0])
    assert set(fault.instead) <= set(vars(module))
    assert fault.quantizer().parameters == subject.parameters


def test_every_library_has_a_wrong_setting_and_every_cell_one_of_ours_beside_it() -> None:
    assert {fault.module for fault in FAULTS} == set(MODULES)
    cells = {f"{s.method}/{scheme}" for s in subjects().values() for scheme in s.schemes}
    assert cells == set(NEAREST)


def test_the_catalogue_does_not_ask_for_a_module_that_python_has_not_heard_of() -> None:
    for module in MODULES:
        assert importlib.util.find_spec(f"{catalogue.__package__}.{module}") is not None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_wrong_setting_was_caught_by_the_check_that_should(fault: Any) -> None:
    said = json.loads(FOUND.read_text("utf-8"))[key_of(fault)]
    assert said["verdict"] in FAILING
    assert said["check"] == fault.expected
    assert said["wrong"] == fault.wrong
    if fault.where is not None:
        assert said["where"] == fault.where


def test_the_document_is_what_the_tool_writes_of_what_is_stored() -> None:
    assert TABLE.read_text("utf-8") == document()
    for name in NEAREST:
        assert f"**{name}**" in document()
