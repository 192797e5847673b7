"""``adopt``: a model that another quantizer made, as the rest of the suite sees a quantized model.

Notable:
- the quantizer's own modules stay and are what runs: what is evaluated is its arithmetic, not ours;
- its weights are read off: as they are where a layer is a plain linear, through ``dequantize()`` where
  the layer or its weight has one of its own, else by feeding unit vectors to the layer;
- its grid is found from the weights' levels (``subjects/levels.py``), so that the audits have what
  they need, and named wrong where it is not the scheme's;
- a layer is asked whether it rounds its inputs;
- a linear that is as it was in full precision is left alone, for the coverage audit to name it;
- what a method moved between layers before it rounded them (SmoothQuant, AWQ) is found again, so that
  layers' own errors stay comparable. Rotations of the residual stream are not: use ``QuantLinear``.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.adopted import KINDS, AdoptedLinear, GridKind
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.folded import follow_folding
from dllm_qbench.quant.grid import Grid
from dllm_qbench.quant.layers import QuantLinear, put, quantize_tokens, target_names
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.seeding import derive
from dllm_qbench.subjects.levels import find_levels

_PROBE_TOKENS = 32
_UNIT_ROWS = 1024  # unit vectors fed at a time
# A layer reads as its weight if its outputs are so near: of float32, and of half precisions.
_NEAR = {torch.float32: 1e-4, torch.float64: 1e-4}
_NEAR_HALF = 2e-2
_LENGTHS = (4.0, 16.0, 64.0, 256.0, 1024.0)  # of the probe, beyond 1
_LONG = {torch.float32: 2.0**16, torch.float64: 2.0**32, torch.bfloat16: 2.0**16}


def adopt(
    made: DiffusionLM | nn.Module,
    reference: DiffusionLM,
    method: str,
    scheme: str | Scheme,
    *,
    parameters: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    grid: GridKind = "uniform",
) -> DiffusionLM:
    """Return another quantizer's model as a quantized :class:`DiffusionLM` with a recipe.

    Args:
        made: what the quantizer returned. Each of the linears that a scheme targets is a plain
            ``nn.Linear``, or any module in its place that maps ``[..., I]`` to ``[..., O]``. It is
            changed: its linears are put behind :class:`AdoptedLinear`.
        reference: the full-precision model that it was made from, still as it was.
        method: what to call the quantizer, in cells and baselines; no slash.
        scheme: what it says that it did.
        parameters: its settings, for the recipe; JSON values.
        calibration: what it saw, or ``None``.
        grid: ``"levels"`` where its levels are not whole steps of one scale with 0 among them (NF4, a
            zero point that is no integer): then the grid audit counts levels only.

    Raises:
        QBenchError: not a model of the same architecture, the reference itself, a layer that cannot be
            read, or a name that is none.
        NonFiniteError: a weight holds a NaN or an infinity; names the layer.
    """
    parsed = Scheme.parse(scheme)
    _check_names(method, grid)
    model = made.model if isinstance(made, DiffusionLM) else made
    if not isinstance(model, nn.Module):
        raise QBenchError(
            f"{method}: the quantizer returned {type(made).__name__}; expected a DiffusionLM or the"
            " quantized torch.nn.Module (return the model, also where it was changed in place)"
        )
    if model is reference.model:
        raise QBenchError(
            f"{method}: the quantizer changed the full-precision model itself; quantize a copy:"
            " lm.clone()"
        )
    model.eval()  # before its linears are put behind modules that do not pass it on
    names = target_names(reference.model)
    own = dict(reference.model.named_modules())
    layers: dict[str, QuantLinear] = {}
    for name in names:
        linear = own[name]
        assert isinstance(linear, nn.Linear)
        layer = _module(model, name, method)
        if isinstance(layer, QuantLinear) or _untouched(layer, linear):
            continue
        layers[name] = _adopted(layer, linear, name, method, parsed, grid)
    for name, layer in layers.items():
        put(model, name, layer)
    if target_names(model) != names:
        raise QBenchError(f"{method}: the model's linears are not those of {reference.name}")
    quantized = [m for m in map(model.get_submodule, names) if isinstance(m, QuantLinear)]
    if len(layers) == len(quantized):  # this package's own layers know what was moved
        follow_folding(model, reference.model)
    held = [layer for layer in quantized if layer.symmetric is not None]
    symmetric = all(bool(layer.symmetric) for layer in held) if held else False
    recipe = {
        "method": method,
        "scheme": str(parsed),
        "symmetric": parsed.is_symmetric(symmetric),
        "parameters": dict(parameters or {}),
        "calibration": None if calibration is None else dict(calibration.recipe),
    }
    if grid != "uniform":
        recipe["grid"] = grid
    return replace(reference, model=model, recipe=recipe, _fingerprint=None)


def _check_names(method: str, grid: str) -> None:
    if not method or "/" in method or method != method.strip():
        raise QBenchError(f"method {method!r}: expected a name without slashes, such as 'my-gptq'")
    if grid not in KINDS:
        raise QBenchError(f"{method}: grid is {grid!r}, expected one of {', '.join(KINDS)}")


def _module(model: nn.Module, name: str, method: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise QBenchError(
            f"{method}: the quantized model has no module {name} ({error}); expected the full-precision"
            " model's layout, with another module in each linear's place"
        ) from error


def _is_plain(layer: nn.Module) -> bool:
    """Whether nothing but a product and a bias stands between a layer's input and its output."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight.data) is Tensor
        and layer.weight.is_floating_point()
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and "forward" not in layer.__dict__
    )


