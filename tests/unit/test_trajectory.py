"""Two models that denoise the same canvas: where their commits part ways. Commits written by hand."""

from __future__ import annotations

import pytest

from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.trajectory import Trace, compare_traces, draft
from dllm_qbench.models.embedded.items import answer_length
from tests.helpers.tiny import tiny_llada
from tests.helpers.worded import worded_llada

DETOUR, END = 9, 1  # tokens


def trace(*steps: dict[int, int]) -> Trace:
    """Commits from ``{position: token}`` of each step."""
    return [Commit(n, tuple(step), tuple(step.values())) for n, step in enumerate(steps)]


SAME = trace({0: 5}, {1: 6}, {2: 7})


def test_equal_traces_never_part() -> None:
    found = compare_traces([SAME, SAME], [SAME, trace({0: 5}, {1: 6}, {2: 7})])
    assert found == {
        "items": 2,
        "commit_flips": [0.0, 0.0, 0.0],
        "first_divergence": [-1, -1],
        "sequence_match": [True, True],
    }


@pytest.mark.parametrize(
    ("other", "flips", "first", "match"),
    [
        # Another token at the last step.
        (trace({0: 5}, {1: 6}, {2: 8}), [0, 0, 1], 2, False),
        # The same tokens in another order: another trajectory to the same answer.
        (trace({0: 5}, {2: 7}, {1: 6}), [0, 1, 1], 1, True),
        (trace({2: 7}, {1: 6}, {0: 5}), [1, 0, 1], 0, True),
        # A commit that is taken back later.
        (trace({0: DETOUR}, {1: 6}, {2: 7, 0: 5}), [1, 0, 0.5], 0, True),
        # A step fewer, with what is missing committed at once.
        (trace({0: 5}, {1: 6, 2: 7}), [0, 0.5, 1], 1, True),
        # A step more.
        (trace({0: 5}, {1: 6}, {2: 7}, {3: END}), [0, 0, 0, 1], 3, False),
    ],
)
def test_a_commit_is_a_position_with_its_token_at_a_step(
    other: Trace, flips: list[float], first: int, match: bool
) -> None:
    for one, two in ((SAME, other), (other, SAME)):
        found = compare_traces([one], [two])
        assert found["commit_flips"] == flips
        assert found["first_divergence"] == [first]
        assert found["sequence_match"] == [match]


def test_flips_are_a_share_of_the_larger_commit_averaged_over_the_items_that_have_the_step() -> (
    None
):
    one = [trace({0: 5, 1: 6, 2: 7, 3: 8}), trace({0: 5}, {1: 6}), trace({0: 5}, {1: 6})]
    two = [trace({0: 5, 1: 6, 2: 9, 4: 8}), trace({0: 5}, {1: 7}), trace({0: 5}, {1: 6})]
    found = compare_traces(one, two)
    # Step 0: two of four differ in the first item, none elsewhere: 0.5 / 3; step 1: one of two items.
    assert found["commit_flips"] == [pytest.approx(1 / 6, abs=1e-6), 0.5]
    assert found["first_divergence"] == [0, 1, -1]
    assert found["sequence_match"] == [False, False, True]


def test_items_are_compared_one_by_one_in_their_order() -> None:
    others = [trace({0: n}) for n in range(4)]
    found = compare_traces(others, [others[0], others[2], others[1], others[3]])
    assert found["sequence_match"] == [True, False, False, True]
    assert compare_traces([], [])["items"] == 0


def test_other_numbers_of_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 traces cannot be compared with 1"):
        compare_traces([SAME, SAME], [SAME])


def test_draft_commits_one_token_a_step_and_an_item_does_not_depend_on_the_others() -> None:
    lm = worded_llada()
    traces = draft(lm, "general", items=5)
    length = answer_length("general", lm.closed_targets)
    for made in traces:
        assert [commit.step for commit in made] == list(range(length))
        assert {len(commit.positions) for commit in made} == {1}
    assert draft(lm, "general", items=2) == traces[:2]
    assert draft(lm, "general", seed=1, items=2) != traces[:2]


def test_drafts_of_the_same_model_match_and_of_another_do_not() -> None:
    lm = worded_llada()
    mine, again, other = (draft(model, "general", items=4) for model in (lm, lm, worded_llada(1)))
    assert all(compare_traces(mine, again)["sequence_match"])
    assert not any(compare_traces(mine, other)["sequence_match"])


def test_draft_needs_a_tokenizer() -> None:
    with pytest.raises(TaskError, match="tiny has no tokenizer; a trajectory needs one"):
        draft(tiny_llada(), "general")
