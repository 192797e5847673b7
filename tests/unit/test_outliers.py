"""Outlier statistics: known activations give known figures; inserting outliers makes them
appear.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dllm_qbench.evaluation.outliers import canvases, outliers, statistics
from dllm_qbench.models.embedded import outliers as surgery
from dllm_qbench.models.embedded.corpus import calibration_texts
from tests.helpers.tiny import tiny_llada


def test_one_massive_value_shows_in_token_ratio_not_in_channel_ratio() -> None:
    x_ND = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    x_ND[7, 3] = 900.0
    found = statistics(x_ND)
    assert found["max"] == 900.0
    assert found["token_ratio"] > 100
    assert found["channel_ratio"] < 1.5
    assert found["kurtosis"] > 1000


def test_one_large_channel_shows_in_channel_ratio_not_in_token_ratio() -> None:
    x_ND = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    x_ND[:, 3] *= 30
    found = statistics(x_ND)
    assert found["channel_ratio"] > 20
    assert found["token_ratio"] < 8
    assert found["channel_share"] == 1 / 16


def test_normal_values_have_kurtosis_three() -> None:
    assert statistics(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(1)))[
        "kurtosis"
    ] == pytest.approx(3, abs=0.1)


def test_rows_cover_every_layer_input_and_ratio() -> None:
    lm = tiny_llada()
    ids = torch.randint(4, 64, (6, 10), generator=torch.Generator().manual_seed(0))
    table = outliers(lm, ids, mask_ratios=(0.0, 1.0))
    assert len(table) == 2 * 2 * 4
    assert set(table["input"]) == {"qkv", "o_proj", "gate_up", "down_proj"}
    # at ratio 1 every token is [MASK]: the rows differ by position only
    assert (
        table[table.mask_ratio == 0]["max"].to_numpy()
        != table[table.mask_ratio == 1]["max"].to_numpy()
    ).any()
    again = outliers(lm, ids, mask_ratios=(0.0, 1.0))
    assert table.equals(again)


def test_channel_gains_alone_leave_the_function_unchanged() -> None:
    lm = tiny_llada(dtype=torch.float64)
    ids = torch.randint(4, 64, (8, 10), generator=torch.Generator().manual_seed(0))
    before = lm.logits(ids)
    plain = lm.clone()
    for layer in lm.model.model.layers:
        for norm, readers in (
            (
                layer.input_layernorm,
                (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            ),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            surgery.widen_channels(norm, readers, [1, 5], 8.0)
    assert torch.allclose(lm.logits(ids), before, rtol=1e-9, atol=1e-9)
    assert lm.fingerprint() != plain.fingerprint()


def test_inserted_outliers_sit_on_the_marked_tokens() -> None:
    lm = tiny_llada()
    ids = torch.randint(4, 64, (32, 10), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    surgery.insert(
        lm.model, ids, [2], surgery.Outliers(massive=2000.0, low_variance=4, channels=2), seed=0
    )
    table = outliers(lm, ids, mask_ratios=(0.0,))
    down = table[table.input == "down_proj"]
    assert (down["token_ratio"] > 20).all()
    assert (down["max_over_median"] > 300).all()
    assert (down["max"] > 1000).all()
    assert (table[table.input == "qkv"]["channel_ratio"] > 3).all()


class Merging:
    """Stands in for a vocabulary of byte pairs: a question mark is one token with the word before it."""

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0  # the unknown token's

    def __call__(self, text: str) -> SimpleNamespace:
        words = text.split()
        return SimpleNamespace(input_ids=[1, *(4 + len(word) for word in words)])


def test_what_is_asked_stays_visible_where_the_question_mark_has_no_token() -> None:
    lm = replace(tiny_llada(), tokenizer=Merging())  # type: ignore[arg-type]
    texts = calibration_texts(96, 0)
    hidden = canvases(lm, None, 1.0, 0)
    assert len(hidden) == len(texts)
    for row, text in zip(hidden, texts, strict=True):
        asked = 1 + len(text[: text.index("?") + 1].split())
        assert (row[:asked] != lm.mask_id).all()
        assert (row[asked:] == lm.mask_id).all()
    assert any((row == lm.mask_id).any() for row in hidden)
