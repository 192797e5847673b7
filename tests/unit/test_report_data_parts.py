"""Parts of the report's data that have laws of their own: axes, bins, steps, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.evaluation import fidelity
from dllm_qbench.models.embedded.items import test_items as items_of
from dllm_qbench.report import inside, origins
from dllm_qbench.report.profiles import merged
from dllm_qbench.report.prompts import Wanted, find_items
from dllm_qbench.report.reading import cut
from dllm_qbench.tasks.paper import PAPER_TASKS
from tests.helpers.paper_data import record as paper_record
from tests.helpers.paper_data import write_paper_data
from tests.helpers.records import make_record


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_two_profiles_in_forward_order_merge_into_one_that_keeps_both_orders(
    one: set[int], other: set[int]
) -> None:
    first, second = ([f"m{n}" for n in sorted(drawn)] for drawn in (one, other))
    found = merged(first, second)
    assert sorted(found) == sorted({*first, *second})
    assert [name for name in found if name in first] == first
    assert [name for name in found if name in second] == second


@given(st.permutations(range(6)), st.permutations(range(9)))
def test_profiles_that_contradict_each_other_still_merge(one: list[int], other: list[int]) -> None:
    found = merged([str(n) for n in one], [str(n) for n in other])
    assert sorted(found) == [str(n) for n in range(9)]
    assert [name for name in found if int(name) < 6] == [str(n) for n in one]


def test_bins_are_those_of_the_measurement() -> None:
    assert inside.BINS == fidelity.BINS
    assert inside._LEAST_KL == fidelity._LEAST_KL


def test_a_kl_of_zero_has_a_logarithm() -> None:
    """The quartiles 0, 9e-9 and 1 nat, counted from 1e-9 on: 1e-9, 1e-8 and 1."""
    quartiles = {"tokens": 3, "q25": 0, "q50": 9e-9, "q75": 1.0}
    (low,) = inside.by_mask_ratio({"kl": {"low": quartiles}}, "cell")
    assert low["log10_kl"] == [-9.0, -8.0, 0.0]


@given(st.lists(st.integers(-1, 9), max_size=20), st.integers(0, 12))
def test_divergence_by_step_is_the_share_of_items_that_parted_by_then(
    first: list[int], steps: int
) -> None:
    """Also where the record's flips begin with a later step than 0, as Dream's may."""
    given_ = {"commit_flips": [0.25] * steps, "first_divergence": first, "sequence_match": []}
    found = inside.trajectory(given_, "cell")
    assert found is not None
    wanted_steps = max(steps, max(first, default=-1) + 1)
    assert found["flips"] == [0.0] * (wanted_steps - steps) + [0.25] * steps
    for step, share in enumerate(found["diverged"]):
        parted = sum(0 <= one <= step for one in first)
        assert share == (round(parted / len(first), 4) if first else 0.0)
    assert len(found["diverged"]) == wanted_steps


@given(st.text(max_size=40), st.integers(2, 20))
def test_a_cut_text_keeps_its_ends_and_says_how_much_is_gone(text: str, most: int) -> None:
    found = cut(text, most)
    if len(text) <= most:
        assert found == text
    else:
        half = most // 2
        assert found.startswith(text[:half])
        assert found.endswith(text[-half:])
        assert f" [... {len(text) - 2 * half} characters left out ...] " in found


def test_values_inside_values_are_named_by_both() -> None:
    recipe = {"a": {"b": {"c": {"d": 1}}, "e": []}, "f": [1, "x", None, True], "g": {}, "h": [[1]]}
    assert origins.recipe(make_record(recipe=recipe)) == [
        ["a.b.c", '{"d": 1}'],
        ["a.e", "none"],
        ["f", "1, x, none, yes"],
        ["g", "none"],
        ["h", "[[1]]"],
    ]


def test_a_recipe_without_end_is_cut() -> None:
    found = origins.recipe(make_record(recipe={f"k{n}": n for n in range(500)}))
    assert found[-1] == ["more", "440 values, in the records"]
    assert len(found) == 61


# --- prompts


@pytest.mark.parametrize("task", ["general", "math", "code"])
@pytest.mark.parametrize("seed", [0, 3])
def test_an_embedded_item_is_found_by_its_id(task: str, seed: int) -> None:
    asked = items_of(task, 40, seed)[37:]
    wanted = Wanted(dict.fromkeys([*(item.id for item in asked), "unknown"]), {seed: None})
    found, notes = find_items({task: wanted}, None)
    assert notes == []
    assert found == {
        task: {
            item.id: {
                "prompt": "\n".join([item.prompt, *(f"- {choice}" for choice in item.choices)]),
                "expected": item.answer,
            }
            for item in asked
        }
    }


def _expected(task: str, n: int) -> tuple[str, str]:
    """What a record of ``tests.helpers.paper_data`` asks, in part, and its answer."""
    record: dict[str, Any] = paper_record(task, n)
    match task:
        case "winogrande":
            return record["sentence"], record["option1" if record["answer"] == "1" else "option2"]
        case "piqa":
            return record["sol2"], record["sol1" if record["label"] == 0 else "sol2"]
        case "arc_easy" | "arc_challenge":
            by_label = dict(zip(record["choices"]["label"], record["choices"]["text"], strict=True))
            return "- salt", by_label[record["answerKey"]]
        case "hellaswag":
            return record["ctx"], record["endings"][n % 4]
        case "mmlu":
            return record["question"], str(n + 2)
        case "gsm8k":
            return record["question"], record["answer"]
        case "minerva_math":
            return record["problem"], record["solution"]
        case "humaneval":
            return record["prompt"], record["canonical_solution"]
    return record["test_list"][1], record["code"]


@pytest.fixture(scope="module")
def paper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper_data(tmp_path_factory.mktemp("paper"))


_IDS = {
    "arc_easy": "ARC_EASY_1",
    "arc_challenge": "ARC_CHALLENGE_1",
    "hellaswag": "11",
    "humaneval": "Made/1",
    "mbpp": "12",
    "mmlu": "abstract_algebra/1",
    "minerva_math": "algebra/1",
}


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_a_paper_item_is_found_by_its_id_where_the_data_are(task: str, paper_folder: Path) -> None:
    name = _IDS.get(task, "1")
    wanted = {task: Wanted({name: None}, {0: None})}
    found, notes = find_items(wanted, paper_folder)
    assert notes == []
    part, answer = _expected(task, 1)
    assert part in found[task][name]["prompt"]
    assert found[task][name]["expected"] == answer
    assert find_items(wanted, None) == ({}, [])


def test_data_that_are_missing_are_a_note(tmp_path: Path) -> None:
    found, notes = find_items({"piqa": Wanted({"1": None}, {0: None})}, tmp_path)
    assert found == {}
    (note,) = notes
    assert note.startswith("Prompts of piqa are not shown: task piqa: split 'validation' of ")
