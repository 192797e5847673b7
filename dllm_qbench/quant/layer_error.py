"""Where a quantized model departs from its full-precision self, module by module.

SQNR_dB = mean over real tokens of 10 log10(||y||^2 / ||y - y_q||^2), with y [O] what full precision
has there for the token, in float64. 6 dB is one bit. The mean is of tokens' dB, not the dB of summed
energies: behind massive activations a few delimiter tokens hold nearly all energy, the ratio of sums
is theirs alone, and it moves by up to 8 dB where a rotation's seed changes (embedded LLaDA, QuaRot
W4A4, down_proj; the mean of dB by less than 2). Two readings:

- accumulated: both models run from the same ids; what a module puts out includes all that came in
  from before it. Read at every targeted linear's output and at the taps between them
  (:data:`TAPS`), where a fault outside the linears shows first;
- local: both linears read the full-precision model's input; a linear's error is its own.

A method that rescales channels (SmoothQuant) or rotates them (QuaRot) changes what some linears read
and write; what its layers keep of that (``QuantLinear.from_reference``, ``.to_reference``) is undone
before anything is compared.

Shapes: B sequences, T tokens, N real tokens, I inputs, O outputs, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import QuantLinear, target_names

MOST_DB = 100.0
"""A token's SQNR is cut to -100..100 dB: beyond, float32 itself is the noise."""
HEAD = "lm_head"
TAPS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp",
}
"""Between the linears: what this linear reads is what that module (or that part of it) puts out."""
_CHUNK_TOKENS = 8192
# What is recorded of both models at a time: 10 MB a token at 8B, 0.1 MB in the embedded models.
_RECORDED_BYTES = 2**32


@dataclass(frozen=True)
class Profile:
    """How far two models are apart on the same canvases.

    Attributes:
        layer_sqnr: accumulated SQNR in dB by module, in forward order: taps, linears, and the logits
            last, as ``lm_head``.
        local_sqnr: local SQNR in dB of every targeted linear, in forward order.
        reference_logits, quantized_logits: on the CPU, ``[B, T, V]``; of some positions ``[M, V]``.
    """

    layer_sqnr: dict[str, float]
    local_sqnr: dict[str, float]
    reference_logits: Tensor
    quantized_logits: Tensor


