"""The catalogue of planted faults: complete, reversible, and every fault does something.

Whether the suite catches them is measured elsewhere. Here they act on tiny random models, so that
a fault that no longer reaches the code that it is about is noticed within seconds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.evaluation.evaluate import Answers, answers
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.quant.methods import gptq
from dllm_qbench.quant.quantize import METHODS, quantize
from tests.helpers.tiny import tiny_dream, tiny_llada
from tests.meta.faults.catalogue import AREAS, FAULTS
from tests.meta.faults.fault import DREAM, LLADA, Fault, nothing
from tests.meta.faults.runner import plant_and_quantize

HARMFUL = [fault for fault in FAULTS if fault.severity == "harmful"]
BENIGN = [fault for fault in FAULTS if fault.severity == "benign"]
TINY_LINEAR = "model.layers.1.mlp.up_proj"
ITEMS = 32  # of an embedded family
# What a random model does not show: it has no tokenizer, and it neither ends its answers nor ties.
OF_TEXTS = {
    "confidence-in-bf16-ties-from-the-end",
    "end-of-text-suppressed",
    "dream-end-of-text-suppressed",
    "masks-differ-between-choices",
    "prompt-loses-its-first-token",
    "answer-keeps-what-follows-its-end",
    "scoring-takes-the-least-likely-choice",
    "code-scored-on-one-input",
}

generator = torch.Generator().manual_seed(0)
IDS = torch.randint(4, 64, (3, 10), generator=generator)
# Unequal lengths, so that there is padding to get wrong.
ROWS = [torch.randint(4, 64, (6 + i % 5,), generator=generator).tolist() for i in range(16)]


def parameters(faults: Any) -> Any:
    return [pytest.param(fault, id=fault.name) for fault in faults]


def test_names_are_unique() -> None:
    assert [
        name for name, times in Counter(fault.name for fault in FAULTS).items() if times > 1
    ] == []


def test_catalogue_is_as_large_as_issue_4_asks() -> None:
    assert len(HARMFUL) >= 60
    assert len(BENIGN) >= 14


def test_each_area_method_scheme_model_and_task_has_harmful_faults() -> None:
    assert all(AREAS.values())
    assert {fault.method for fault in HARMFUL} == set(METHODS)
    assert {fault.scheme for fault in HARMFUL} == {"W4A16-g64", "W3A16-g64", "W8A8", "W4A4"}
    assert {fault.model for fault in HARMFUL} == {LLADA, DREAM}
    assert {fault.task for fault in HARMFUL} == {"general", "math", "code"}


def test_each_method_has_benign_changes() -> None:
    assert {fault.method for fault in BENIGN} == set(METHODS)


def test_cells_are_those_of_the_matrix() -> None:
    """Only those have a baseline that a fault can be told from."""
    from dllm_qbench.quick_matrix import QUANTIZERS

    assert {(fault.method, fault.scheme) for fault in FAULTS} <= set(QUANTIZERS)


def owners() -> Iterator[tuple[str, Any]]:
    """Yield the package's modules and classes, and its dictionaries."""
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "dllm_qbench":
            yield name, vars(module)
            for leaf, value in sorted(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    yield f"{name}.{leaf}", dict(vars(value))
                elif isinstance(value, dict) and not leaf.startswith("__"):
                    yield f"{name}.{leaf}", value


def snapshot() -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{owner}.{leaf}": value for owner, members in owners() for leaf, value in members.items()
    }
    return found | {"threads": torch.get_num_threads()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        name
        for name in before.keys() | after.keys()
        if before.get(name, changed) is not after.get(name, changed)
    ]


def test_every_plant_changes_something_and_undo_takes_all_of_it_back() -> None:
    before = snapshot()
    for fault in FAULTS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            fault.plant(monkeypatch)
            acts = bool(changed(before, snapshot()))
        assert acts == (fault.plant is not nothing), fault.name
        assert changed(before, snapshot()) == [], fault.name


def on_tiny(fault: Fault) -> Fault:
    """Return the fault for tiny models: groups of 8, rotations that need several blocks, and maxima over
    some of the sequences only.
    """
    more = {"duquant": {"block_size": 8}, "smoothquant": {"sequences": 8}}.get(fault.method, {})
    return replace(
        fault,
        scheme=fault.scheme.replace("g64", "g8"),
        parameters={**more, **fault.parameters},
        calibration_arguments={"ids": ROWS, **fault.calibration_arguments},
    )


def state(lm: DiffusionLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def behaviour(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a tiny model and its quantized self hold and do under a fault."""
    monkeypatch.setattr(gptq, "LAZY_COLUMNS", 16)  # tiny weights need several lazy blocks
    lm = tiny_dream() if fault.model == DREAM else tiny_llada()
    reference, quantized = plant_and_quantize(on_tiny(fault), monkeypatch, lm)
    found: dict[str, Any] = {f"reference {k}": v for k, v in state(reference).items()}
    found |= state(quantized) | {"logits": quantized.logits(IDS)}
    if fault.in_evaluation:
        found["likelihood"] = [
            quantized.log_likelihood(IDS[0, :4], IDS[0, 4 : 4 + length], samples=8)
            for length in (1, 2, 3)
        ]
        found["generated"] = quantized.generate(IDS[:, :4], 12, steps=4, block_length=6)
    return found


@cache
def sound_behaviour(model: str, method: str, scheme: str) -> dict[str, Any]:
    sound = Fault("none", "benign", method, scheme, "math", nothing, "", model, in_evaluation=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return behaviour(sound, monkeypatch)


def moved_by(fault: Fault) -> list[str]:
    """Return what is not the same, bit by bit, under the fault as without it."""
    sound = sound_behaviour(fault.model, fault.method, fault.scheme)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = behaviour(fault, monkeypatch)

    def same(name: str) -> bool:
        a, b = sound.get(name), found[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and torch.equal(a, b)
        return a is not None and a == b

    return [name for name in found if not same(name)]


@pytest.mark.parametrize(
    "fault", parameters(f for f in HARMFUL if f.name not in OF_TEXTS and f.probe is None)
)
def test_harmful_fault_acts_on_a_tiny_model(fault: Fault) -> None:
    assert moved_by(fault)


@cache
def sound_answers(model: str, task: str) -> tuple[DiffusionLM, Answers]:
    lm = quantize(load(model), "rtn", "W4A4")  # wrong often enough for scoring to matter
    return lm, answers(lm, task, ITEMS)


@pytest.mark.parametrize("fault", parameters(f for f in HARMFUL if f.name in OF_TEXTS))
def test_harmful_fault_of_texts_acts_on_an_embedded_model(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, sound = sound_answers(fault.model, fault.task)
    fault.plant(monkeypatch)
    found = answers(lm, fault.task, ITEMS)
    assert (found.texts, found.correct) != (sound.texts, sound.correct)


@pytest.mark.parametrize("fault", parameters(f for f in FAULTS if f.probe is not None))
def test_probe_tells_its_fault_from_sound_code(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault.probe is not None
    fault.probe()
    fault.plant(monkeypatch)
    with pytest.raises(AssertionError):
        fault.probe()


@pytest.mark.parametrize("fault", parameters(BENIGN))
def test_benign_change_quantizes_a_tiny_model(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert behaviour(fault, monkeypatch)["logits"].isfinite().all()
