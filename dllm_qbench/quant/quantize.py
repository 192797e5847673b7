"""``quantize(lm, method, scheme)``: one way in for every method.

The input model is never touched: the method works on a deep copy. What comes back carries its whole
recipe, down to a digest of the calibration sequences.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import usable_device
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.calibration import calibration as draw_calibration
from dllm_qbench.quant.methods import awq, duquant, gptq, quarot, rtn, smoothquant
from dllm_qbench.quant.packed import checked_execution, pack_layers
from dllm_qbench.quant.scheme import Scheme


@dataclass(frozen=True)
class Method:
    """What ``quantize`` needs to know of a method.

    Attributes:
        apply: ``apply(model, scheme, [calibration,] [device,] *, parameters...)``, changes ``model``
            in place; ``device`` comes only if it was asked for. Its keyword-only arguments are the
            method's parameters, their defaults the recipe.
        calibrates: whether ``apply`` takes calibration data.
        symmetric: the weight grid's symmetry where a scheme leaves it open.
    """

    apply: Callable[..., None]
    calibrates: bool
    symmetric: Callable[[Scheme], bool]

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's parameters and their defaults."""
        known = inspect.signature(self.apply).parameters.values()
        return {p.name: p.default for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY}


METHODS: Mapping[str, Method] = {
    rtn.NAME: Method(rtn.quantize_model, False, rtn.symmetric_by_default),
    gptq.NAME: Method(gptq.quantize_model, True, gptq.symmetric_by_default),
    awq.NAME: Method(awq.quantize_model, True, awq.symmetric_by_default),
    smoothquant.NAME: Method(smoothquant.quantize_model, True, smoothquant.symmetric_by_default),
    quarot.NAME: Method(quarot.quantize_model, True, quarot.symmetric_by_default),
    duquant.NAME: Method(duquant.quantize_model, True, duquant.symmetric_by_default),
}


def quantize(
    lm: DiffusionLM,
    method: str,
    scheme: str | Scheme,
    calibration: Calibration | None = None,
    *,
    device: str | torch.device | None = None,
    execution: str = "fake",
    **parameters: Any,
) -> DiffusionLM:
    """Quantize all linears inside the blocks of a full-precision model.

    Embeddings, norms, biases and the LM head keep their precision.

    Args:
        lm: full precision; bit-identical afterwards.
        method: ``"rtn"``, ``"gptq"``, ``"awq"``, ``"smoothquant"``, ``"quarot"`` or ``"duquant"``.
        scheme: such as ``"W4A16-g64"``.
        calibration: what :func:`dllm_qbench.calibration` returns; ``None`` draws its default with
            seed 0. ``rtn`` does not look at it.
        device: where to compute, block by block; the model and the result stay where the model lives.
            ``None`` computes there. A model of 8B that lives in CPU memory (31 GiB of it: the copy
            too) is quantized on one 24 GB card so.
        execution: ``"fake"``: weights are the floating-point values that their codes stand for.
            ``"packed"``: codes are what is held, and kernels multiply them (``quant/packed.py``). The
            recipe is the same. Weights of 16 bits stay as they are.
        **parameters: of the method, in place of its defaults (``damp`` and ``act_order`` of
            ``gptq``, ``alpha`` of ``smoothquant``, ``weights`` and ``seed`` of ``quarot``, ...):
            the keyword-only ones of its ``quantize_model``.

    Returns:
        A new model of the same name whose ``recipe`` says how it was made.

    Raises:
        SchemeError: the scheme does not follow the grammar.
        NonFiniteError: a parameter of the model holds a NaN or an infinity; names it.
        QBenchError: an unknown method, parameter, device or execution, a model that is quantized
            already, or a layer that cannot be packed.
    """
    parsed = Scheme.parse(scheme)
    if method not in METHODS:
        raise QBenchError(f"method {method!r} is unknown; methods: {', '.join(METHODS)}")
    chosen = METHODS[method]
    packed = checked_execution(execution) == "packed"
    unknown = sorted(set(parameters) - set(chosen.parameters))
    if unknown:
        raise QBenchError(
            f"{method}: unknown parameter {', '.join(map(repr, unknown))};"
            f" parameters: {', '.join(chosen.parameters) or 'none'}"
        )
    if lm.recipe is not None:
        raise QBenchError(
            f"{lm.name} is already quantized ({lm.recipe.get('method')} {lm.recipe.get('scheme')});"
            " quantize the full-precision model"
        )
    lm.check_finite(f"quantize {lm.name} with {method}")
    place = {} if device is None else {"device": usable_device(device)}
    settings = chosen.parameters | parameters
    data = calibration
    if chosen.calibrates and data is None:
        data = draw_calibration(lm)
    copy = lm.clone()
    with torch.no_grad():
        if chosen.calibrates:
            chosen.apply(copy.model, parsed, data, **place, **settings)
        else:
            chosen.apply(copy.model, parsed, **place, **settings)
        if packed:
            pack_layers(copy.model)
    recipe = {
        "method": method,
        "scheme": str(parsed),
        "symmetric": parsed.is_symmetric(chosen.symmetric(parsed)),
        "parameters": settings,
        "calibration": dict(data.recipe) if chosen.calibrates and data is not None else None,
    }
    copy.model.eval()
    return replace(copy, recipe=recipe, _fingerprint=None)


def recipe_hash(recipe: Mapping[str, Any] | None) -> str:
    """Return the sha256 of a recipe's canonical JSON: equal recipes, and only these, hash equally."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
