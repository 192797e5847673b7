"""What a layer made of its input, kept for the layers beside it that read the same."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn


class LastMade:
    """What was last made of an input, for the layers beside the one that made it.

    q, k and v read one tensor, and so do gate and up: turned and rounded three times it is a good
    part of a rotated model's time. Nothing is handed to a layer twice: one that asks again about the
    same tensor may have been changed meanwhile, and so may be what it asks about.
    """

    def __init__(self) -> None:
        self._input: weakref.ref[Tensor] | None = None
        self._version: int | None = None
        self._how: tuple[Any, ...] = ()
        self._made: Any = None
        self._readers: list[weakref.ref[nn.Module]] = []

    def of(self, x: Tensor, how: tuple[Any, ...], layer: nn.Module) -> Any:
        """Return what another layer made of this very tensor in this very way, or ``None``."""
        same = self._input is not None and self._input() is x and self._version == _version(x)
        if not same or self._how != how or any(known() is layer for known in self._readers):
            return None
        self._readers.append(weakref.ref(layer))
        return self._made

    def keep(self, x: Tensor, how: tuple[Any, ...], layer: nn.Module, made: Any) -> None:
        """Keep this until the next is made, or the input is gone."""
        self._input = weakref.ref(x, self._drop)
        self._version, self._how, self._made = _version(x), how, made
        self._readers = [weakref.ref(layer)]

    def _drop(self, gone: weakref.ref[Tensor]) -> None:
        if gone is self._input:
            self._input, self._how, self._made = None, (), None


def _version(x: Tensor) -> int | None:
    """Return how often a tensor was changed in place; inference tensors do not count."""
    return None if x.is_inference() else x._version
