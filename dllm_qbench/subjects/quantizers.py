"""A user's quantizer by its name: ``package.module:function``.

The function takes a full-precision :class:`dllm_qbench.DiffusionLM` (a copy: it may change it), a
:class:`dllm_qbench.Scheme` and a :class:`dllm_qbench.Calibration`, and returns the quantized model: a
``DiffusionLM``, or the ``torch.nn.Module`` in it. Three attributes of the function are looked at where it
has them: ``method`` (its name in cells; else the function's own), ``parameters`` (settings, for the
recipe) and ``grid`` (see :func:`dllm_qbench.subjects.adopt`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.adopted import GridKind
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.subjects.adopt import adopt

Quantize = Callable[[DiffusionLM, Scheme, Calibration], Any]


@dataclass(frozen=True)
class Subject:
    """A quantizer under test.

    Attributes:
        quantize: the user's function.
        method: what it is called in cells and baselines.
        parameters: its settings, for the recipe.
        grid: what its levels are.
    """

    quantize: Quantize
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: GridKind = "uniform"

    @classmethod
    def of(cls, quantize: Quantize | str, method: str | None = None) -> Subject:
        """Take a function, or one's name; ``method`` overrides what it is called."""
        function = find_subject(quantize) if isinstance(quantize, str) else quantize
        if not callable(function):
            raise QBenchError(
                f"subject: {quantize!r} is {type(function).__name__}, expected a function"
            )
        own = (
            method or getattr(function, "method", None) or getattr(function, "__name__", "subject")
        )
        parameters: Mapping[str, Any] = getattr(function, "parameters", {})
        grid: GridKind = getattr(function, "grid", "uniform")
        return cls(function, str(own), parameters, grid)

    def apply(self, lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> DiffusionLM:
        """Quantize a copy of a full-precision model, and adopt what comes back.

        Raises:
            QBenchError: what the function raised, with its name; or what came back cannot be adopted.
        """
        try:
            made = self.quantize(lm.clone(), scheme, calibration)
        except QBenchError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise QBenchError(
                f"subject {self.method}: raised {type(error).__name__} on {lm.name} at {scheme}: {error}"
            ) from error
        return adopt(
            made,
            lm,
            self.method,
            scheme,
            parameters=self.parameters,
            calibration=calibration,
            grid=self.grid,
        )


def find_subject(name: str) -> Quantize:
    """Import ``package.module:function``, from the current folder too.

    Raises:
        QBenchError: not of that form, no such module or function, or the module fails to import.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise QBenchError(
            f"subject {name!r}: expected package.module:function, such as my_package.quantizer:quantize"
        )
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # as python -m has it; an installed pytest starts without
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise QBenchError(
            f"subject {name!r}: {module_name} cannot be imported ({type(error).__name__}: {error});"
            " install it, or run from the folder that holds it"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise QBenchError(f"subject {name!r}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise QBenchError(f"subject {name!r}: is {type(found).__name__}, expected a function")
    function: Quantize = found
    return function
