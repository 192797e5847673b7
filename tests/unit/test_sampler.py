"""LLaDA's sampler: trajectories worked by hand, and the released loop written out as an oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.diffusion.samplers import Commit, generate, transfer_counts
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.scripted import MASK, Scripted, confident
from tests.helpers.tiny import tiny_llada


def run(lm: Any, prompt: list[int], *settings: int, **more: Any) -> tuple[list[int], list[Commit]]:
    trace: list[list[Commit]] = []
    (row,) = generate(lm, [prompt], *settings, trace=trace, **more)
    return row, trace[0]


def test_most_confident_positions_come_first() -> None:
    # Prompt [1], four masks, two steps of two. Confidence rises with the logit: 4 and 2, then 3 and 1.
    table = confident({1: (2, 1.0), 2: (3, 3.0), 3: (1, 2.0), 4: (2, 4.0)}, 5)
    row, trace = run(Scripted(lambda ids: table), [1], 4, 2, 4)
    assert trace == [Commit(0, (2, 4), (3, 2)), Commit(1, (1, 3), (2, 1))]
    assert row == [1, 2, 3, 1, 2]


def test_blocks_are_filled_left_to_right_however_confident_the_next_one_is() -> None:
    table = confident({1: (1, 0.1), 2: (1, 0.2), 3: (2, 9.0), 4: (2, 8.0)}, 5)
    _, trace = run(Scripted(lambda ids: table), [3], 4, 4, 2)
    assert [commit.positions for commit in trace] == [(2,), (1,), (3,), (4,)]


def test_equal_confidence_goes_to_the_lowest_position_and_equal_logits_to_the_lowest_token() -> (
    None
):
    # All logits are equal everywhere: token 1 is the first after [MASK]; [MASK] (0) is ruled out below.
    flat = torch.zeros(6, 4)
    flat[:, MASK] = -1.0
    row, trace = run(Scripted(lambda ids: flat), [3, 3], 4, 2, 4)
    assert [commit.positions for commit in trace] == [(2, 3), (4, 5)]
    assert row == [3, 3, 1, 1, 1, 1]


def test_remainder_of_masks_goes_to_the_first_steps() -> None:
    assert transfer_counts(8, 3) == [3, 3, 2]
    table = confident({1: (1, 1.0), 2: (1, 2.0), 3: (1, 3.0), 4: (1, 4.0), 5: (1, 5.0)}, 6)
    _, trace = run(Scripted(lambda ids: table), [2], 5, 3, 5)
    assert [commit.positions for commit in trace] == [(4, 5), (2, 3), (1,)]


def test_more_steps_than_masks_ends_when_nothing_is_left() -> None:
    lm = Scripted(lambda ids: confident({1: (1, 1.0), 2: (2, 2.0)}, 3))
    row, trace = run(lm, [3], 2, 5, 2)
    assert (row, [commit.step for commit in trace], lm.calls) == ([3, 1, 2], [0, 1], 2)


def test_each_step_sees_what_the_last_one_wrote() -> None:
    # Position 1 is sure of token 1 at first; once position 2 holds token 3, position 1 wants token 2.
    def script(ids: Tensor) -> Tensor:
        return confident({1: (2 if ids[2] == 3 else 1, 1.0), 2: (3, 2.0)}, 3)

    row, _ = run(Scripted(script), [1], 2, 2, 2)
    assert row == [1, 2, 3]


def test_a_committed_mask_token_stays_open() -> None:
    # Position 2 most wants [MASK] itself: it is picked first and again, as in the released code.
    table = confident({1: (1, 1.0), 2: (MASK, 5.0)}, 3)
    row, trace = run(Scripted(lambda ids: table), [3], 2, 2, 2)
    assert [commit.positions for commit in trace] == [(2,), (2,)]
    assert row == [3, MASK, MASK]


def test_confidences_that_bf16_cannot_tell_apart_are_told_apart() -> None:
    # softmax 0.99999 and 0.99998: equal in bf16, where position 1 would win the tie.
    table = confident({1: (1, 11.9), 2: (1, 12.6)}, 3)
    probabilities = table.softmax(-1)[1:, 1]
    assert probabilities[0].bfloat16() == probabilities[1].bfloat16()
    _, trace = run(Scripted(lambda ids: table), [1], 2, 2, 2)
    assert trace[0].positions == (2,)


def test_prompts_of_unequal_length_are_batched_but_never_padded() -> None:
    # The second mask is surer than the first, the third the least sure, whatever stands before them.
    seen = set()

    def script(ids: Tensor) -> Tensor:
        seen.add(len(ids))
        end = len(ids)
        return confident({end - 3: (1, 2.0), end - 2: (2, 3.0), end - 1: (3, 1.0)}, end)

    lm: Any = Scripted(script)
    prompts = [[1], [2, 2, 2], [3, 3], [3], [2, 1, 2]]
    trace: list[list[Commit]] = []
    rows = generate(lm, prompts, 3, 2, 3, trace=trace)
    assert rows == [[*prompt, 1, 2, 3] for prompt in prompts]
    for prompt, commits in zip(prompts, trace, strict=True):
        n = len(prompt)
        assert commits == [Commit(0, (n, n + 1), (1, 2)), Commit(1, (n + 2,), (3,))]
    assert seen == {4, 5, 6}  # prompt and masks, nothing more
    assert lm.calls == 3 * 2  # one pass a length and step


def test_remainder_ties_and_blocks_together() -> None:
    # Two blocks of three in two steps each: two masks, then one. In the first block all are equally sure of
    # tokens 1 and 2: the lowest positions and the lower token. In the second, position 6 leads 4 and 5.
    table = torch.zeros(7, 4)
    table[:, MASK] = -1.0
    table[1:4, 3] = -1.0
    table[6, 3] = 2.0
    row, trace = run(Scripted(lambda ids: table), [2], 6, 4, 3)
    assert trace == [
        Commit(0, (1, 2), (1, 1)),
        Commit(1, (3,), (1,)),
        Commit(2, (4, 6), (1, 3)),
        Commit(3, (5,), (1,)),
    ]
    assert row == [2, 1, 1, 1, 1, 1, 3]


def test_a_mask_in_the_prompt_is_context() -> None:
    table = confident({1: (1, 9.0), 2: (1, 1.0), 3: (2, 2.0)}, 4)
    row, trace = run(Scripted(lambda ids: table), [1, MASK], 2, 2, 2)
    assert [commit.positions for commit in trace] == [(3,), (2,)]
    assert row == [1, MASK, 1, 2]


# Token 3 ends the text. Most likely tokens and their probabilities, by position 1 to 4:
ENDS = [
    [0.25, 0.25, 0.25, 0.25],
    [0.05, 0.15, 0.20, 0.60],  # 3, which leaves 2 with 0.20 / 0.40 = 0.50
    [0.05, 0.55, 0.30, 0.10],  # 1, 0.55 / 0.90 = 0.61 without token 3
    [0.06, 0.06, 0.08, 0.80],  # 3, which leaves 2 with 0.08 / 0.20 = 0.40
    [0.05, 0.50, 0.05, 0.40],  # 1, 0.50 / 0.60 = 0.83 without token 3
]


def ends() -> Scripted:
    logits = torch.tensor(ENDS, dtype=torch.float64).log()
    return Scripted(lambda ids: logits)


@pytest.mark.parametrize(
    ("suppressed", "trajectory", "expected"),
    [
        # nothing: by probability, 0.80, 0.60, 0.55, 0.50
        ({}, [(3,), (1,), (2,), (4,)], [1, 3, 1, 3, 1]),
        # forbidden: 0.83, 0.61, 0.50, 0.40
        ({"forbidden_ids": (3,)}, [(4,), (2,), (1,), (3,)], [1, 2, 1, 2, 1]),
        # unconfident: 0.83, 0.61, then the two ends with 0, of which the lower position comes first
        ({"unconfident_ids": (3,)}, [(4,), (2,), (1,), (3,)], [1, 3, 1, 3, 1]),
    ],
)
def test_ends_of_text_are_never_chosen_or_committed_last(
    suppressed: dict[str, Any], trajectory: list[tuple[int, ...]], expected: list[int]
) -> None:
    row, trace = run(ends(), [1], 4, 4, 4, **suppressed)
    assert [commit.positions for commit in trace] == trajectory
    assert row == expected


def test_unconfident_tokens_are_still_committed_where_the_step_wants_more() -> None:
    # Five masks in two steps: three first. Position 4 and 2 are real words, the ends follow by position;
    # position 5, as flat as position 0, takes token 0, [MASK], at 0.25 / 0.75, ahead of the ends.
    logits = torch.tensor([*ENDS, ENDS[0]], dtype=torch.float64).log()
    lm = Scripted(lambda ids: logits)
    row, trace = run(lm, [1], 5, 2, 5, unconfident_ids=(3,))
    assert trace == [Commit(0, (2, 4, 5), (1, 1, MASK)), Commit(1, (1, 5), (3, MASK))]
    assert row == [1, 3, 1, MASK, 1, MASK]


def test_unconfident_tokens_stay_out_of_other_tokens_confidence() -> None:
    # 0.50 beats 0.48 as it is; without token 3, 0.48 of 0.53 beats 0.50 of 0.90.
    rows = [ENDS[0], [0.20, 0.50, 0.20, 0.10], [0.03, 0.48, 0.02, 0.47]]
    logits = torch.tensor(rows, dtype=torch.float64).log()
    for suppressed, first in (((), 1), ((3,), 2)):
        _, trace = run(Scripted(lambda ids: logits), [1], 2, 2, 2, unconfident_ids=suppressed)
        assert trace[0].positions == (first,)


def test_two_suppressed_tokens_share_the_end_of_the_queue() -> None:
    # Both switches: 3 is never chosen, and what takes its place at positions 1 and 3, token 2, waits.
    # Without both, position 2 has 0.55 / 0.60 = 0.92 and position 4 has 0.50 / 0.55 = 0.91.
    row, trace = run(ends(), [1], 4, 4, 4, forbidden_ids=(3,), unconfident_ids=(2,))
    assert [commit.positions for commit in trace] == [(2,), (4,), (1,), (3,)]
    assert row == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_forbidden_tokens_never_appear(temperature: float) -> None:
    lm = tiny_llada(4)
    free = generate(lm, [[9, 8]] * 8, 8, 4, 8, temperature)
    banned = tuple({token for row in free for token in row[2:]})
    again = generate(lm, [[9, 8]] * 8, 8, 4, 8, temperature, forbidden_ids=banned)
    assert not {token for row in again for token in row[2:]} & set(banned)


@pytest.mark.parametrize(
    ("suppressed", "message"),
    [
        ({"forbidden_ids": (64,)}, r"forbidden_ids: token 64 is not in tiny's vocabulary, 0\.\.63"),
        ({"unconfident_ids": (-1,)}, r"unconfident_ids: token -1 is not in tiny's vocabulary"),
        (
            {"forbidden_ids": range(32), "unconfident_ids": range(32, 64)},
            "all 64 tokens of tiny are suppressed",
        ),
    ],
)
def test_tokens_that_cannot_be_suppressed_are_named(
    suppressed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny_llada(), [[5]], 4, 4, 4, **suppressed)


def released_loop(
    lm: DiffusionLM,
    prompt: list[int],
    gen: int,
    steps: int,
    block: int,
    forbidden_ids: tuple[int, ...] = (),
    unconfident_ids: tuple[int, ...] = (),
) -> list[int]:
    """``generate.py`` of LLaDA at temperature 0, one prompt, with the ties pinned."""
    x = torch.tensor([*prompt, *[lm.mask_id] * gen])
    for start in range(len(prompt), len(prompt) + gen, block):
        in_block = steps // (gen // block)
        for step in range(in_block):
            count = block // in_block + (step < block % in_block)
            logits = lm.logits(x).double()
            for token in forbidden_ids:
                logits[:, token] = -torch.inf
            best = logits.argmax(-1)
            for token in unconfident_ids:
                logits[:, token] = -torch.inf
            p = logits.softmax(-1)
            confidence = {
                position: float(p[position, best[position]])
                for position in range(start, start + block)
                if x[position] == lm.mask_id
            }
            for position in sorted(confidence, key=lambda at: (-confidence[at], at))[:count]:
                x[position] = best[position]
    return [int(token) for token in x]


@pytest.mark.parametrize(
    ("gen", "steps", "block"), [(8, 8, 8), (8, 4, 4), (8, 2, 8), (6, 4, 3), (9, 3, 3), (12, 9, 4)]
)
def test_agrees_with_the_released_loop(gen: int, steps: int, block: int) -> None:
    lm = tiny_llada(1)
    for prompt in ([5, 9, 11], [40, 41, 42, 43, 44, 45, 46], [7]):
        free = run(lm, prompt, gen, steps, block)[0]
        assert free == released_loop(lm, prompt, gen, steps, block)
        # What the model likes to write is what it hurts to suppress.
        first, second = free[len(prompt)], free[-1]
        for forbidden, unconfident in (
            ((first,), ()),
            ((), (first, second)),
            ((first,), (second,)),
        ):
            found, _ = run(
                lm, prompt, gen, steps, block, forbidden_ids=forbidden, unconfident_ids=unconfident
            )
            assert found == released_loop(lm, prompt, gen, steps, block, forbidden, unconfident)
            assert not forbidden or found != free


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_do_not_depend_on_their_batch(temperature: float) -> None:
    lm = tiny_llada(2)
    prompts = [[4 + (7 * row + i) % 60 for i in range(3 + row % 4)] for row in range(20)]
    seeds = [100 + row for row in range(20)]
    whole = generate(lm, prompts, 8, 4, 4, temperature, seeds)
    for batch_size in (1, 3, 64):
        found = generate(lm, prompts, 8, 4, 4, temperature, seeds, batch_size=batch_size)
        assert found == whole
    back = generate(lm, prompts[::-1], 8, 4, 4, temperature, seeds[::-1])
    assert back[::-1] == whole


def test_temperature_follows_the_softmax() -> None:
    # One position, p(1) : p(2) = e : 1 at temperature 1, so token 1 in 73.1 % of draws; 4 sigma is 4 %.
    table = torch.tensor([[0.0] * 3, [-50.0, 1.0, 0.0]])
    lm = Scripted(lambda ids: table, vocabulary=3)
    rows = generate(lm, [[1]] * 2000, 1, 1, 1, temperature=1.0, seeds=list(range(2000)))  # type: ignore[arg-type]
    share = sum(row[1] == 1 for row in rows) / len(rows)
    assert share == pytest.approx(0.731, abs=0.04)


def test_same_seed_same_text_another_seed_another_text() -> None:
    lm = tiny_llada(3)
    first, again, other = (generate(lm, [[9, 9]], 8, 4, 4, 1.0, [s])[0] for s in (1, 1, 2))
    assert first == again != other


def test_nan_logits_name_the_prompt_and_the_step() -> None:
    def script(ids: Tensor) -> Tensor:
        table = confident({1: (1, 1.0), 2: (2, 2.0)}, 3)
        if ids[0] == 2 and ids[2] == 2:
            table[1, 0] = torch.nan
        return table

    lm: Any = Scripted(script)
    with pytest.raises(
        NonFiniteError, match=r"item two: the logits hold a NaN.* at denoising step 1"
    ):
        generate(lm, [[1], [2]], 2, 2, 2, labels=["item one", "item two"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((8, 4, 3), r"block_length 3 must divide gen_length 8"),
        ((8, 3, 4), r"steps 3 must be a multiple of the number of blocks, 2"),
        ((0, 1, 1), r"gen_length must be at least 1, found 0"),
        ((8, 0, 4), r"steps must be at least 1, found 0"),
        ((8, 8, -8), r"block_length must be at least 1, found -8"),
        ((64, 64, 64), r"canvas 0 has 65 tokens; tiny takes 1..64"),
    ],
)
def test_settings_that_do_not_fit_are_explained(
    settings: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny_llada(), [[5]], *settings)


def test_negative_temperature_and_missing_seeds_are_errors() -> None:
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        generate(tiny_llada(), [[5]], 4, 4, 4, temperature=-1.0)
    with pytest.raises(ValueError, match="seeds: one for each of 2 prompts, found 1"):
        generate(tiny_llada(), [[5], [6]], 4, 4, 4, temperature=1.0, seeds=[1])
