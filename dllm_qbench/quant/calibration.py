"""Calibration data: what a method sees of the model's inputs.

A masked diffusion model reads canvases from fully masked to complete, so calibration holds sequences
with and without masks, and the ratios are part of the recipe. (The published recipes calibrate such
models on text without a single mask.)

Where a text is known to be a prompt and an answer, only the answer is masked and it is followed by
end-of-text tokens to its canvas, as at use; otherwise every token but a leading begin-of-text may be
masked, as in LLaDA's pre-training. A sequence of ratio r has round(r * n) of its n maskable tokens
masked, drawn from a seed of its own: sequence i is the same however many others there are.

Shapes: N sequences, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive

MASK_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SEQUENCES = 512
_RANDOM_LENGTH = 32  # of random sequences, where no length is given


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration sequences and how they were made.

    Attributes:
        ids: long ``[N, T]``, masks in place, padded on the right.
        attention_mask: long ``[N, T]``, 1 for real tokens and 0 for padding.
        recipe: JSON-able: source, seed, counts, lengths, mask ratios and a sha256 of the sequences.
    """

    ids: Tensor
    attention_mask: Tensor
    recipe: Mapping[str, Any]

    def first(self, sequences: int) -> Calibration:
        """Return the first ``sequences``; the recipe stays that of the whole."""
        return Calibration(self.ids[:sequences], self.attention_mask[:sequences], self.recipe)


@dataclass(frozen=True)
class _Sequence:
    ids: list[int]
    first_maskable: int


def calibration(
    lm: DiffusionLM,
    seed: int = 0,
    sequences: int | None = None,
    length: int | None = None,
    mask_ratios: Sequence[float] = MASK_RATIOS,
    texts: Sequence[str | tuple[str, str]] | None = None,
    ids: Sequence[Sequence[int]] | Tensor | None = None,
) -> Calibration:
    """Draw calibration sequences for a model.

    Args:
        lm: gives tokenizer, mask token and vocabulary; its weights play no part.
        seed: of the texts and of the masks.
        sequences: how many; by default all that are given, else 512 (drawn ones are short: some
            12,000 tokens in all). Given texts or ids are used from the first on.
        length: longer sequences are cut to it; ``None`` keeps them whole.
        mask_ratios: sequence i has ratio ``mask_ratios[i % len(mask_ratios)]``.
        texts: texts, or pairs (prompt, answer). Without texts and ids, an embedded model takes
            texts of its training split, any other model random tokens (the recipe says so).
        ids: token ids, ``[N, T]`` or rows of unequal length, without masks.

    Raises:
        CalibrationError: no or too few sequences, an empty one, ids outside the vocabulary, ratios
            outside 0..1, texts without a tokenizer, or both texts and ids.
    """
    ratios = tuple(float(ratio) for ratio in mask_ratios)
    if not ratios or not all(0.0 <= ratio <= 1.0 for ratio in ratios):
        raise CalibrationError(
            f"calibration: mask_ratios must lie in 0..1, at least one; found {ratios}"
        )
    if sequences is None:
        given = texts if texts is not None else ids
        sequences = _SEQUENCES if given is None else len(given)
    if sequences < 1:
        raise CalibrationError(f"calibration: sequences must be at least 1, found {sequences}")
    if length is not None and length < 1:
        raise CalibrationError(f"calibration: length must be at least 1 token, found {length}")
    source, rows = _rows(lm, seed, sequences, length, texts, ids)
    if len(rows) < sequences:
        raise CalibrationError(
            f"calibration: {sequences} sequences are asked for, {source} holds {len(rows)};"
            f" give more, or pass sequences={len(rows)}"
        )
    rows = [
        _Sequence(row.ids[:length], max(row.first_maskable, lm.first_maskable))
        for row in rows[:sequences]
    ]
    _check(rows, int(lm.config.vocab_size), source)
    width = max(len(row.ids) for row in rows)
    table = torch.full((len(rows), width), lm.pad_id, dtype=torch.long)
    attention = torch.zeros_like(table)
    for index, row in enumerate(rows):
        masked = _mask(row, ratios[index % len(ratios)], lm.mask_id, derive(seed, "mask", index))
        table[index, : len(masked)] = masked
        attention[index, : len(masked)] = 1
    digest = hashlib.sha256(table.numpy().tobytes() + attention.numpy().tobytes()).hexdigest()
    recipe = {
        "source": source,
        "seed": seed,
        "sequences": len(rows),
        "length": width,
        "mask_ratios": list(ratios),
        "masked_share": round(float((table == lm.mask_id).sum() / attention.sum()), 4),
        "sha256": digest,
    }
    return Calibration(table, attention, recipe)


