"""A quantizer without a baseline of its own: whose band holds, and what else is asked of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dllm_qbench.baselines import Baselines, CellBaseline, read_baselines, shipped_baselines
from dllm_qbench.errors import BaselineError
from dllm_qbench.records import Record
from dllm_qbench.verdict.alike import ONE_BIT, Like, find_like, judge_like
from tests.helpers.records import PROFILE, make_record
from tests.helpers.verdicts import COLLAPSE, GRACEFUL, LOSSLESS

MODELS = ("llada-embedded", "dream-embedded")


def like_of(record: Record, **changes: object) -> Like:
    """The record as the cell of another quantizer, which is a floor as well."""
    cell = CellBaseline.from_record(replace(record, method="gptq"))
    return Like(replace(cell, **changes), cell.local_sqnr)  # type: ignore[arg-type]


def mine(counts: tuple[int, int, int, int] = (810, 90, 0, 100), **fields: object) -> Record:
    record = replace(make_record(counts=counts), method="mine", recipe={"method": "mine"})
    return replace(record, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("band", "status"), [(GRACEFUL, "equivalent"), (LOSSLESS, "degraded"), (COLLAPSE, "improved")]
)
def test_the_other_ones_band_decides(band: object, status: str) -> None:
    verdict = judge_like(mine(), like_of(mine(), band=band))
    assert verdict.status == status
    assert verdict.cell.startswith("mine/")
    assert "like gptq/" in verdict.baseline
    assert verdict.band == band


def test_another_recipe_other_answers_and_other_fidelity_are_no_finding() -> None:
    record = mine()
    turned = tuple(reversed(record.quantized_correct))
    cell = like_of(record, band=GRACEFUL, quantized_correct=turned, recipe={"method": "gptq"})
    verdict = judge_like(record, cell)
    assert verdict.status == "equivalent"
    assert (verdict.lost, verdict.gained) == (0, 0)
    assert not any("recipe" in reason for reason in verdict.reasons)


def test_full_precision_is_still_compared() -> None:
    record = mine()
    other = tuple(not right for right in record.reference_correct)
    verdict = judge_like(record, like_of(record, band=GRACEFUL, reference_correct=other))
    assert verdict.status == "degraded"
    assert any("full precision itself changed" in reason for reason in verdict.reasons)


def test_a_linear_a_bit_below_the_floor_is_named_and_one_above_is_not() -> None:
    names = list(PROFILE)
    seen = {**PROFILE, names[1]: PROFILE[names[1]] - ONE_BIT - 0.1}
    seen[names[0]] = PROFILE[names[0]] - ONE_BIT + 0.1
    record = mine(local_sqnr=PROFILE, layer_sqnr=PROFILE)
    verdict = judge_like(replace(record, local_sqnr=seen), like_of(record, band=GRACEFUL))
    assert verdict.status == "degraded"
    assert verdict.place is not None
    assert verdict.place.first == names[1]
    assert f"first  {names[1]}: fed with full precision's inputs" in verdict.message
    better = {name: value + 20 for name, value in PROFILE.items()}
    above = judge_like(replace(record, local_sqnr=better), like_of(record, band=GRACEFUL))
    assert above.status == "equivalent"


def test_fewer_items_than_stored_are_judged_on_those() -> None:
    record = mine()
    few = record.first(200)
    verdict = judge_like(few, like_of(record, band=GRACEFUL))
    assert verdict.items == 200
    assert (verdict.lost, verdict.gained) == (0, 0)


# --- which cell --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("like", "cell"),
    [
        ("gptq/W4A16", "gptq/W4A16-g64/math"),
        ("gptq/W4A16-g64", "gptq/W4A16-g64/math"),
        ("smoothquant/W8A8", "smoothquant/W8A8/math"),
    ],
)
def test_a_scheme_may_leave_its_group_out(model: str, like: str, cell: str) -> None:
    found = find_like(like, "math", model)
    assert found.cell.cell == cell
    assert found.cell.model == model


@pytest.mark.parametrize("model", MODELS)
def test_the_floor_is_the_lowest_of_the_schemes_quantizers(model: str) -> None:
    stored = read_baselines(shipped_baselines(model)).cells
    floor = find_like("gptq/W4A16", "code", model).floor
    methods = [stored[f"{method}/W4A16-g64/code"].local_sqnr for method in ("rtn", "gptq", "awq")]
    assert floor == {name: min(m[name] for m in methods) for name in methods[0]}
    assert len(floor) == 28


@pytest.mark.parametrize(
    ("like", "error"),
    [
        ("gptq/W5A16", "no cell is like 'gptq/W5A16' on task 'math'; expected .* gptq/W4A16-g64"),
        ("gptq", "no cell is like 'gptq'"),
    ],
)
def test_unknown_cell_is_an_error_that_lists_the_known(like: str, error: str) -> None:
    with pytest.raises(BaselineError, match=error):
        find_like(like, "math", "llada-embedded")


def test_several_groups_need_to_be_told_apart() -> None:
    stored = read_baselines(shipped_baselines("llada-embedded"))
    cell = stored.cells["gptq/W4A16-g64/math"]
    both = {"gptq/W4A16-g64/math": cell, "gptq/W4A16-g128/math": cell}
    with pytest.raises(BaselineError, match="2 cells are like 'gptq/W4A16'"):
        find_like("gptq/W4A16", "math", "x", Baselines("x", "", both, stored.path))


def test_model_without_shipped_baselines_is_an_error() -> None:
    with pytest.raises(BaselineError, match="no baselines of 'my-model' come with the suite"):
        find_like("gptq/W4A16", "math", "my-model")
