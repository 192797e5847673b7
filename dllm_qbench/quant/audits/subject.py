"""What an audit looks at, and what it says.

A :class:`Subject` holds a quantized model beside the full-precision one that it was made from. Some
audits need the quantizer to run once more; that happens when the first of them asks, and once for
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits.spy import AttentionCall, watch_attention
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.calibration import calibration as draw_calibration
from dllm_qbench.quant.layers import QuantLinear, target_names
from dllm_qbench.quant.packed import execution_of, pack
from dllm_qbench.quant.quantize import METHODS, quantize, recipe_hash
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme
from dllm_qbench.seeding import derive

WHOLE = "the whole model"  # where a finding is about no single module

# How a user's own method is run again: quantizer(full precision, scheme) -> quantized.
Quantizer = Callable[[DiffusionLM, Scheme], DiffusionLM]

_PROBE_ROWS, _PROBE_TOKENS = 4, 24
# Up to here the run at 16 bits is done in float64, where a difference of 1e-9 is one.
_WIDE_PARAMETERS = 100_000_000
# Calibration sequences of the run at 16 bits. Nothing is rounded there: what data picks (scales,
# rotations) must leave the logits alone whatever it is.
_SEQUENCES_AT_16_BITS = 64


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a quantized model.

    Attributes:
        audit: which audit found it.
        module: full name of the module that it is about, or ``"the whole model"``.
        message: what was wrong, what was expected, what to do.
    """

    audit: str
    module: str
    message: str

    def __str__(self) -> str:
        return f"{self.audit}: {self.module}: {self.message}"


@dataclass(frozen=True, eq=False)
class Rerun:
    """What came of running the quantizer again.

    Attributes:
        reference: the copy of the full-precision model that it was given, as it left it.
        quantized: what it returned, ``None`` where it raised.
        error: what it raised, ``None`` where it returned.
        calls: the first call of every block's attention while it ran.
    """

    reference: DiffusionLM
    quantized: DiffusionLM | None
    error: str | None
    calls: Sequence[AttentionCall]


