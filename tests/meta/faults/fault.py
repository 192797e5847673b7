"""A planted fault: one small reversible patch of the package, and where it should show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]
Severity = Literal["harmful", "benign"]

LLADA, DREAM = "llada-embedded", "dream-embedded"


@dataclass(frozen=True)
class Fault:
    """One way to be wrong, or, where it is benign, to be right in another way.

    Attributes:
        name: unique in the catalogue.
        severity: ``"harmful"`` has to be caught, ``"benign"`` must not be.
        method, scheme: of the quantized model in which it shows.
        task: ``"general"``, ``"math"`` or ``"code"``: where it should show best.
        plant: patches the package through the given MonkeyPatch, whose ``undo`` takes it back.
        what: the fault in one sentence.
        model: the embedded model in which it shows.
        linear: full name of the one linear that it sits in; ``None`` where it is everywhere.
        parameters: of ``quantize``, in place of the recipe's.
        calibration_seed: of the draw; the baselines' is 0.
        calibration_arguments: of ``calibration``, in place of its defaults.
        in_calibration: the fault sits in how calibration is drawn, so it is planted before that.
        in_evaluation: the fault sits in what measures, so full precision is measured under it too.
        probe: for a fault that no cell can see: runs the package's own law, and raises an
            AssertionError where the law is broken.
    """

    name: str
    severity: Severity
    method: str
    scheme: str
    task: str
    plant: Plant
    what: str
    model: str = LLADA
    linear: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    calibration_seed: int = 0
    calibration_arguments: Mapping[str, Any] = field(default_factory=dict)
    in_calibration: bool = False
    in_evaluation: bool = False
    probe: Callable[[], None] | None = None


def nothing(_monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant nothing: for faults that are all in their parameters, and for controls."""


def of_method(
    name: str, method: str, scheme: str, task: str, plant: Plant, what: str, **more: Any
) -> Fault:
    """A harmful fault of a quantizer, which its name begins with."""
    return Fault(f"{method}-{name}", "harmful", method, scheme, task, plant, what, **more)


def of_evaluation(
    name: str, method: str, scheme: str, task: str, plant: Plant, what: str, **more: Any
) -> Fault:
    """A harmful fault of what measures: full precision is measured under it too."""
    return Fault(name, "harmful", method, scheme, task, plant, what, in_evaluation=True, **more)
