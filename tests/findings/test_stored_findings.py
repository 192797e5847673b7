"""What the shipped models show of the paper's findings, on the 2,000 items that their baselines hold.

arXiv 2508.14896, sections 4.1 to 4.4: bit-width, method, task, model type. Drops are relative to full
precision, in percent. The matrix compares today's run with these baselines, so a claim here is a
claim about today's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

from dllm_qbench.baselines import CellBaseline, read_baselines
from dllm_qbench.models.embedded import items
from dllm_qbench.verdict.statistics import Pairs, drop_interval, mcnemar_worse, relative_drop

BASELINES = Path(__file__).parents[2] / "baselines"
COLLAPSE = {"general": 20.0, "math": 40.0, "code": 25.0}
ROTATIONS = ("quarot", "duquant")
WEIGHT_ONLY = ("rtn", "gptq", "awq")

MODELS = pytest.mark.parametrize("model", ["llada-embedded", "dream-embedded"])
FAMILIES = pytest.mark.parametrize("family", items.FAMILIES)


@cache
def cells_of(model: str) -> Mapping[str, CellBaseline]:
    return read_baselines(BASELINES / f"{model}.json").cells


def drop(model: str, cell: str) -> float:
    return relative_drop(cells_of(model)[cell].pairs)


def interval(model: str, cell: str) -> tuple[float, float]:
    return drop_interval(cells_of(model)[cell].pairs)


def surely_worse(one: CellBaseline, other: CellBaseline) -> bool:
    """Whether ``one`` answers fewer of the same items right than ``other``, beyond chance."""
    pairs = Pairs.count(other.quantized_correct, one.quantized_correct)
    return mcnemar_worse(pairs.lost, pairs.gained) < 0.001


# --- what was measured


@MODELS
def test_the_whole_matrix_is_stored_and_was_measured_on_2000_items(model: str) -> None:
    wanted = {
        f"{method}/{scheme}/{family}"
        for methods, schemes in (
            (WEIGHT_ONLY, ("W4A16-g64", "W3A16-g64")),
            (("rtn", "smoothquant", *ROTATIONS), ("W8A8", "W4A4")),
        )
        for method in methods
        for scheme in schemes
        for family in items.FAMILIES
    }
    assert set(cells_of(model)) == wanted
    assert {cell.items for cell in cells_of(model).values()} == {2000}


@MODELS
@FAMILIES
def test_full_precision_answers_85_to_95_percent_and_no_kind_is_saturated(
    model: str, family: str
) -> None:
    right = cells_of(model)[f"rtn/W4A16-g64/{family}"].reference_correct
    assert 0.85 <= sum(right) / len(right) <= 0.95
    by_kind: dict[str, list[bool]] = {}
    for item, correct in zip(items.test_items(family), right, strict=True):
        by_kind.setdefault(item.kind, []).append(correct)
    assert set(by_kind) == set(items.KINDS[family])
    assert {kind for kind, answers in by_kind.items() if all(answers)} == set()


# --- bit-width


def test_gptq_4_bit_weights_stay_within_1_percent_on_general() -> None:
    assert drop("llada-embedded", "gptq/W4A16-g64/general") <= 1.0


@MODELS
@FAMILIES
@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_3_bit_weights_cost_more_than_4_bit_weights(model: str, method: str, family: str) -> None:
    assert drop(model, f"{method}/W3A16-g64/{family}") > drop(model, f"{method}/W4A16-g64/{family}")


@MODELS
@FAMILIES
@pytest.mark.parametrize("method", ["smoothquant", *ROTATIONS])
def test_8_bit_is_within_2_5_percent(model: str, method: str, family: str) -> None:
    assert drop(model, f"{method}/W8A8/{family}") <= 2.5


@MODELS
@FAMILIES
@pytest.mark.parametrize("method", ["rtn", "smoothquant", *ROTATIONS])
def test_4_bit_activations_cost_more_than_8_bit_ones(model: str, method: str, family: str) -> None:
    assert drop(model, f"{method}/W4A4/{family}") > interval(model, f"{method}/W8A8/{family}")[1]


# --- method


@MODELS
@FAMILIES
def test_smoothquant_4_bit_collapses(model: str, family: str) -> None:
    """The paper: -29 to -37 % on general tasks, -95 % and worse on math and code."""
    cell = f"smoothquant/W4A4/{family}"
    assert drop(model, cell) > COLLAPSE[family]
    assert interval(model, cell)[0] > 0.9 * COLLAPSE[family]
    band = cells_of(model)[cell].band
    assert (band.kind, band.min_drop) == ("collapse", COLLAPSE[family])


@MODELS
@FAMILIES
@pytest.mark.parametrize("method", ROTATIONS)
def test_rotation_beats_smoothquant_at_4_bits(model: str, method: str, family: str) -> None:
    cells = cells_of(model)
    assert surely_worse(cells[f"smoothquant/W4A4/{family}"], cells[f"{method}/W4A4/{family}"])


@MODELS
@pytest.mark.parametrize("method", ROTATIONS)
def test_rotation_keeps_90_percent_on_general_at_4_bits(model: str, method: str) -> None:
    assert drop(model, f"{method}/W4A4/general") <= 10.0


@MODELS
@FAMILIES
def test_gptq_beats_rounding_to_nearest_at_3_bits(model: str, family: str) -> None:
    cells = cells_of(model)
    assert surely_worse(cells[f"rtn/W3A16-g64/{family}"], cells[f"gptq/W3A16-g64/{family}"])


@MODELS
def test_awq_beats_rounding_to_nearest_on_math_at_3_bits(model: str) -> None:
    cells = cells_of(model)
    assert surely_worse(cells["rtn/W3A16-g64/math"], cells["awq/W3A16-g64/math"])


@MODELS
@FAMILIES
@pytest.mark.parametrize("scheme", ["W4A16-g64", "W3A16-g64"])
def test_awq_beats_rounding_to_nearest_in_layer_error_on_average(
    model: str, scheme: str, family: str
) -> None:
    awq, rtn = (
        cells_of(model)[f"{method}/{scheme}/{family}"].layer_sqnr for method in ("awq", "rtn")
    )
    assert mean(awq.values()) > mean(rtn.values())


# --- task

# Seen as the paper says, but not beyond chance: 7.6 % on math beside 6.5 [5.4, 7.7] on general.
WITHIN_CHANCE = {("dream-embedded", "gptq/W3A16-g64", "math")}


@MODELS
@pytest.mark.parametrize("cell", [*(f"{m}/W3A16-g64" for m in WEIGHT_ONLY), "smoothquant/W4A4"])
@pytest.mark.parametrize("family", ["math", "code"])
def test_math_and_code_suffer_more_than_general(model: str, cell: str, family: str) -> None:
    least = drop(model, f"{cell}/general")
    if (model, cell, family) not in WITHIN_CHANCE:
        least = interval(model, f"{cell}/general")[1]
    assert drop(model, f"{cell}/{family}") > least


# --- model type


def test_3_bit_weights_cost_dream_more_than_llada() -> None:
    """Section 4.4, on general and code. On math it does not reproduce: there GPTQ costs LLaDA more
    (15.4 % beside 7.6 %).
    """
    for method in WEIGHT_ONLY:
        for family in ("general", "code"):
            cell = f"{method}/W3A16-g64/{family}"
            assert drop("dream-embedded", cell) > drop("llada-embedded", cell)
