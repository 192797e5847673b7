"""What plants have in common: replace a name where it is looked up, or edit what a method made.

``METHODS`` holds the methods' functions themselves, so patching ``rtn.quantize_model`` would do
nothing: :func:`around_method` replaces the entry instead. Functions imported by name have to be
replaced in the module that calls them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
from torch import nn

import dllm_qbench.quant.quantize as quantizing
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.scheme import Scheme
from tests.meta.faults.fault import Plant

# edit(model as quantized, model as it was before, scheme)
Edit = Callable[[nn.Module, nn.Module, Scheme], None]


def replaced(*places: tuple[object, str], by: Callable[..., Any]) -> Plant:
    """Put ``by`` in place of a name in each of several modules or classes."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, name in places:
            monkeypatch.setattr(owner, name, by)

    return plant


def wrapped(owner: object, name: str, around: Callable[..., Any]) -> Plant:
    """Call ``around(sound, *arguments)`` in place of ``sound(*arguments)``."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        sound = getattr(owner, name)

        @wraps(sound)
        def faulty(*args: Any, **kwargs: Any) -> Any:
            return around(sound, *args, **kwargs)

        monkeypatch.setattr(owner, name, faulty)

    return plant


def together(*plants: Plant) -> Plant:
    """Plant several patches that make up one fault."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in plants:
            one(monkeypatch)

    return plant


def around_method(method: str, around: Callable[..., None]) -> Plant:
    """Call ``around(apply, model, scheme, ...)`` in place of a method's ``apply``."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        sound = quantizing.METHODS[method]

        @wraps(sound.apply)  # keeps the signature, which is where the recipe is read
        def apply(*args: Any, **kwargs: Any) -> None:
            around(sound.apply, *args, **kwargs)

        monkeypatch.setitem(quantizing.METHODS, method, replace(sound, apply=apply))

    return plant


def after_method(method: str, edit: Edit) -> Plant:
    """Edit what a method made of the model."""

    def around(
        apply: Callable[..., None], model: nn.Module, scheme: Scheme, *a: Any, **k: Any
    ) -> None:
        before = copy.deepcopy(model)
        apply(model, scheme, *a, **k)
        edit(model, before, scheme)

    return around_method(method, around)


def quant_linear(model: nn.Module, name: str) -> QuantLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer
