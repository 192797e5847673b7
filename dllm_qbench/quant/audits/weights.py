"""Audits of what is stored: coverage, grid, finite values, size.

Shapes: O outputs, I inputs, G groups of an output channel, g weights of a group.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.kernels.packing import packed_width
from dllm_qbench.quant.adopted import AdoptedLinear
from dllm_qbench.quant.audits.subject import WHOLE, Finding, Subject
from dllm_qbench.quant.grid import code_range
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.packed import PackedLinear
from dllm_qbench.quant.scheme import Scheme

_SCALE_BITS = 16  # what a packed checkpoint spends on a scale; a zero point takes a code's bits
_SHOWN = 3


def coverage(subject: Subject) -> list[Finding]:
    """Every linear inside the blocks is quantized under the recipe's scheme, and nothing else is.

    A name that the quantizer was configured with and that matches no linear is a finding: so it was
    that released code left q, k and v of LLaDA at 16 bits, 23.1 % of the block weights, under names
    (``attn_q``) that LLaDA does not use.
    """
    found = dict(subject.quantized.model.named_modules(remove_duplicate=False))
    findings = _unmatched(subject, found)
    left = [name for name in subject.names if not isinstance(found.get(name), QuantLinear)]
    for name in left:
        kind = type(found[name]).__name__ if name in found else "missing"
        findings.append(
            Finding(
                "coverage",
                name,
                f"is {kind}, not quantized; expected {subject.scheme} as for all linears inside the"
                " blocks: name it in the quantizer's configuration",
            )
        )
    if left:
        weights = {name: _numel(subject.reference.model, name) for name in subject.names}
        share = sum(weights[name] for name in left) / sum(weights.values())
        findings.append(
            Finding(
                "coverage",
                WHOLE,
                f"{len(left)} of {len(weights)} linears, {share:.1%} of the block weights, stay at"
                " 16 bits; expected none: accuracy would be that of another scheme",
            )
        )
    for name, layer in subject.layers():
        if isinstance(layer, AdoptedLinear) and (wrong := layer.wrong_inputs()):
            findings.append(Finding("coverage", name, wrong))
        if layer.scheme != subject.scheme:
            findings.append(
                Finding(
                    "coverage",
                    name,
                    f"is quantized under {layer.scheme}; expected {subject.scheme}, the recipe's:"
                    " a mixed model needs a recipe that says so",
                )
            )
    wanted = set(subject.names)
    for name, module in found.items():
        if isinstance(module, QuantLinear) and name not in wanted:
            findings.append(
                Finding(
                    "coverage",
                    name,
                    "is quantized; expected only the linears inside the blocks (embeddings, norms"
                    " and the LM head keep 16 bits): LLaDA calls both its down projections and its"
                    " head ff_out, so match full names",
                )
            )
    return findings


def grid(subject: Subject) -> list[Finding]:
    """Every weight lies on its group's grid: at most 2^b levels, boundaries and symmetry as declared."""
    findings = []
    for name, layer in subject.layers():
        findings += [Finding("grid", name, message) for message in _off_grid(subject, layer)]
    return findings


def finite(subject: Subject) -> list[Finding]:
    """No NaN or infinity in weights, scales, activations or scores."""
    findings = []
    model = subject.quantized.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            owner, _, leaf = name.rpartition(".")
            findings.append(
                Finding(
                    "finite",
                    owner,
                    f"{leaf} holds {bad} non-finite value(s) of {tensor.numel()}; expected none:"
                    " look for a group without range, or a scale that under- or overflows",
                )
            )
    where = _first_non_finite_output(subject)
    if where is not None:
        findings.append(
            Finding(
                "finite",
                where,
                f"puts out NaN or infinity on the probe, the first module to do so; expected finite"
                f" activations: {subject.quantized.dtype} may be too narrow for them, or a scale"
                " is 0",
            )
        )
    return findings


def size(subject: Subject) -> list[Finding]:
    """The bits that a packed checkpoint would need for each weight are those of the scheme.

    Counted from the codes that occur: more bits mean that the weight is not what the scheme says,
    fewer that it was rounded more coarsely than it had to be. A layer that holds packed weights may
    hold nothing else: its memory is counted too, with scales of 32 bits and rows of whole bytes.
    """
    findings = []
    for name, layer in subject.layers():
        stored, expected = _stored_bits(layer), _scheme_bits(subject.scheme, layer)
        if abs(stored - expected) > 1e-9:
            findings.append(
                Finding(
                    "size",
                    name,
                    f"its codes and scales need {stored:.3f} bits a weight; expected"
                    f" {expected:.3f} under {subject.scheme}: compare bits and group size of its"
                    " grid with the scheme",
                )
            )
        if isinstance(layer, PackedLinear) and layer.held_bits > (most := _packed_bits(layer)):
            findings.append(
                Finding(
                    "size",
                    name,
                    f"it holds {layer.held_bits:.3f} bits a weight in memory; expected"
                    f" {most:.3f}, packed codes, scales and zero points: let go of what they were"
                    " made from",
                )
            )
    return findings


