"""Calibration data: ratios, seeds, sources, and errors for what cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.embedded import vocabulary
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.tiny import tiny_llada


def speaking() -> DiffusionLM:
    """A random model with the embedded models' tokenizer."""
    words = vocabulary.words()
    lm = tiny_llada(vocab_size=len(words), mask_token_id=2, eos_token_id=0, pad_token_id=0)
    lm.tokenizer = vocabulary.tokenizer()
    return lm


def test_embedded_texts_come_with_and_without_masks_in_the_answer_only() -> None:
    lm = speaking()
    data = qb.calibration(lm, sequences=60)
    assert data.recipe["source"] == "embedded training split"
    question = vocabulary.words().index("?")
    shares = []
    for row, mask in zip(data.ids, data.attention_mask, strict=True):
        start = int((row == question).nonzero()[0]) + 1
        assert not (row[:start] == lm.mask_id).any()
        real = row[start : int(mask.sum())]
        assert len(real) in (3, 18)  # answers fill their family's canvas with <eos>
        shares.append(float((real == lm.mask_id).float().mean()))
    expected = [0.0, 0.25, 0.5, 0.75, 1.0] * 12
    assert all(abs(s - e) <= 0.17 for s, e in zip(shares, expected, strict=True))
    assert shares[0] == 0.0
    assert shares[4] == 1.0


def test_equal_seeds_give_equal_data_and_others_do_not() -> None:
    lm = speaking()
    a, b, c = (qb.calibration(lm, seed=seed, sequences=12) for seed in (3, 3, 4))
    assert torch.equal(a.ids, b.ids)
    assert a.recipe == b.recipe
    assert not torch.equal(a.ids, c.ids)
    assert a.recipe["sha256"] != c.recipe["sha256"]


def test_a_sequence_does_not_depend_on_how_many_others_there_are() -> None:
    lm = tiny_llada()
    rows = torch.randint(4, 64, (6, 10), generator=torch.Generator().manual_seed(0))
    few, many = (qb.calibration(lm, sequences=n, ids=rows).ids for n in (2, 6))
    assert torch.equal(few, many[:2])


def test_recipe_is_json_and_names_what_was_drawn() -> None:
    data = qb.calibration(tiny_llada(), seed=5, sequences=4, length=8, mask_ratios=(0.0, 0.5))
    recipe = json.loads(json.dumps(data.recipe))
    assert recipe == data.recipe
    digest = recipe.pop("sha256")
    assert len(digest) == 64
    assert recipe == {
        "source": "random tokens",
        "seed": 5,
        "sequences": 4,
        "length": 8,
        "mask_ratios": [0.0, 0.5],
        "masked_share": 0.25,
    }


def test_unequal_rows_are_padded_and_marked() -> None:
    data = qb.calibration(tiny_llada(), sequences=2, mask_ratios=(0.0,), ids=[[5, 6, 7], [8]])
    assert data.ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert data.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_long_rows_are_cut() -> None:
    data = qb.calibration(tiny_llada(), sequences=1, length=2, mask_ratios=(0.0,), ids=[[5, 6, 7]])
    assert data.ids.tolist() == [[5, 6]]


@pytest.mark.parametrize(("ratio", "masked"), [(0.0, 0), (0.3, 3), (0.75, 8), (1.0, 10)])
def test_ratio_is_exact_to_rounding(ratio: float, masked: int) -> None:
    data = qb.calibration(tiny_llada(), sequences=9, length=10, mask_ratios=(ratio,))
    assert ((data.ids == 3).sum(1) == masked).all()  # round half to even: 7.5 is 8


def test_texts_keep_begin_of_text_and_pairs_keep_the_prompt() -> None:
    lm = speaking()
    texts: list[Any] = ["tom has 7 apples", ("tom has 7", "apples")]
    data = qb.calibration(lm, sequences=2, mask_ratios=(1.0,), texts=texts)
    bos, mask = 1, 2
    assert data.ids[0].tolist() == [bos, mask, mask, mask, mask]
    assert data.ids[1, :4].tolist() == lm.tokenizer("tom has 7").input_ids
    assert data.ids[1, 4] == mask


def test_random_tokens_hold_no_mask_of_their_own() -> None:
    data = qb.calibration(tiny_llada(), sequences=64, mask_ratios=(0.0,))
    assert not (data.ids == 3).any()
    assert int(data.ids.max()) == 63


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequences": 0}, "sequences must be at least 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"mask_ratios": ()}, "at least one"),
        ({"mask_ratios": (0.5, 1.2)}, r"must lie in 0\.\.1"),
        ({"mask_ratios": (float("nan"),)}, r"must lie in 0\.\.1"),
        ({"ids": [[5]], "sequences": 2}, "2 sequences are asked for, given ids holds 1"),
        ({"ids": [[]], "sequences": 1}, "sequence 0 of given ids is empty"),
        ({"ids": [[5], [64]], "sequences": 2}, r"sequence 1 .* vocabulary is 0\.\.63"),
        ({"texts": ["tom"], "sequences": 1}, "no tokenizer files"),
        ({"texts": ["tom"], "ids": [[5]], "sequences": 1}, "not both"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        qb.calibration(tiny_llada(), **arguments)
