"""What the modules of this package share: finding a library, its layers' weights, calibration batches.

Shapes: B sequences, T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import QBenchError, SchemeError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.adopted import GridKind
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import put, target_names
from dllm_qbench.quant.scheme import Scheme

_MOST_ROWS = 64  # sequences of a calibration batch


@dataclass(frozen=True, eq=False)
class Foreign:
    """Another library's quantizer, as ``--qbench-subject`` takes it.

    Attributes:
        run: quantizes the linears of ``lm.model`` and returns the model; ``lm`` is its to change.
        method: what it is called in cells and baselines.
        library: the name of its distribution.
        grid: ``"levels"`` where its levels are not whole steps of one scale from 0.
        schemes: what it can be asked for; each cell of the matrix is one of them.
        transforms: whether it changes more than the linears' weights, so that a run with nothing
            rounded has something to check.
        settings: what else it is told, for the recipe.
    """

    run: Callable[[DiffusionLM, Scheme, Calibration], nn.Module]
    method: str
    library: str
    schemes: tuple[str, ...]
    grid: GridKind
    transforms: bool
    settings: Mapping[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings and the library's version: another version is another recipe."""
        return {**self.settings, "library": f"{self.library} {version(self.library)}"}

    def __call__(self, lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
        """Quantize ``lm``, which it may change.

        Raises:
            SchemeError: a scheme that the library does not have.
            QBenchError: the library is not installed.
        """
        untouched = not (scheme.quantizes_weights or scheme.quantizes_activations)
        if untouched and not self.transforms:
            return lm.model
        if not untouched and str(scheme) not in self.schemes:
            raise SchemeError(
                f"{self.method}: scheme {scheme}; expected one of {', '.join(self.schemes)}, what is"
                f" tried of {self.library}"
            )
        with quiet():
            return self.run(lm, scheme, calibration)


def foreign(
    method: str,
    library: str,
    schemes: tuple[str, ...],
    grid: GridKind = "uniform",
    transforms: bool = False,
    **settings: Any,
) -> Callable[[Callable[[DiffusionLM, Scheme, Calibration], nn.Module]], Foreign]:
    """Make a subject of a function; arguments are :class:`Foreign`'s."""

    def made(run: Callable[[DiffusionLM, Scheme, Calibration], nn.Module]) -> Foreign:
        return Foreign(run, method, library, schemes, grid, transforms, settings)

    return made


class WithWeight(nn.Module):
    """A library's layer, and the weight that it multiplies, by the library's own dequantization.

    Attributes:
        layer: maps ``[..., I]`` to ``[..., O]``.
        stands_for: ``[O, I]``, what it multiplies its inputs by, as they come.
        before_scaling: ``[O, I]``, what it rounded, where it scales its inputs first; else ``None``.
    """

    def __init__(
        self, layer: nn.Module, weight: Tensor, before_scaling: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.stands_for = weight.detach()
        self.before_scaling = None if before_scaling is None else before_scaling.detach()

    @property
    def bias(self) -> Any:
        """The library's layer's ``[O]``, or ``None``."""
        return getattr(self.layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Run the library's layer."""
        out: Tensor = self.layer(x)
        return out

    def dequantize(self) -> Tensor:
        """Return the weight ``[O, I]``."""
        return self.stands_for


def version(library: str) -> str:
    """Return a distribution's version, ``"missing"`` where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def need(module: str, library: str) -> Any:
    """Import a library's module.

    Raises:
        QBenchError: it is not installed, or does not import here; says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise QBenchError(
            f"{library} cannot be imported ({error}); its subjects need it: pip install {library}, into"
            " an environment of its own (the tox environments name the versions that were tried)"
        ) from error


def each_linear(lm: DiffusionLM) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of every linear inside the blocks, in forward order."""
    for name in target_names(lm.model):
        linear = lm.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        yield name, linear


def replace_linears(lm: DiffusionLM, make: Callable[[str, nn.Linear], nn.Module]) -> nn.Module:
    """Put what ``make(name, linear)`` returns in each linear's place; return the model."""
    for name, linear in list(each_linear(lm)):
        put(lm.model, name, make(name, linear))
    return lm.model


def group_of(scheme: Scheme, linear: nn.Linear) -> int:
    """Return how many weights share a scale.

    Raises:
        SchemeError: they do not fill the linear's inputs evenly, which these libraries cannot do.
    """
    group = min(scheme.group or linear.in_features, linear.in_features)
    if linear.in_features % group:
        raise SchemeError(
            f"scheme {scheme}: {linear.in_features} inputs are no whole groups of {group}; take a group"
            " that divides them"
        )
    return group


def group_for_all(scheme: Scheme, lm: DiffusionLM) -> int:
    """Return one number of weights that share a scale, for a library that takes a single one.

    Raises:
        SchemeError: it is not the same for all linears, or does not fill their inputs evenly.
    """
    sizes = {group_of(scheme, linear) for _, linear in each_linear(lm)}
    if len(sizes) > 1:
        raise SchemeError(
            f"scheme {scheme}: the linears of {lm.name} have groups of {sorted(sizes)}; expected one size"
            " for all: take a group that is no larger than the narrowest linear's inputs"
        )
    return sizes.pop()


def batches(calibration: Calibration) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield canvases ``[B, T]`` and their attention masks, without any padding.

    Sequences of one length go together: a library that knows nothing of padding (its second moments,
    its largest magnitudes) would count it.
    """
    lengths = calibration.attention_mask.sum(1)
    for length in lengths.unique().tolist():
        ids_BT = calibration.ids[lengths == length, :length]
        for part_BT in ids_BT.split(_MOST_ROWS):
            yield part_BT, torch.ones_like(part_BT)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's warnings of what it would do elsewhere (GPUs, kernels) to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