def _rows(
    lm: DiffusionLM,
    seed: int,
    sequences: int,
    length: int | None,
    texts: Sequence[str | tuple[str, str]] | None,
    ids: Sequence[Sequence[int]] | Tensor | None,
) -> tuple[str, list[_Sequence]]:
    if texts is not None and ids is not None:
        raise CalibrationError("calibration: give texts or ids, not both")
    if ids is not None:
        rows = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
        return "given ids", [_Sequence(row, _after_bos(lm, row)) for row in rows]
    if texts is not None:
        return "given texts", [_tokenize(lm, text) for text in texts]
    if _speaks_embedded(lm):
        return "embedded training split", _embedded(lm, seed, sequences)
    generator = torch.Generator().manual_seed(derive(seed, "random tokens"))
    shape = (sequences, length or _RANDOM_LENGTH)
    # One id less than the vocabulary, then skip the mask: random text holds no masks of its own.
    drawn = torch.randint(0, int(lm.config.vocab_size) - 1, shape, generator=generator)
    drawn += drawn >= lm.mask_id
    return "random tokens", [_Sequence(row, 0) for row in drawn.tolist()]


def _tokenize(lm: DiffusionLM, text: str | tuple[str, str]) -> _Sequence:
    if lm.tokenizer is None:
        raise CalibrationError(
            f"calibration: {lm.name} has no tokenizer files, so texts cannot be read; pass ids="
        )
    if isinstance(text, str):
        row = list(lm.tokenizer(text).input_ids)
        return _Sequence(row, _after_bos(lm, row))
    prompt, answer = text
    head = list(lm.tokenizer(prompt).input_ids)
    tail = list(lm.tokenizer(answer, add_special_tokens=False).input_ids)
    return _Sequence(head + tail, len(head))


def _speaks_embedded(lm: DiffusionLM) -> bool:
    from dllm_qbench.models.embedded import vocabulary

    words = vocabulary.words()
    return lm.tokenizer is not None and lm.tokenizer.get_vocab() == dict(
        zip(words, range(len(words)), strict=True)
    )


def _embedded(lm: DiffusionLM, seed: int, sequences: int) -> list[_Sequence]:
    from dllm_qbench.models.embedded.corpus import calibration_texts
    from dllm_qbench.models.embedded.items import FAMILIES, answer_length

    made = []
    for index, text in enumerate(calibration_texts(sequences, seed)):
        prompt, mark, answer = text.partition("? ")
        row = _tokenize(lm, (prompt + mark, answer))
        family = FAMILIES[index % len(FAMILIES)]
        canvas = row.first_maskable + answer_length(family, lm.closed_targets)
        filler = [lm.eos_id] * (canvas - len(row.ids))
        made.append(_Sequence(row.ids + filler, row.first_maskable))
    return made


def _after_bos(lm: DiffusionLM, row: Sequence[int]) -> int:
    return int(lm.bos_id is not None and len(row) > 1 and row[0] == lm.bos_id)


def _mask(row: _Sequence, ratio: float, mask_id: int, seed: int) -> Tensor:
    ids = torch.tensor(row.ids, dtype=torch.long)
    maskable = len(ids) - row.first_maskable
    if maskable > 0:
        order = torch.randperm(maskable, generator=torch.Generator().manual_seed(seed))
        ids[row.first_maskable + order[: round(ratio * maskable)]] = mask_id
    return ids


def _check(rows: Sequence[_Sequence], vocabulary: int, source: str) -> None:
    for index, row in enumerate(rows):
        if not row.ids:
            raise CalibrationError(f"calibration: sequence {index} of {source} is empty")
        if min(row.ids) < 0 or max(row.ids) >= vocabulary:
            raise CalibrationError(
                f"calibration: sequence {index} of {source} has ids from {min(row.ids)} to"
                f" {max(row.ids)}; the model's vocabulary is 0..{vocabulary - 1}"
            )
