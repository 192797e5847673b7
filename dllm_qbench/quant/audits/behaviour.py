"""Audits of what a quantized model and its quantizer do: equivalence, direction, side effects.

Shapes: B sequences, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits.spy import looks_ahead
from dllm_qbench.quant.audits.subject import WHOLE, Finding, Subject, not_rerun, random_ids
from dllm_qbench.quant.layers import blocks
from dllm_qbench.seeding import derive

# Largest relative difference of a token's logits that counts as none, by data type. Sound methods on
# the tiny models reach 7e-14, 2e-6, 4e-3 and 4e-2; deep models in half precision are untried.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
_DIRECTION_TOKENS = 4


def equivalence(subject: Subject) -> list[Finding]:
    """With nothing rounded, the method leaves every token's logits where they were.

    Runs the method again at W16A16, so that only its rotations, permutations, smoothing and folding
    are left, and compares logits ``l`` by token: ||l' - l|| / ||l|| at most 1e-9 in float64 (models
    of up to 1e8 parameters), 1e-4 in float32, 2e-2 in float16, 0.1 in bfloat16. The finding names the
    first module whose residual stream X differs from the reference's by more than an orthogonal
    map, that is in X X^T. Norms' epsilons are compared directly as well: where activations are large
    the logits hardly show them.
    """
    findings = _wrong_epsilons(subject)
    run = subject.at_16_bits
    if run.quantized is None:
        return findings + not_rerun("equivalence", run)
    # The copy may have been changed by the quantizer: that is input_untouched's to say.
    reference = subject.reference.clone()
    reference.model.to(run.reference.dtype)
    with _residual_streams(reference) as expected:
        wanted = reference.logits(*subject.probe)
    with _residual_streams(run.quantized) as found:
        logits = run.quantized.logits(*subject.probe)
    real_BT = subject.probe[1].bool().to(logits.device)
    worst = _relative(logits[real_BT], wanted.to(logits.device)[real_BT])
    allowed = TOLERANCE[reference.dtype]
    if worst <= allowed:
        return findings
    where = next(
        (name for name, x in expected.items() if _gram_differs(found[name], x, real_BT, allowed)),
        "lm_head",
    )
    findings.append(
        Finding(
            "equivalence",
            where,
            f"at 16 bits the method moves a token's logits by {worst:.1e} relative; expected at most"
            f" {allowed:g} in {reference.dtype}, and this is where the residual stream first differs"
            " by more than a rotation: check what is folded into, subtracted from or rotated there,"
            " and that its inverse comes after",
        )
    )
    return findings


def bidirectional(subject: Subject) -> list[Finding]:
    """The last token is read at position 0: by the model, and by each block called alone.

    Alone, because a calibrator calls blocks one by one, where a flag of the whole model is not seen.
    """
    lm = subject.quantized
    findings = []
    generator = torch.Generator().manual_seed(derive(0, "audit", "direction"))
    shape = (8, _DIRECTION_TOKENS)
    ids = random_ids(lm, shape, generator)
    edited = ids.clone()
    edited[:, -1] = (ids[:, -1] + 1) % int(lm.config.vocab_size)
    if torch.equal(lm.logits(ids)[:, 0], lm.logits(edited)[:, 0]):
        findings.append(
            Finding(
                "bidirectional",
                WHOLE,
                f"another last token moves no logit at position 0, on {shape[0]} canvases of"
                f" {shape[1]} tokens; expected a model that looks both ways: a causal mask is on",
            )
        )
    inner: Any = lm.model.get_submodule("model")
    positions = torch.arange(_DIRECTION_TOKENS, device=lm.device)[None]
    noise = torch.randn(*shape, int(lm.config.hidden_size), generator=generator)
    hidden_BTD = noise.to(lm.device, lm.dtype)
    for index, block in enumerate(blocks(lm.model)):
        layer: Any = block
        with torch.no_grad():
            rotary = inner.rotary_emb(hidden_BTD, position_ids=positions)
            normed_BTD = layer.input_layernorm(hidden_BTD)
        extra = {"position_embeddings": rotary, "attention_mask": None}
        if not looks_ahead(layer.self_attn, normed_BTD, kwargs=extra):
            findings.append(
                Finding(
                    "bidirectional",
                    f"model.layers.{index}.self_attn",
                    "called alone, without a mask, it does not look at later tokens; expected that"
                    " it does: set its is_causal to False, or give it a mask of ones",
                )
            )
    return findings


def input_untouched(subject: Subject) -> list[Finding]:
    """Quantizing leaves the full-precision model bit-identical.

    Looked at three ways: the reference shares no memory with the quantized model; it still has the
    fingerprint from before, where one was taken; and the quantizer, run again on a copy, changes
    nothing in it.
    """
    findings = []
    own = _storages(subject.reference.model)
    for name, tensor in _tensors(subject.quantized.model):
        shared = own.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        if shared is not None:
            findings.append(
                Finding(
                    "input_untouched",
                    name.rpartition(".")[0],
                    f"{name.rpartition('.')[2]} shares its memory with the full-precision {shared};"
                    " expected a copy: a change of the one changes the other",
                )
            )
    now = replace(subject.reference, _fingerprint=None).fingerprint()
    if subject.fingerprint not in (None, now):
        findings.append(
            Finding(
                "input_untouched",
                WHOLE,
                "the full-precision model is not what it was when its fingerprint was taken;"
                " expected the same bits: load it again, and quantize a copy",
            )
        )
    run = subject.again
    if run.quantized is None:
        return findings + not_rerun("input_untouched", run)
    for name in _differing(subject.reference, run.reference):
        findings.append(
            Finding(
                "input_untouched",
                name.rpartition(".")[0],
                f"the quantizer changes {name.rpartition('.')[2]} of the full-precision model that"
                " it is given; expected it bit-identical afterwards: work on a deep copy",
            )
        )
    return findings


def deterministic(subject: Subject) -> list[Finding]:
    """Quantizing again from the same recipe gives the same bits."""
    run = subject.again
    if run.quantized is None:
        return not_rerun("deterministic", run)
    differing = _differing(subject.quantized, run.quantized)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in differing))
    if not modules:
        return []
    return [
        Finding(
            "deterministic",
            modules[0],
            f"quantizing again from the same recipe gives other bits here and in {len(modules) - 1}"
            " other module(s); expected the same: draw from a generator with a seed of its own, and"
            " see that the calibration is the one of the recipe",
        )
    ]


def _wrong_epsilons(subject: Subject) -> list[Finding]:
    expected = dict(_epsilons(subject.reference.model))
    return [
        Finding(
            "equivalence",
            name,
            f"its epsilon is {epsilon:g}; expected {expected[name]:g}, the reference's: take it from"
            " the config (LLaDA 1e-5, Dream 1e-6)",
        )
        for name, epsilon in _epsilons(subject.quantized.model)
        if epsilon != expected.get(name, epsilon)
    ]


def _epsilons(model: nn.Module) -> Iterator[tuple[str, float]]:
    for name, module in model.named_modules():
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float):
            yield name, epsilon


def _relative(found_NV: Tensor, expected_NV: Tensor) -> float:
    """Return the largest relative difference of a row; NaN counts as infinite."""
    distance = (found_NV - expected_NV).norm(dim=-1)
    share = distance / expected_NV.norm(dim=-1).clamp(min=torch.finfo(expected_NV.dtype).tiny)
    return float(torch.nan_to_num(share, nan=torch.inf).max())


def _gram_differs(found_BTD: Tensor, expected_BTD: Tensor, real_BT: Tensor, allowed: float) -> bool:
    """Compare two sets of vectors up to an orthogonal map."""
    x, y = (side.to(real_BT.device)[real_BT].double() for side in (found_BTD, expected_BTD))
    expected = y @ y.T
    return not bool((x @ x.T - expected).norm() <= allowed * expected.norm())


@contextmanager
def _residual_streams(lm: DiffusionLM) -> Iterator[dict[str, Tensor]]:
    """Record what the embeddings and every block write, by module name, in forward order."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            seen[name] = out[0] if isinstance(out, tuple) else out

        return hook

    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(len(blocks(lm.model))))]
    handles = [lm.model.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _storages(model: nn.Module) -> dict[int, str]:
    return {t.untyped_storage().data_ptr(): name for name, t in _tensors(model) if t.numel()}


def _differing(one: DiffusionLM, other: DiffusionLM) -> list[str]:
    """Return the names of tensors that only one model has, or that are not the same bits in both."""
    a, b = one.model.state_dict(), other.model.state_dict()
    names = [*a, *(name for name in b if name not in a)]
    return [name for name in names if name not in a or name not in b or not _same(a[name], b[name])]


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    # Bytes, not values: NaN is the same as itself, and 0 is not -0.
    x, y = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y.to(x.device))
