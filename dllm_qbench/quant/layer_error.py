"""Where a quantized model departs from its full-precision self: SQNR of every targeted linear.

SQNR_dB = 10 log10(||y||^2 / ||y - y_q||^2), with y the full-precision output of a linear, over all
real tokens, summed in float64. 6 dB is one bit. Two readings:

- :func:`layer_errors`: both models run from the same ids; a linear's error includes all that came in
  from before it. This is the profile that a baseline stores.
- :func:`local_errors`: both linears read the full-precision model's input; a linear's error is its own.

A method that rescales channels (SmoothQuant) or rotates them (QuaRot) changes what some linears read
and write; what its layers keep of that (``QuantLinear.from_reference``, ``.to_reference``) is undone
before anything is compared.

Shapes: B sequences, T tokens, N real tokens, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import QuantLinear, target_names

MOST_DB = 200.0  # stands for "identical": records hold finite numbers only
_CHUNK_TOKENS = 8192


def layer_errors(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, float]:
    """Return the accumulated SQNR in dB of every targeted linear's output, in forward order.

    Args:
        reference: the full-precision model.
        quantized: a model of the same architecture.
        ids: long ``[T]`` or ``[B, T]``; a calibration's, or any canvases.
        attention_mask: ``[B, T]``, 0 for padding, which is left out of the sums.

    Returns:
        dB by full module name, within -200..200; 200 means identical.

    Raises:
        NonFiniteError: an output is NaN or infinite; names the module and the model.
        QBenchError: the two models do not have the same linears.
    """
    names = _common_names(reference, quantized)
    sums = {name: [0.0, 0.0] for name in names}
    for part_BT, mask_BT in _chunks(reference, ids, attention_mask):
        real_BT = mask_BT.bool()
        with _recorded(reference, names) as expected:
            reference.logits(part_BT, mask_BT)
        with _recorded(quantized, names) as found:
            quantized.logits(part_BT.to(quantized.device), mask_BT)
        for name in names:
            y_NO = expected[name][1][real_BT].double()
            q_NO = found[name][1].to(y_NO.device)[real_BT]
            _add(sums[name], name, y_NO, _to_reference(quantized, name, q_NO))
    return {name: _decibel(*sums[name]) for name in names}


def local_errors(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, float]:
    """Return the SQNR in dB of each linear alone, both fed with the full-precision model's inputs.

    Arguments, results and errors are those of :func:`layer_errors`.
    """
    names = _common_names(reference, quantized)
    sums = {name: [0.0, 0.0] for name in names}
    for part_BT, mask_BT in _chunks(reference, ids, attention_mask):
        real_BT = mask_BT.bool()
        with _recorded(reference, names) as expected:
            reference.logits(part_BT, mask_BT)
        for name in names:
            x_NI, y_NO = (side[real_BT] for side in expected[name])
            module = quantized.model.get_submodule(name)
            x_NI = x_NI.to(quantized.device)
            with torch.no_grad():
                if isinstance(module, QuantLinear):
                    x_NI = module.from_reference(x_NI)
                q_NO = module(x_NI.to(quantized.dtype))
            q_NO = q_NO.to(y_NO.device)
            _add(sums[name], name, y_NO.double(), _to_reference(quantized, name, q_NO))
    return {name: _decibel(*sums[name]) for name in names}


def weight_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """Return ``||X W' - X Wq'||`` (Frobenius) from weights ``[O, I]`` and ``H = X^T X [I, I]``."""
    delta_OI = (weight - quantized).double()
    return math.sqrt(max(0.0, float(((delta_OI @ hessian.double()) * delta_OI).sum())))


def _common_names(reference: DiffusionLM, quantized: DiffusionLM) -> list[str]:
    names = target_names(reference.model)
    if names != target_names(quantized.model):
        raise QBenchError(
            f"layer errors: {reference.name} and {quantized.name} do not have the same linears"
        )
    return names


def _chunks(
    lm: DiffusionLM, ids: Tensor, attention_mask: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    tokens_BT = lm.as_ids(ids)
    tokens_BT = tokens_BT[None] if tokens_BT.dim() == 1 else tokens_BT
    mask_BT = torch.ones_like(tokens_BT) if attention_mask is None else attention_mask
    mask_BT = mask_BT.to(tokens_BT.device).reshape(tokens_BT.shape)
    rows = max(1, _CHUNK_TOKENS // max(1, tokens_BT.shape[1]))
    yield from zip(tokens_BT.split(rows), mask_BT.split(rows), strict=True)


@contextmanager
def _recorded(lm: DiffusionLM, names: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record input and output of every named module during the forward passes inside."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (args[0], out)

        return keep

    hooks = [lm.model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _to_reference(lm: DiffusionLM, name: str, y_NO: Tensor) -> Tensor:
    """Return an output of the module called ``name`` in full precision's terms, in float64."""
    module = lm.model.get_submodule(name)
    wide = y_NO.double()
    return module.to_reference(wide) if isinstance(module, QuantLinear) else wide


def _add(sums: list[float], name: str, expected_NO: Tensor, found_NO: Tensor) -> None:
    signal = float(expected_NO.square().sum())
    noise = float((expected_NO - found_NO).square().sum())
    if not math.isfinite(signal) or not math.isfinite(noise):
        which = "full-precision" if not math.isfinite(signal) else "quantized"
        raise NonFiniteError(f"layer errors: the {which} output of {name} is NaN or infinite")
    sums[0] += signal
    sums[1] += noise


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return MOST_DB
    if signal == 0.0:
        return -MOST_DB
    return min(MOST_DB, max(-MOST_DB, 10 * math.log10(signal / noise)))
