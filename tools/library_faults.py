"""Other libraries' quantizers with a wrong setting each: what the suite has to catch.

Each is one mistake that a person makes with the library, not a damaged weight. A patch of the module
that wraps the library is the mistake; the library runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dllm_qbench.interop.catalogue import subjects
from dllm_qbench.interop.library import Foreign, batches
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import put, target_names
from dllm_qbench.quant.scheme import Scheme

_AT = "dllm_qbench.interop"
_LATER = Callable[[DiffusionLM, nn.Module], None]


@dataclass(frozen=True)
class LibraryFault:
    """One wrong setting.

    Attributes:
        name: of the fault.
        subject, scheme: what it is planted in.
        wrong: the setting, in words.
        expected: the check that has to find it: an audit, a linear's own error that left its baseline, or
            adoption, where a layer is no rounded linear at all.
        where: the linear at fault; ``None`` where all of them are.
        instead: what stands in the wrapping module's place for each name.
        later: changes the quantized model, given the full-precision one too.
    """

    name: str
    subject: str
    scheme: str
    wrong: str
    expected: str
    where: str | None
    instead: Mapping[str, Any]
    later: _LATER | None = None

    @property
    def module(self) -> str:
        """The wrapping module's short name."""
        return self.subject.partition(":")[0].rpartition(".")[2]

    def quantizer(self) -> Foreign:
        """Return the subject with the setting wrong; its name and recipe are the sound one's."""
        sound = subjects()[self.subject]

        def run(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
            whole = lm.clone()
            with self._patched():
                made = sound.run(lm, scheme, calibration)
            if self.later is not None:
                self.later(whole, made)
            return made

        return replace(sound, run=run)

    def _patched(self) -> AbstractContextManager[Any]:
        module = import_module(self.subject.partition(":")[0])
        stack = ExitStack()
        for name, value in self.instead.items():
            stack.enter_context(patch.object(module, name, value))
        return stack


def _without(name: str) -> Callable[[nn.Module], list[str]]:
    return lambda model: [each for each in target_names(model) if each != name]


def _quantos_own(_scheme: Scheme, linear: nn.Linear) -> int:
    """The group that quanto takes where nobody sets one."""
    return 128 if linear.in_features % 128 == 0 else 96


def _causal(calibration: Calibration) -> Iterator[tuple[Tensor, Tensor]]:
    for ids_BT, mask_BT in batches(calibration):
        length = mask_BT.shape[1]
        tril = torch.ones(length, length, dtype=torch.bool).tril()
        yield ids_BT, tril.expand(len(mask_BT), 1, length, length)


def _all_masked(calibration: Calibration) -> Iterator[tuple[Tensor, Tensor]]:
    # Ratio 1 at its furthest: not even the prompt is left.
    for ids_BT, mask_BT in batches(calibration):
        yield torch.full_like(ids_BT, _MASK_ID), mask_BT


def _three_bits(name: str) -> _LATER:
    def later(whole: DiffusionLM, made: nn.Module) -> None:
        hqq = import_module(f"{_AT}.hqq")
        put(made, name, hqq.layer_of(whole.model.get_submodule(name), 3, 64))

    return later


def _fp4(name: str) -> _LATER:
    def later(whole: DiffusionLM, made: nn.Module) -> None:
        wrapped = import_module(f"{_AT}.bitsandbytes")
        put(made, name, wrapped.four_bits(whole.model.get_submodule(name), 64, "fp4"))

    return later


_MASK_ID = 2  # of the embedded LLaDA

FAULTS: tuple[LibraryFault, ...] = (
    LibraryFault(
        "groups of 32",
        f"{_AT}.torchao:intx_weight_only",
        "W4A16-g64",
        "PerGroup(32) where the scheme says 64",
        "audit: grid",
        None,
        {"group_for_all": lambda _scheme, _lm: 32},
    ),
    LibraryFault(
        "a linear left out",
        f"{_AT}.torchao:int8_dynamic",
        "W8A8",
        "a filter that does not match o_proj of block 2",
        "audit: coverage",
        "model.layers.2.self_attn.o_proj",
        {"target_names": _without("model.layers.2.self_attn.o_proj")},
    ),
    LibraryFault(
        "its own groups",
        f"{_AT}.quanto:qint4",
        "W4A16-g64",
        "weight_group_size left to quanto: 96 and 128",
        "audit: grid",
        None,
        {"group_of": _quantos_own},
    ),
    LibraryFault(
        "3 bits in one linear",
        f"{_AT}.hqq:hqq",
        "W4A16-g64",
        "nbits=3 for up_proj of block 1",
        "own error",
        "model.layers.1.mlp.up_proj",
        {},
        _three_bits("model.layers.1.mlp.up_proj"),
    ),
    LibraryFault(
        "FP4 in one linear",
        f"{_AT}.bitsandbytes:nf4",
        "W4A16-g64",
        "quant_type='fp4' for v_proj of block 0",
        "own error",
        "model.layers.0.self_attn.v_proj",
        {},
        _fp4("model.layers.0.self_attn.v_proj"),
    ),
    LibraryFault(
        "bfloat16 products",
        f"{_AT}.bitsandbytes:nf4",
        "W4A16-g64",
        "its kernel for CPUs with AVX-512 BF16 left on: products in bfloat16",
        "audit: coverage",
        None,
        {"BFLOAT16_PRODUCTS": True},
    ),
    LibraryFault(
        "no outlier channels",
        f"{_AT}.bitsandbytes:llm_int8",
        "W8A8",
        "threshold=0: outlier channels are rounded with the others",
        "own error",
        None,
        {"THRESHOLD": 0.0},
    ),
    LibraryFault(
        "only masks in calibration",
        f"{_AT}.modelopt:smoothquant",
        "W8A8",
        "calibrated on canvases of nothing but [MASK]",
        "adoption",
        "model.layers.0.self_attn.q_proj",
        {"batches": _all_masked},
    ),
    LibraryFault(
        "groups of 128",
        f"{_AT}.modelopt:awq",
        "W4A16-g64",
        "block_sizes as the library ships them, 128",
        "audit: grid",
        None,
        {"group_for_all": lambda _scheme, _lm: 128},
    ),
    LibraryFault(
        "causal calibration",
        f"{_AT}.llmcompressor:gptq",
        "W4A16-g64",
        "calibration batches carry a causal mask",
        "audit: calibration_contract",
        "model.layers.0.self_attn",
        {"batches": _causal},
    ),
    LibraryFault(
        "down projections ignored",
        f"{_AT}.llmcompressor:smoothquant",
        "W8A8",
        "ignore=['lm_head', 're:.*down_proj']",
        "audit: coverage",
        "model.layers.0.mlp.down_proj",
        {"IGNORED": ["lm_head", "re:.*down_proj"]},
    ),
)