def _untouched(layer: nn.Module, linear: nn.Linear) -> bool:
    return (
        isinstance(layer, nn.Linear)
        and _is_plain(layer)
        and layer.weight.shape == linear.weight.shape
        and bool((layer.weight.to(linear.weight) == linear.weight).all())
    )


def _adopted(
    layer: nn.Module,
    linear: nn.Linear,
    name: str,
    method: str,
    scheme: Scheme,
    kind: GridKind,
) -> AdoptedLinear:
    weight, bias = read_linear(layer, linear, f"{method}: {name}")
    grid, full_range = None, False
    # A layer that scales its inputs says what it rounded, before those scales.
    before: Tensor | None = getattr(layer, "before_scaling", None)
    rounded = weight if before is None else before.detach().to(weight)
    if scheme.quantizes_weights and kind == "uniform":
        found = find_levels(rounded, scheme.weight_bits, scheme.group, scheme.symmetric)
        if found is not None:
            grid = Grid(found.scale, found.zero, scheme.weight_bits, found.symmetric, found.group)
            full_range = found.full_range
    made = AdoptedLinear(layer, weight, bias, grid, scheme, method)
    made.kind, made.full_range = kind, full_range
    made.before_scaling = None if before is None else rounded
    made.rounds_inputs = _rounds_inputs(made, scheme, f"{method}: {name}")
    return made