def _unmatched(subject: Subject, found: dict[str, nn.Module]) -> list[Finding]:
    configured = subject.targets if subject.targets is not None else subject.recipe.get("targets")
    leaves = sorted({name.split(".", 3)[3] for name in subject.names})
    short = [part for leaf in leaves for part in (leaf, leaf.rpartition(".")[2])]
    findings = []
    for wanted in configured or ():
        if any(f".{wanted}." in f".{name}." for name in subject.names):
            continue
        close = difflib.get_close_matches(wanted, short, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        findings.append(
            Finding(
                "coverage",
                WHOLE,
                f"the configured name {wanted!r} matches no linear{hint} Expected every name to"
                f" match; the linears of a block are {', '.join(leaves)}",
            )
        )
    return findings


def _numel(model: nn.Module, name: str) -> int:
    return int(model.get_parameter(f"{name}.weight").numel())


def _off_grid(subject: Subject, layer: QuantLinear) -> Iterator[str]:
    """Yield what is wrong with a layer's grid; later checks need what earlier ones establish."""
    scheme = subject.scheme
    if not scheme.quantizes_weights:
        if layer.scale is not None:
            yield f"has a weight grid; expected none under {scheme}: weights of 16 bits are not rounded"
        return
    if isinstance(layer, AdoptedLinear) and layer.kind == "levels":
        yield from _too_many_levels(layer)
        return
    if layer.scale is None or layer.zero is None:
        yield (
            f"has no weight grid; expected {scheme.weight_bits} bits, {scheme.group or 'all'} weights a"
            " scale: its weights are not rounded, or in other groups"
        )
        return
    O, I = layer.weight.shape  # noqa: E741 (the legend's names)
    g = I if scheme.group is None else min(scheme.group, I)
    shape = (O, math.ceil(I / g))
    if tuple(layer.scale.shape) != shape or tuple(layer.zero.shape) != shape:
        yield (
            f"scale and zero have shapes {list(layer.scale.shape)} and {list(layer.zero.shape)};"
            f" expected {list(shape)}, groups of {g} over {I} inputs: group as {scheme} says"
        )
        return
    declared = scheme.is_symmetric(bool(subject.recipe.get("symmetric", layer.symmetric)))
    if layer.symmetric != declared:
        kinds = {True: "symmetric", False: "asymmetric", None: "without a symmetry"}
        yield f"its grid is {kinds[layer.symmetric]}; expected {kinds[declared]}, as declared"
    low, high = code_range(scheme.weight_bits, declared)
    if declared and layer.full_range:
        low -= 1
    scale, zero = layer.scale.double(), layer.zero.double()
    for what, bad in (
        ("a scale that is not a positive number", ~(torch.isfinite(scale) & (scale > 0))),
        ("a zero point that is no code", (zero != zero.round()) | (zero < low) | (zero > high)),
        ("a zero point other than 0 on a symmetric grid", (zero != 0) & declared),
    ):
        if bool(bad.any()):
            yield f"has {what} in {_groups(bad)}; expected none: compute the grid anew"
            return
    codes, error = _codes(layer, g)
    # A weight is a level rounded to the layer's data type; so is the scale that we read it with.
    eps = torch.finfo(layer.dtype).eps + torch.finfo(layer.scale.dtype).eps
    off = ~(error <= 2 * eps * (codes - _spread(zero, g, I)).abs())
    off |= (codes < low) | (codes > high)
    most = 2**scheme.weight_bits
    for what, bad in (
        (f"weights off the levels {low}..{high}", _any(off, g)),
        (f"more than {most} distinct weights", _levels(layer.rounded, g) > most),
    ):
        if bool(bad.any()):
            yield (
                f"has {what} in {_groups(bad)}, {float(bad.double().mean()):.1%} of all groups;"
                f" expected at most {most} levels, steps of one scale, in every group of {g}:"
                " check where groups begin, and that nothing changes weights after rounding"
            )
            return


def _too_many_levels(layer: QuantLinear) -> Iterator[str]:
    """Yield what is wrong where a grid is said to be of any levels: their number."""
    bits, g = layer.scheme.weight_bits, layer.scheme.group or layer.in_features
    bad_OG = _levels(layer.rounded, min(g, layer.in_features)) > 2**bits
    if bool(bad_OG.any()):
        yield (
            f"has more than {2**bits} distinct weights in {_groups(bad_OG)},"
            f" {float(bad_OG.double().mean()):.1%} of all groups; expected at most {2**bits} in every"
            f" group of {g}: check the bits and where groups begin"
        )


def _codes(layer: QuantLinear, g: int) -> tuple[Tensor, Tensor]:
    """Return every weight's code, unclipped, and how far from it the weight is, in steps."""
    assert layer.scale is not None
    assert layer.zero is not None
    inputs = layer.weight.shape[1]
    scale, zero = _spread(layer.scale.double(), g, inputs), _spread(layer.zero.double(), g, inputs)
    exact = layer.rounded.double() / scale + zero
    codes = exact.round()
    return codes, (exact - codes).abs()


def _spread(per_group: Tensor, g: int, inputs: int) -> Tensor:
    return per_group.repeat_interleave(g, dim=-1)[:, :inputs]


def _levels(weight_OI: Tensor, g: int) -> Tensor:
    """Return how many distinct values each group holds, ``[O, G]``."""
    # Repeating the last column fills the last group without adding a value.
    missing = -weight_OI.shape[1] % g
    filled = torch.cat([weight_OI, weight_OI[:, -1:].expand(-1, missing)], dim=1)
    ordered = filled.unflatten(1, (-1, g)).sort(-1).values
    distinct_OG: Tensor = 1 + (ordered.diff(dim=-1) != 0).sum(-1)
    return distinct_OG


def _any(bad_OI: Tensor, g: int) -> Tensor:
    """Return which groups hold a marked weight, ``[O, G]``."""
    any_OG: Tensor = F.pad(bad_OI, (0, -bad_OI.shape[1] % g)).unflatten(1, (-1, g)).any(-1)
    return any_OG


def _groups(bad_OG: Tensor) -> str:
    """Name the first of the marked groups."""
    marked = bad_OG.nonzero()
    text = ", ".join(f"row {int(row)} group {int(group)}" for row, group in marked[:_SHOWN])
    return text + (", ..." if len(marked) > _SHOWN else "")


def _stored_bits(layer: QuantLinear) -> float:
    """Return bits a weight, from the codes in use and the number of scales and zero points."""
    if isinstance(layer, AdoptedLinear) and layer.kind == "levels":
        return _scheme_bits(layer.scheme, layer)  # nothing is known of how it is stored
    if layer.scale is None or layer.zero is None:
        return 16.0
    I, groups = layer.in_features, max(1, layer.scale.shape[-1])  # noqa: E741 (the legend's name)
    g = layer.scheme.group or I
    # Where the scales are not as many as the scheme says, the even group size that they stand for.
    codes, _ = _codes(layer, g if math.ceil(I / g) == groups else math.ceil(I / groups))
    largest = int(torch.nan_to_num(codes).abs().max().clamp(max=2.0**24)) if codes.numel() else 0
    if layer.symmetric and layer.full_range:
        lowest = int(torch.nan_to_num(codes).min().clamp(min=-(2.0**24)))
        code_bits = max(int(torch.nan_to_num(codes).max()), -lowest - 1).bit_length() + 1
    elif layer.symmetric:
        code_bits = largest.bit_length() + 1
    else:
        code_bits = max(largest, int(torch.nan_to_num(layer.zero).max())).bit_length()
    if not bool(layer.weight.any()):  # nothing but zeros fits any number of bits
        code_bits = layer.scheme.weight_bits
    zero_bits = 0 if layer.symmetric else code_bits
    return code_bits + groups * (_SCALE_BITS + zero_bits) / I


def _scheme_bits(scheme: Scheme, layer: QuantLinear) -> float:
    if not scheme.quantizes_weights:
        return 16.0
    I = layer.in_features  # noqa: E741 (the legend's name)
    groups = 1 if scheme.group is None else math.ceil(I / min(scheme.group, I))
    zero_bits = 0 if layer.symmetric else scheme.weight_bits
    return scheme.weight_bits + groups * (_SCALE_BITS + zero_bits) / I


def _packed_bits(layer: PackedLinear) -> float:
    bits, I = layer.scheme.weight_bits, max(1, layer.in_features)  # noqa: E741 (the legend's name)
    groups = math.ceil(I / min(layer.scheme.group or I, I))
    zero_bytes = 0 if layer.symmetric else packed_width(groups, bits)
    return 8 * (packed_width(I, bits) + 4 * groups + zero_bytes) / I


def _first_non_finite_output(subject: Subject) -> str | None:
    """Return the name of the first module whose output on the probe is not finite."""
    bad: list[str] = []
    model = subject.quantized.model

    def watch(name: str) -> object:
        def hook(_module: nn.Module, _args: object, out: object) -> None:
            y = out[0] if isinstance(out, tuple) else out
            if isinstance(y, Tensor) and not bool(torch.isfinite(y).all()):
                bad.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        logits = subject.quantized.logits(*subject.probe)
    finally:
        for handle in handles:
            handle.remove()
    if bad:
        return bad[0]
    return None if bool(torch.isfinite(logits).all()) else WHOLE