@dataclass(eq=False)
class Subject:
    """A quantized model under audit.

    Attributes:
        quantized: what a method made; its targeted linears are ``QuantLinear``.
        reference: the full-precision model that it was made from.
        calibration: what the method saw; ``None`` draws it again from the recipe where that can be
            done (embedded texts, random tokens).
        targets: names of modules that the quantizer was configured with, full or any dotted part
            (``"q_proj"``, ``"self_attn.o_proj"``); ``None`` where it has no such configuration.
        quantizer: runs the method again; ``None`` takes method and parameters of the recipe.
        fingerprint: the reference's fingerprint from before it was quantized, if it was taken.
        shared: runs at 16 bits that audits of the same reference have in common: schemes of one method
            that differ in nothing but bits. Its owner sees that reference and code stay the same.
    """

    quantized: DiffusionLM
    reference: DiffusionLM
    calibration: Calibration | None = None
    targets: Sequence[str] | None = None
    quantizer: Quantizer | None = None
    fingerprint: str | None = None
    shared: dict[str, Rerun] | None = None
    _undrawn: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reference.recipe is not None:
            raise QBenchError(
                f"audit: the reference {self.reference.name} is quantized itself"
                f" ({self.reference.recipe.get('method')} {self.reference.recipe.get('scheme')});"
                " pass the full-precision model that the subject was made from"
            )
        if self.fingerprint is None:
            self.fingerprint = self.reference._fingerprint
        if self.calibration is None and self.calibration_recipe:
            self.calibration, self._undrawn = _draw_again(self.reference, self.calibration_recipe)

    @property
    def recipe(self) -> dict[str, Any]:
        """How the quantized model was made; empty where it does not say."""
        return dict(self.quantized.recipe or {})

    @property
    def calibration_recipe(self) -> dict[str, Any]:
        """How its calibration was made; empty where there was none."""
        return dict(self.recipe.get("calibration") or {})

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme of the recipe, else that of the first quantized linear."""
        if "scheme" in self.recipe:
            return Scheme.parse(self.recipe["scheme"])
        for module in self.quantized.model.modules():
            if isinstance(module, QuantLinear):
                return module.scheme
        raise QBenchError(
            f"audit: {self.quantized.name} has neither a recipe nor a quantized linear, so there is"
            " no scheme to hold it to; pass what quantize returned"
        )

    @cached_property
    def names(self) -> list[str]:
        """The linears that have to be quantized, in forward order."""
        return target_names(self.reference.model)

    def layers(self) -> Iterator[tuple[str, QuantLinear]]:
        """Yield the targeted linears that are quantized, by full name in forward order."""
        found = dict(self.quantized.model.named_modules(remove_duplicate=False))
        for name in self.names:
            layer = found.get(name)
            if isinstance(layer, QuantLinear):
                yield name, layer

    @cached_property
    def probe(self) -> tuple[Tensor, Tensor]:
        """Canvases ``[B, T]`` and their attention mask: calibration's first, else random ones."""
        lm = self.reference
        if self.calibration is not None:
            ids = self.calibration.ids[:_PROBE_ROWS].clone()
            real = self.calibration.attention_mask[:_PROBE_ROWS]
        else:
            longest = int(getattr(lm.config, "max_position_embeddings", _PROBE_TOKENS))
            shape = (_PROBE_ROWS, min(_PROBE_TOKENS, longest))
            generator = torch.Generator().manual_seed(derive(0, "audit", "probe"))
            ids = random_ids(lm, shape, generator)
            ids = ids.masked_fill(torch.rand(shape, generator=generator) < 0.5, lm.mask_id)
            real = torch.ones_like(ids)
        first = ids[:, : lm.first_maskable]  # a model of shifted logits refuses a mask there
        first[first == lm.mask_id] = lm.eos_id
        return ids, real

    @cached_property
    def again(self) -> Rerun:
        """The quantizer's second run, with the same scheme on a copy of the reference."""
        return self._run(self.reference.clone(), self.scheme)

    @cached_property
    def at_16_bits(self) -> Rerun:
        """The quantizer's run with nothing rounded, in float64 where the model is small enough.

        A method of the recipe gets the first sequences of the calibration only.
        """
        own = self.scheme
        scheme = Scheme(UNTOUCHED, UNTOUCHED, own.group, own.symmetric)
        if self.shared is None or self.quantizer is not None:
            return self._run(self._wide_copy(), scheme)
        key = recipe_hash({**self.recipe, "scheme": str(scheme)})
        if key not in self.shared:
            self.shared[key] = self._run(self._wide_copy(), scheme)
        return self.shared[key]

    def _wide_copy(self) -> DiffusionLM:
        copy = self.reference.clone()
        if sum(p.numel() for p in copy.model.parameters()) <= _WIDE_PARAMETERS:
            copy.model.double()
        return copy

    def _run(self, copy: DiffusionLM, scheme: Scheme) -> Rerun:
        with watch_attention(copy.model) as calls:
            try:
                made = (self.quantizer or self._from_recipe)(copy, scheme)
                # What is compared with a packed model, bit by bit, has to be one.
                if scheme.quantizes_weights and execution_of(self.quantized) == "packed":
                    made = pack(made)
            except Exception as error:  # a quantizer under test may raise anything
                return Rerun(copy, None, f"{type(error).__name__}: {error}", calls)
        return Rerun(copy, made, None, calls)

    def _from_recipe(self, lm: DiffusionLM, scheme: Scheme) -> DiffusionLM:
        method = str(self.recipe.get("method"))
        if method not in METHODS:
            raise QBenchError(
                f"the recipe's method is {method!r}, known are {', '.join(METHODS)}; pass quantizer="
            )
        if METHODS[method].calibrates and self.calibration is None:
            raise QBenchError(self._undrawn or "its calibration is unknown; pass calibration=")
        parameters = dict(self.recipe.get("parameters") or {})
        data = self.calibration
        if data is not None and not (scheme.quantizes_weights or scheme.quantizes_activations):
            data = data.first(_SEQUENCES_AT_16_BITS)
        return quantize(lm, method, scheme, data, **parameters)


def random_ids(lm: DiffusionLM, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw token ids other than the mask."""
    ids = torch.randint(0, int(lm.config.vocab_size) - 1, shape, generator=generator)
    return ids + (ids >= lm.mask_id)


def not_rerun(audit: str, run: Rerun) -> list[Finding]:
    """Return the finding of an audit whose run of the quantizer failed."""
    return [
        Finding(
            audit,
            WHOLE,
            f"the quantizer could not be run again ({run.error}); expected a model: without it this"
            " audit says nothing. Mend that, or leave the audit out by its name (skip=)",
        )
    ]


def _draw_again(lm: DiffusionLM, recipe: dict[str, Any]) -> tuple[Calibration | None, str]:
    """Draw a calibration from its recipe; where that is not possible, say why."""
    source = str(recipe.get("source", "unknown"))
    needed = {"seed", "sequences", "length", "mask_ratios"}
    if source not in ("embedded training split", "random tokens") or needed - set(recipe):
        return None, f"its calibration is from {source}; pass calibration="
    drawn = draw_calibration(
        lm,
        seed=int(recipe["seed"]),
        sequences=int(recipe["sequences"]),
        length=int(recipe["length"]),
        mask_ratios=recipe["mask_ratios"],
    )
    if drawn.recipe["sha256"] != recipe.get("sha256"):
        return None, "its calibration cannot be drawn again from its recipe; pass calibration="
    return drawn, ""