@torch.no_grad()
def read_linear(layer: nn.Module, linear: nn.Linear, where: str) -> tuple[Tensor, Tensor | None]:
    """Return the weight ``[O, I]`` that a layer multiplies, in the data type of ``linear``, and its bias.

    ``linear`` is the full-precision layer in its place. Unit vectors are used where the weight cannot
    be had otherwise: a layer that rounds every token on a grid of its own gives them back exactly.
    """
    O, I = linear.weight.shape  # noqa: E741 (the legend's names)
    bias: Any = getattr(layer, "bias", None)
    given: Any = getattr(layer, "weight", None)
    weight: Tensor | None = None
    if isinstance(layer, nn.Linear) and _is_plain(layer):
        weight = layer.weight.detach()
    elif callable(own := getattr(layer, "dequantize", None)):
        weight = own().detach()
    elif isinstance(given, Tensor) and type(given).dequantize is not Tensor.dequantize:
        # Every tensor has a method of that name; that of plain codes would return the codes.
        weight = given.dequantize().detach()
    if weight is None:
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        offset_O = _run(layer, torch.zeros(1, I, **like), where)[0]
        # Beside a bias a weight loses digits: then longer vectors, by a power of 2, which loses none.
        length = _LONG.get(linear.weight.dtype, 2.0**6) if bool(offset_O.any()) else 1.0
        eye_II = length * torch.eye(I, **like)
        columns = [_run(layer, rows, where) - offset_O for rows in eye_II.split(_UNIT_ROWS)]
        weight = (torch.cat(columns) / length).T.contiguous()
        bias = offset_O if bool(offset_O.any()) else None
    if tuple(weight.shape) != (O, I):
        raise QBenchError(
            f"{where}: its weight has shape {list(weight.shape)}, expected {[O, I]}, the full-precision"
            " layer's"
        )
    weight = weight.to(linear.weight.dtype).to(linear.weight.device)
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise NonFiniteError(f"{where}: its weight holds {bad} non-finite value(s)")
    return weight, bias.detach() if isinstance(bias, Tensor) else None


def _run(layer: nn.Module, x_NI: Tensor, where: str) -> Tensor:
    """Call a layer as a model does, with a batch of one sequence."""
    try:
        out: Any = layer(x_NI[None])
    except Exception as error:  # another library's code may raise anything
        raise QBenchError(
            f"{where}: {type(layer).__name__} cannot be called with {list(x_NI[None].shape)} of"
            f" {x_NI.dtype} ({type(error).__name__}: {error}); expected a module in a linear's place"
        ) from error
    if not isinstance(out, Tensor):
        raise QBenchError(
            f"{where}: {type(layer).__name__} returned {type(out).__name__}, expected a tensor"
        )
    return out[0]


@torch.no_grad()
def _rounds_inputs(layer: AdoptedLinear, scheme: Scheme, where: str) -> bool:
    """Say whether a layer's outputs are others than its weight's product with the input.

    Raises:
        QBenchError: they are nothing like it, so that the weight read off is not what it multiplies.
    """
    generator = torch.Generator().manual_seed(derive(0, "subjects", "probe"))
    x_NI = torch.randn(_PROBE_TOKENS, layer.in_features, generator=generator).to(layer.weight)
    off = _off(layer, x_NI, where)
    near = _NEAR.get(x_NI.dtype, _NEAR_HALF)
    if off <= near:
        return False
    coarsest = scheme.act_bits if scheme.quantizes_activations else 8
    rounded_NO = nn.functional.linear(quantize_tokens(x_NI, coarsest), layer.weight, layer.bias)
    product_NO = nn.functional.linear(x_NI, layer.weight, layer.bias)
    most = max(0.5, 4 * float((rounded_NO - product_NO).norm() / _size(product_NO)))
    # A static grid, of one scale for all inputs, is too coarse for short ones and clips long ones.
    lengths = iter(_LENGTHS)
    while off > most and (length := next(lengths, None)) is not None:
        off = min(off, _off(layer, length * x_NI, where))
    if not off <= most:
        raise QBenchError(
            f"{where}: {type(layer.module).__name__} gives outputs {off:.2g} of their size from its"
            " weight's product with the input; expected a linear layer that at most rounds its input"
        )
    return True


def _off(layer: AdoptedLinear, x_NI: Tensor, where: str) -> float:
    """Return how far a layer's outputs are from its weight's product, relative to their size."""
    product_NO = nn.functional.linear(x_NI, layer.weight, layer.bias)
    return float((_run(layer.module, x_NI, where) - product_NO).norm() / _size(product_NO))


def _size(y_NO: Tensor) -> Tensor:
    size: Tensor = y_NO.norm().clamp(min=torch.finfo(y_NO.dtype).tiny)
    return size