def profile(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    ids: Tensor,
    attention_mask: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Profile:
    """Run both models on the same canvases and compare them everywhere.

    Args:
        reference: the full-precision model.
        quantized: a model of the same architecture.
        ids: long ``[T]`` or ``[B, T]``; a calibration's, or any canvases.
        attention_mask: ``[B, T]``, 0 for padding, which is left out of the sums.
        wanted: bool ``[B, T]``, the positions whose logits to hand out; ``None`` means all. With a
            vocabulary of 126,464, a token's take half a megabyte.

    Returns:
        dB within -100..100; 100 means identical, as far as float32 can tell.

    Raises:
        NonFiniteError: an output is NaN or infinite; names the module and the model.
        QBenchError: the two models do not have the same linears.
    """
    names = _common_names(reference, quantized)
    layer: dict[str, _Mean] = {}
    local = {name: _Mean() for name in names}
    logits: list[tuple[Tensor, Tensor]] = []
    most = _tokens_at_once(reference, quantized, names)
    row = 0
    for part_BT, mask_BT in _chunks(reference, ids, attention_mask, most):
        shown_BT = None if wanted is None else wanted[row : row + len(part_BT)].cpu()
        row += len(part_BT)
        real_BT = mask_BT.bool()
        with _recorded(reference, names) as expected:
            wanted_BTV = reference.logits(part_BT, mask_BT)
        with _recorded(quantized, names) as found:
            found_BTV = quantized.logits(part_BT.to(quantized.device), mask_BT).to(
                wanted_BTV.device
            )
        for name in names:
            x_NI, y_NO = (side[real_BT.cpu()] for side in expected[name])
            read_NI, q_NO = (side[real_BT.cpu()] for side in found[name])
            block, leaf = _split(name)
            if leaf in TAPS:
                tap = f"{block}.{TAPS[leaf]}"
                read_NI = _in_reference_terms(quantized, name, read_NI)
                layer.setdefault(tap, _Mean()).add(tap, x_NI, read_NI)
            output_NO = _to_reference(quantized, name, q_NO)
            layer.setdefault(name, _Mean()).add(name, y_NO, output_NO)
            alone_NO = _alone(quantized, name, x_NI).to(y_NO.device)
            local[name].add(name, y_NO, _to_reference(quantized, name, alone_NO))
        layer.setdefault(HEAD, _Mean()).add(HEAD, wanted_BTV[real_BT], found_BTV[real_BT])
        both = wanted_BTV.cpu(), found_BTV.cpu()
        logits.append(both if shown_BT is None else (both[0][shown_BT], both[1][shown_BT]))
    return Profile(
        {name: mean.value for name, mean in layer.items()},
        {name: mean.value for name, mean in local.items()},
        torch.cat([wanted for wanted, _ in logits]),
        torch.cat([found for _, found in logits]),
    )


def layer_errors(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, float]:
    """Return the accumulated SQNR in dB of every targeted linear's output, in forward order.

    Arguments and errors are those of :func:`profile`.
    """
    found = profile(reference, quantized, ids, attention_mask)
    return {name: found.layer_sqnr[name] for name in found.local_sqnr}


def local_errors(
    reference: DiffusionLM,
    quantized: DiffusionLM,
    ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, float]:
    """Return the SQNR in dB of each linear alone, both fed with the full-precision model's inputs.

    Arguments and errors are those of :func:`profile`.
    """
    return profile(reference, quantized, ids, attention_mask).local_sqnr


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


def _tokens_at_once(reference: DiffusionLM, quantized: DiffusionLM, names: list[str]) -> int:
    """Return how many tokens' inputs and outputs of all linears are held at a time."""
    bytes_ = 0
    for lm in (reference, quantized):
        width = torch.empty(0, dtype=lm.dtype).element_size()
        for name in names:
            module: Any = lm.model.get_submodule(name)
            bytes_ += width * (int(module.in_features) + int(module.out_features))
    return min(_CHUNK_TOKENS, max(1, _RECORDED_BYTES // bytes_))


def _chunks(
    lm: DiffusionLM, ids: Tensor, attention_mask: Tensor | None, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    tokens_BT = lm.as_ids(ids)
    tokens_BT = tokens_BT[None] if tokens_BT.dim() == 1 else tokens_BT
    mask_BT = torch.ones_like(tokens_BT) if attention_mask is None else attention_mask
    mask_BT = mask_BT.to(tokens_BT.device).reshape(tokens_BT.shape)
    rows = max(1, most // max(1, tokens_BT.shape[1]))
    yield from zip(tokens_BT.split(rows), mask_BT.split(rows), strict=True)


@contextmanager
def _recorded(lm: DiffusionLM, names: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record input and output of every named module during the forward passes inside.

    They wait in CPU memory, so that an accelerator holds no more than a forward pass does.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (args[0].cpu(), out.cpu())

        return keep

    hooks = [lm.model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _split(name: str) -> tuple[str, str]:
    """``model.layers.3.mlp.down_proj`` -> (``model.layers.3``, ``mlp.down_proj``)."""
    parts = name.split(".")
    return ".".join(parts[:3]), ".".join(parts[3:])


def _alone(lm: DiffusionLM, name: str, x_NI: Tensor) -> Tensor:
    """Return what the linear called ``name`` makes of full precision's input."""
    module = lm.model.get_submodule(name)
    x_NI = x_NI.to(lm.device)
    with torch.no_grad():
        if isinstance(module, QuantLinear):
            x_NI = module.from_reference(x_NI)
        out: Tensor = module(x_NI.to(lm.dtype))
    return out


def _in_reference_terms(lm: DiffusionLM, name: str, x_NI: Tensor) -> Tensor:
    """Return what the linear called ``name`` reads in full precision's terms, in float64."""
    module = lm.model.get_submodule(name)
    wide = x_NI.double()
    if not isinstance(module, QuantLinear):
        return wide
    if module.input_rotation is not None:
        wide = module.input_rotation.inverse(wide)
    return wide if module.input_scale is None else wide * module.input_scale.to(wide)


def _to_reference(lm: DiffusionLM, name: str, y_NO: Tensor) -> Tensor:
    """Return an output of the module called ``name`` in full precision's terms, in float64."""
    module = lm.model.get_submodule(name)
    wide = y_NO.double()
    return module.to_reference(wide) if isinstance(module, QuantLinear) else wide


def token_sqnr(expected_NO: Tensor, found_NO: Tensor) -> Tensor:
    """Return each token's SQNR in dB, float64 ``[N]``, cut to -100..100; 0 against 0 is 100."""
    return _decibel(*_energies(expected_NO, found_NO))


def _energies(expected_NO: Tensor, found_NO: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's energy of signal and of noise, float64 ``[N]``."""
    wide_NO = expected_NO.double()
    return wide_NO.square().sum(-1), (wide_NO - found_NO.double()).square().sum(-1)


def _decibel(signal_N: Tensor, noise_N: Tensor) -> Tensor:
    decibel_N: Tensor = 10 * (signal_N.log10() - noise_N.log10())
    decibel_N = torch.where(noise_N == 0, MOST_DB, decibel_N)
    return decibel_N.clamp(-MOST_DB, MOST_DB)


@dataclass
class _Mean:
    """Tokens' dB of one place, added up chunk by chunk."""

    total: float = 0.0
    tokens: int = 0

    def add(self, name: str, expected_NO: Tensor, found_NO: Tensor) -> None:
        signal_N, noise_N = _energies(expected_NO, found_NO)
        if not math.isfinite(float(signal_N.sum() + noise_N.sum())):
            bad = not bool(torch.isfinite(expected_NO).all())
            which = "full-precision" if bad else "quantized"
            raise NonFiniteError(f"layer errors: the {which} output of {name} is NaN or infinite")
        self.total += float(_decibel(signal_N, noise_N).sum())
        self.tokens += len(expected_NO)

    @property
    def value(self) -> float:
        return self.total / max(self.tokens, 1)
