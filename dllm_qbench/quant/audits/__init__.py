"""Structural checks of a quantized model, run before any accuracy number.

Each audit answers a bug found in public code and needs no task: it takes a :class:`Subject` and
returns findings, none where all is well::

    for finding in qb.audit(quantized, reference=lm):
        print(finding)

    audits.grid(audits.Subject(quantized, lm))  # one alone

=====================  ===========================================================================
coverage               every targeted linear is quantized, and nothing else
grid                   at most 2^b levels a group, boundaries and symmetry as declared
equivalence            with nothing rounded, the method leaves the logits unchanged
bidirectional          the last token is read at position 0
calibration_contract   counts, lengths, masks, data type and attention direction of calibration
finite                 no NaN or infinity in weights, scales, activations, scores
input_untouched        the full-precision model is bit-identical afterwards
deterministic          same recipe, same bits
size                   bits a weight as the scheme says
=====================  ===========================================================================

Cost: ``calibration_contract``, ``input_untouched`` and ``deterministic`` share one more run of the
quantizer, ``equivalence`` needs another at 16 bits; the others take a few forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits.behaviour import (
    bidirectional,
    deterministic,
    equivalence,
    input_untouched,
)
from dllm_qbench.quant.audits.contract import calibration_contract
from dllm_qbench.quant.audits.subject import Finding, Quantizer, Rerun, Subject
from dllm_qbench.quant.audits.weights import coverage, finite, grid, size
from dllm_qbench.quant.calibration import Calibration

AUDITS: Mapping[str, Callable[[Subject], list[Finding]]] = {
    "coverage": coverage,
    "grid": grid,
    "equivalence": equivalence,
    "bidirectional": bidirectional,
    "calibration_contract": calibration_contract,
    "finite": finite,
    "input_untouched": input_untouched,
    "deterministic": deterministic,
    "size": size,
}
# Those that run the quantizer again, unless no other of them does: skip=EXPENSIVE.
EXPENSIVE = ("equivalence", "calibration_contract", "input_untouched", "deterministic")

__all__ = ["AUDITS", "EXPENSIVE", "Finding", "Subject", "audit", *AUDITS]


def audit(
    quantized: DiffusionLM,
    reference: DiffusionLM,
    calibration: Calibration | None = None,
    *,
    skip: Collection[str] = (),
    targets: Sequence[str] | None = None,
    quantizer: Quantizer | None = None,
    fingerprint: str | None = None,
    shared: dict[str, Rerun] | None = None,
) -> list[Finding]:
    """Run all nine audits on a quantized model.

    Args:
        quantized: what :func:`dllm_qbench.quantize` returned, or a model whose linears inside the
            blocks are ``QuantLinear``.
        reference: the full-precision model that it was made from; not changed.
        calibration: what the method saw; ``None`` draws it again from the recipe where it is of
            embedded texts or random tokens.
        skip: names of audits to leave out; ``EXPENSIVE`` holds those that quantize again.
        targets: the names that the quantizer was configured with, if it has such a configuration;
            one that matches no linear is a finding. ``None`` takes ``recipe["targets"]``.
        quantizer: ``quantizer(lm, scheme)`` runs a method that the recipe alone cannot run again.
        fingerprint: the reference's from before it was quantized; ``None`` takes the one that it
            remembers, if ``reference.fingerprint()`` was called before.
        shared: an empty dict that audits of one reference pass on to each other, to run a method at 16
            bits once for all its schemes; only while neither the reference nor any code changes.

    Returns:
        What is wrong, in the order of ``AUDITS``; an empty list where nothing is.

    Raises:
        QBenchError: an unknown name in ``skip``, a reference that is quantized itself, or a
            quantized model without a scheme.
    """
    unknown = sorted(set(skip) - set(AUDITS))
    if unknown:
        raise QBenchError(
            f"audit: skip names {', '.join(map(repr, unknown))}, which is no audit;"
            f" audits: {', '.join(AUDITS)}"
        )
    subject = Subject(quantized, reference, calibration, targets, quantizer, fingerprint, shared)
    return [
        finding for name, check in AUDITS.items() if name not in skip for finding in check(subject)
    ]
