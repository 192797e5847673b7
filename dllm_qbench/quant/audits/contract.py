"""The calibration contract: what a method needs of its calibration, and whether it got that.

All published recipes for masked diffusion models calibrate on text without a single mask; one public
calibrator expands the attention mask to a causal one on the way. Neither shows in the code of the
method, nor as an error: so what was seen is held against what is needed.

Shapes: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dllm_qbench.quant.audits.subject import WHOLE, Finding, Subject
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.quantize import METHODS

LEAST_SEQUENCES = 128  # the recipes of GPTQ and AWQ, and of all that build on them
LEAST_TOKENS = 2  # in a sequence: attention to a single token has nothing to choose from
MOST_MASKED_AT_LEAST = 0.5  # generation begins with every answer token masked


def calibration_contract(subject: Subject) -> list[Finding]:
    """Enough sequences of usable length, masks in them, attention in both directions, full precision.

    Direction and data type are not read from a recipe but seen: the quantizer runs once more, and its
    calls of the blocks' attention are watched.
    """
    recipe, method = subject.calibration_recipe, str(subject.recipe.get("method"))
    needed = METHODS[method].calibrates if method in METHODS else subject.calibration is not None
    if not needed:
        return []
    messages = list(_of_recipe(subject))
    if subject.calibration is not None:
        messages += _of_data(subject, subject.calibration)
    elif recipe:
        messages.append(
            f"the sequences from {recipe.get('source', 'an unknown source')} cannot be looked at;"
            " expected them beside the recipe: pass calibration="
        )
    findings = [Finding("calibration_contract", WHOLE, message) for message in messages]
    return findings + list(_of_calls(subject))


def _of_recipe(subject: Subject) -> Iterator[str]:
    recipe = subject.calibration_recipe
    method = subject.recipe.get("method")
    if not recipe:
        if subject.recipe:
            yield (
                f"the recipe says nothing of the calibration that {method} needs; expected source,"
                " seed, counts, mask ratios and sha256: record what dllm_qbench.calibration returns"
            )
        return
    ratios = [float(ratio) for ratio in recipe.get("mask_ratios", [])]
    if recipe.get("masked_share") == 0 or not any(ratios):
        yield (
            "no calibration sequence holds a mask; expected canvases from none to all masked, as"
            " the model meets them: calibrate with mask_ratios such as (0, 0.25, 0.5, 0.75, 1)"
        )
    elif max(ratios) < MOST_MASKED_AT_LEAST:
        yield (
            f"the highest mask ratio seen is {max(ratios):g}; expected {MOST_MASKED_AT_LEAST:g} or"
            " more, since generation begins with masks only: add higher ones to mask_ratios"
        )
    direction = recipe.get("attention", "bidirectional")
    if direction != "bidirectional":
        yield (
            f"the recipe says that calibration attended in direction {direction!r}; expected"
            " 'bidirectional': the model never runs otherwise"
        )
    given = subject.calibration
    if given is not None and given.recipe.get("sha256") != recipe.get("sha256"):
        yield (
            "the calibration passed is not the one of the recipe (their sha256 differ); expected"
            " the sequences that the model was quantized with: pass those"
        )


def _of_data(subject: Subject, data: Calibration) -> Iterator[str]:
    real_NT = data.attention_mask.bool()
    lengths = real_NT.sum(1)
    if data.ids.dtype != torch.long:
        yield f"token ids are {data.ids.dtype}; expected torch.int64: convert them before use"
    if len(data.ids) < LEAST_SEQUENCES:
        yield (
            f"{len(data.ids)} sequences; expected {LEAST_SEQUENCES} or more: with fewer, the"
            " quantized model depends visibly on which ones they are"
        )
    widest = max(
        int(subject.reference.model.get_parameter(f"{name}.weight").shape[1])
        for name in subject.names
    )
    if int(lengths.sum()) < widest:
        yield (
            f"{int(lengths.sum())} tokens in all; expected at least {widest}, the inputs of the"
            " widest linear: with fewer, second moments are singular"
        )
    if int(lengths.min()) < LEAST_TOKENS:
        yield (
            f"a sequence of {int(lengths.min())} token(s); expected {LEAST_TOKENS} or more in each:"
            " leave it out"
        )
    longest = int(getattr(subject.reference.config, "max_position_embeddings", lengths.max()))
    if int(lengths.max()) > longest:
        yield (
            f"a sequence of {int(lengths.max())} tokens; expected at most {longest}, the model's"
            " longest: cut with length="
        )
    masked_NT = (data.ids == subject.reference.mask_id) & real_NT
    unpredicted = int(masked_NT[:, : subject.reference.first_maskable].any(1).sum())
    if unpredicted:
        yield (
            f"{unpredicted} sequences begin with a mask; expected a real token first, since no row"
            " of shifted logits predicts it: mask behind it"
        )
    claimed = float(subject.calibration_recipe.get("masked_share", 0))
    if not bool(masked_NT.any()) and claimed > 0:
        yield (
            f"the recipe claims masks ({claimed:.0%} of the tokens), the sequences hold none of id"
            f" {subject.reference.mask_id}; expected that they agree: take the mask id from the"
            " model's config"
        )


def _of_calls(subject: Subject) -> Iterator[Finding]:
    for call in subject.again.calls:
        if not call.looks_ahead:
            yield Finding(
                "calibration_contract",
                call.module,
                "during calibration it attends to earlier tokens only; expected both directions:"
                " pass a mask that admits every real token, not one expanded to causal",
            )
        exact, narrow = torch.finfo(subject.reference.dtype), torch.finfo(call.dtype)
        if narrow.eps > exact.eps:
            yield Finding(
                "calibration_contract",
                call.module,
                f"during calibration it runs in {call.dtype}; expected {subject.reference.dtype}, the"
                " model's: do not cast the model to calibrate it",
            )
