"""Dream's sampler: trajectories worked by hand, and the released loop written out as an oracle."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_qbench.diffusion import by_model
from dllm_qbench.diffusion.dream_sampler import (
    ALGORITHMS,
    generate,
    probabilities,
    transfer_share,
)
from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.diffusion.samplers import generate as generate_llada
from dllm_qbench.errors import NonFiniteError
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.scripted import MASK, Scripted, confident
from tests.helpers.tiny import tiny_dream, tiny_llada

CONFIDENT = ("maskgit_plus", "topk_margin", "entropy")
# Positions 1 to 4 of a canvas whose prompt is [1]; columns are tokens, [MASK] is token 0.
#            probability of the best   gap to the second   entropy
TABLE = [
    [0.25, 0.25, 0.25, 0.25],
    [0.10, 0.50, 0.30, 0.10],  # 0.50          0.20           1.17
    [0.18, 0.18, 0.19, 0.45],  # 0.45          0.26           1.29
    [0.01, 0.49, 0.49, 0.01],  # 0.49          0.00           0.79
    [0.25, 0.24, 0.26, 0.25],  # 0.26          0.01           1.39
]


def run(lm: Any, prompt: list[int], *settings: Any, **more: Any) -> tuple[list[int], list[Commit]]:
    trace: list[list[Commit]] = []
    (row,) = generate(lm, [prompt], *settings, trace=trace, **more)
    return row, trace[0]


def table(rows: list[list[float]] = TABLE) -> Scripted:
    logits = torch.tensor(rows, dtype=torch.float64).log()
    return Scripted(lambda ids: logits)


# Four masks in three steps: floor(4 * 0.333) = 1, floor(3 * 0.4995) = 1, then the rest.
@pytest.mark.parametrize(
    ("algorithm", "trajectory"),
    [
        ("maskgit_plus", [((1,), (1,)), ((3,), (1,)), ((2, 4), (3, 2))]),
        ("topk_margin", [((2,), (3,)), ((1,), (1,)), ((3, 4), (1, 2))]),
        ("entropy", [((3,), (1,)), ((1,), (1,)), ((2, 4), (3, 2))]),
    ],
)
def test_each_algorithm_has_its_own_order(
    algorithm: str, trajectory: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    row, trace = run(table(), [1], 4, 3, algorithm=algorithm)
    assert trace == [Commit(step, *filled) for step, filled in enumerate(trajectory)]
    assert row == [1, 1, 3, 1, 2]


@pytest.mark.parametrize(
    ("masks", "steps", "expected"),
    [
        # t = 1, 0.75025, 0.5005, 0.25075, 0.001: 8 * 0.24975 = 1.998, 7 * 0.3329 = 2.33, 5 * 0.499 = 2.495
        (8, 4, [1, 2, 2, 3]),
        # as many steps as masks: 4 * 0.24975 = 0.999 fills nothing
        (4, 4, [0, 1, 1, 2]),
        (5, 1, [5]),
        (2, 6, [0, 0, 0, 0, 0, 2]),
    ],
)
def test_how_many_each_step_fills(masks: int, steps: int, expected: list[int]) -> None:
    logits = torch.zeros(masks + 1, 4)
    logits[:, 1] = 1.0
    lm: Any = Scripted(lambda ids: logits)
    row, trace = run(lm, [2], masks, steps)
    assert {c.step: len(c.positions) for c in trace} == {i: n for i, n in enumerate(expected) if n}
    assert lm.calls == sum(n > 0 for n in expected)
    assert row == [2] + [1] * masks
    # all confidences are equal: the lowest positions come first
    assert [at for c in trace for at in c.positions] == list(range(1, masks + 1))


def test_counts_are_those_of_float32_but_where_the_exact_one_is_whole() -> None:
    masks = torch.arange(1, 41)
    for steps in range(1, 21):
        times = torch.linspace(1, 1e-3, steps + 1)
        for step in range(steps - 1):
            released = (masks * (1 - times[step + 1] / times[step])).int().tolist()
            exact = [int(m) * transfer_share(step, steps) for m in masks]
            assert all(int(e) == r or e == r + 1 for e, r in zip(exact, released, strict=True)), (
                steps,
                step,
            )
    assert 186 * transfer_share(22, 27) == 37  # float32 gives 36
    assert transfer_share(0, 2) == Fraction(999, 2000)
    assert transfer_share(6, 7) == 1


def test_origin_fills_each_position_with_its_share() -> None:
    # 1,000 positions at 0.4995 in the first of two steps: 4 sigma is 6.3 %.
    first = [0, 0, 0, 0, 0]
    for seed in range(250):
        row, trace = run(table(), [1], 4, 2, algorithm="origin", seeds=[seed])
        assert row == [1, 1, 3, 1, 2]
        assert sorted(at for c in trace for at in c.positions) == [1, 2, 3, 4]
        for at in trace[0].positions if trace[0].step == 0 else ():
            first[at] += 1
    assert sum(first) / 1000 == pytest.approx(0.4995, abs=0.063)
    # each of them alike, however confident: 4 sigma of 250 is 13 %
    assert all(count / 250 == pytest.approx(0.4995, abs=0.13) for count in first[1:])


def test_probabilities_after_temperature_top_p_and_top_k() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.1]], dtype=torch.float64).log()

    def p(temperature: float = 0.0, top_p: float | None = None, top_k: int | None = None) -> Any:
        return pytest.approx(probabilities(scores, temperature, top_p, top_k)[0].tolist())

    assert p() == [0.1, 0.5, 0.3, 0.1]
    assert p(top_p=1.0) == [0.1, 0.5, 0.3, 0.1]
    assert p(temperature=0.5) == [0.01 / 0.36, 0.25 / 0.36, 0.09 / 0.36, 0.01 / 0.36]
    assert p(top_p=0.4) == [0, 1, 0, 0]
    assert p(top_p=0.6) == [0, 0.625, 0.375, 0]  # the token that crosses it stays
    # 0.5 + 0.3 + 0.1: of the two equal tokens the lower one crosses 0.85
    assert p(top_p=0.85) == [0.1 / 0.9, 0.5 / 0.9, 0.3 / 0.9, 0]
    assert p(top_k=1) == [0, 1, 0, 0]
    assert p(top_k=2) == [0, 0.625, 0.375, 0]
    assert p(top_k=3) == [0.1, 0.5, 0.3, 0.1]  # as likely as the third stays
    assert p(top_k=99) == [0.1, 0.5, 0.3, 0.1]
    # temperature first: 0.25 / 0.36 = 0.69 is beyond 0.6 alone
    assert p(temperature=0.5, top_p=0.6) == [0, 1, 0, 0]


def test_confidence_is_taken_after_top_k() -> None:
    # Position 1 leads with 0.49 to 0.40; of the best two tokens, with 0.50 to 0.40 / 0.61 = 0.66.
    rows = [TABLE[0], TABLE[3], [0.19, 0.40, 0.20, 0.21], TABLE[0], TABLE[0]]
    for top_k, first in ((None, 1), (2, 2)):
        _, trace = run(table(rows), [1], 4, 3, algorithm="maskgit_plus", top_k=top_k)
        assert trace[0].positions == (first,)


def released_loop(
    lm: DiffusionLM, prompt: list[int], gen: int, steps: int, algorithm: str, top_p: float | None
) -> list[int]:
    """``_sample`` of Dream at temperature 0, one prompt, with the ties pinned."""
    x = torch.tensor([*prompt, *[lm.mask_id] * gen])
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        open_ = [at for at in range(len(x)) if x[at] == lm.mask_id]
        confidence, best = {}, {}
        scores = lm.logits(x).double()
        for at in open_:
            p = scores[at].softmax(-1)
            best[at] = int(p.argmax())
            order = sorted(range(len(p)), key=lambda v: (-float(p[v]), v))
            if top_p is not None:
                total, kept = 0.0, []
                for v in order:
                    if total <= top_p:
                        kept.append(v)
                    total += float(p[v])
                order = kept
            mass = math.fsum(float(p[v]) for v in order)
            q = [float(p[v]) / mass for v in order] + [0.0]
            confidence[at] = {
                "maskgit_plus": q[0],
                "topk_margin": q[0] - q[1],
                "entropy": math.fsum(v * math.log(v + 1e-10) for v in q),
            }[algorithm]
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1
        for at in sorted(open_, key=lambda at: (-confidence[at], at))[: int(len(open_) * share)]:
            x[at] = best[at]
    return [int(token) for token in x]


@pytest.mark.parametrize("algorithm", CONFIDENT)
@pytest.mark.parametrize(("gen", "steps", "top_p"), [(8, 8, None), (9, 4, None), (8, 3, 0.7)])
def test_agrees_with_the_released_loop(
    algorithm: str, gen: int, steps: int, top_p: float | None
) -> None:
    lm = tiny_dream(1)
    for prompt in ([5, 9, 11], [40, 41, 42, 43, 44, 45, 46], [7]):
        expected = released_loop(lm, prompt, gen, steps, algorithm, top_p)
        assert run(lm, prompt, gen, steps, algorithm=algorithm, top_p=top_p)[0] == expected


NOISY = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "alg_temp": 0.3}


@pytest.mark.parametrize("noise", [{}, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_do_not_depend_on_their_batch(algorithm: str, noise: dict[str, Any]) -> None:
    lm = tiny_dream(2)
    prompts = [[4 + (7 * row + i) % 60 for i in range(3 + row % 3)] for row in range(8)]
    seeds = [100 + row for row in range(8)]
    settings: dict[str, Any] = {"algorithm": algorithm, **noise}
    whole = generate(lm, prompts, 6, 3, seeds=seeds, **settings)
    for batch_size in (1, 3):
        found = generate(lm, prompts, 6, 3, seeds=seeds, batch_size=batch_size, **settings)
        assert found == whole
    back = generate(lm, prompts[::-1], 6, 3, seeds=seeds[::-1], **settings)
    assert back[::-1] == whole
    if noise or algorithm == "origin":
        assert generate(lm, prompts, 6, 3, seeds=[s + 1 for s in seeds], **settings) != whole


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_temperature_follows_the_softmax(algorithm: str) -> None:
    # p(1) : p(2) = e : 1 at temperature 1, so token 1 in 73.1 % of draws; 4 sigma of 1,000 is 5.6 %.
    logits = torch.tensor([[0.0] * 3, [-50.0, 1.0, 0.0]])
    lm: Any = Scripted(lambda ids: logits, vocabulary=3)
    rows = generate(lm, [[1]] * 1000, 1, 1, temperature=1.0, algorithm=algorithm)
    share = sum(row[1] == 1 for row in rows) / len(rows)
    assert share == pytest.approx(0.731, abs=0.056)


def test_alg_temp_draws_positions_in_proportion() -> None:
    # Three masks in two steps: floor(3 * 0.4995) = 1 first. Confidences 0.50, 0.45, 0.49 over 0.1:
    # exp(0.5) : exp(0) : exp(0.4), so 39.8, 24.2 and 36.0 %; 4 sigma of 1,000 is 6.2 %.
    lm: Any = table(TABLE[:4])
    trace: list[list[Commit]] = []
    settings: dict[str, Any] = {"algorithm": "maskgit_plus", "alg_temp": 0.1}
    generate(lm, [[1]] * 1000, 3, 2, trace=trace, **settings)
    firsts = [commits[0].positions[0] for commits in trace]
    for at, share in ((1, 0.398), (2, 0.242), (3, 0.360)):
        assert firsts.count(at) / 1000 == pytest.approx(share, abs=0.062)


def test_blocks_are_filled_left_to_right_each_by_a_schedule_of_its_own() -> None:
    rows = [TABLE[0], TABLE[4], TABLE[4], TABLE[4], TABLE[1], TABLE[2], TABLE[3]]
    # Two blocks of three in two steps each: floor(3 * 0.4995) = 1, then 2.
    _, trace = run(table(rows), [1], 6, 4, 3, algorithm="maskgit_plus")
    assert [(c.step, c.positions) for c in trace] == [
        (0, (1,)),
        (1, (2, 3)),
        (2, (4,)),
        (3, (5, 6)),
    ]


@pytest.mark.parametrize("algorithm", CONFIDENT)
def test_prompts_of_unequal_length_are_batched_but_never_padded(algorithm: str) -> None:
    # Of three masks in two steps the first step fills floor(3 * 0.4995) = 1: the second, which is the surest.
    seen = set()

    def script(ids: Tensor) -> Tensor:
        seen.add(len(ids))
        end = len(ids)
        return confident({end - 3: (1, 2.0), end - 2: (2, 3.0), end - 1: (3, 1.0)}, end)

    lm: Any = Scripted(script)
    prompts = [[1], [2, 2, 2], [3, 3], [3], [2, 1, 2]]
    trace: list[list[Commit]] = []
    rows = generate(lm, prompts, 3, 2, algorithm=algorithm, trace=trace)
    assert rows == [[*prompt, 1, 2, 3] for prompt in prompts]
    for prompt, commits in zip(prompts, trace, strict=True):
        n = len(prompt)
        assert commits == [Commit(0, (n + 1,), (2,)), Commit(1, (n, n + 2), (1, 3))]
    assert seen == {4, 5, 6}  # prompt and masks, nothing more


@pytest.mark.parametrize("algorithm", CONFIDENT)
def test_equal_confidence_goes_to_the_lowest_position_and_equal_logits_to_the_lowest_token(
    algorithm: str,
) -> None:
    # Five masks in three steps: floor(5 / 3) = 1 since 1e-3 > 0, floor(4 * 0.4995) = 1, then the rest.
    flat = torch.zeros(6, 4)
    flat[:, MASK] = -1.0
    row, trace = run(Scripted(lambda ids: flat), [3], 5, 3, algorithm=algorithm)
    assert [commit.positions for commit in trace] == [(1,), (2,), (3, 4, 5)]
    assert row == [3, 1, 1, 1, 1, 1]


def test_each_step_sees_what_the_last_one_wrote() -> None:
    def script(ids: Tensor) -> Tensor:
        wanted = 2 if ids[3] == 3 else 1
        return confident({1: (wanted, 1.0), 2: (wanted, 1.0), 3: (3, 2.0)}, 4)

    row, _ = run(Scripted(script), [1], 3, 2)
    assert row == [1, 2, 2, 3]


def test_a_committed_mask_token_stays_open() -> None:
    logits = confident({1: (1, 1.0), 2: (MASK, 5.0), 3: (1, 2.0)}, 4)
    row, trace = run(Scripted(lambda ids: logits), [3], 3, 2, algorithm="maskgit_plus")
    assert [commit.positions for commit in trace] == [(2,), (1, 2, 3)]
    assert row == [3, 1, MASK, 1]


def test_a_mask_in_the_prompt_is_context() -> None:
    row, _ = run(table([*TABLE, TABLE[1]]), [1, 2, MASK], 3, 2)
    assert row[2] == MASK
    assert MASK not in row[3:]


def test_nan_logits_name_the_prompt_and_the_step() -> None:
    def script(ids: Tensor) -> Tensor:
        logits = confident({1: (1, 1.0), 2: (2, 2.0), 3: (2, 1.5)}, 4)
        if ids[0] == 2 and ids[2] == 2:
            logits[1, 0] = torch.nan
        return logits

    lm: Any = Scripted(script)
    with pytest.raises(
        NonFiniteError, match=r"item two: the logits hold a NaN.* at denoising step 1"
    ):
        generate(lm, [[1], [2]], 3, 2, labels=["item one", "item two"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algorithm": "low_confidence"},
            r"algorithm 'low_confidence': Dream's samplers are origin",
        ),
        ({"top_p": 0.0}, "top_p must lie above 0 and up to 1, found 0"),
        ({"top_k": 0}, "top_k must be at least 1, found 0"),
        ({"alg_temp": -1.0}, "alg_temp must be 0 or more"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"block_length": 3}, "block_length 3 must divide gen_length 4"),
        ({"seeds": [1, 2]}, "seeds: one for each of 1 prompts, found 2"),
    ],
)
def test_settings_that_do_not_fit_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny_dream(), [[5]], 4, 4, **settings)


def test_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompt 1: empty; Dream cannot fill token 0"):
        generate(tiny_dream(), [[5], []], 4, 4)


def test_the_public_method_chooses_the_sampler() -> None:
    lm = tiny_dream(3)
    prompt = [9, 8, 7]
    found = {
        name: lm.generate(prompt, 8, 4, algorithm=name).tolist() for name in (*ALGORITHMS, None)
    }
    assert found[None] == found["entropy"] == run(lm, prompt, 8, 4)[0]
    assert found["maskgit_plus"] == run(lm, prompt, 8, 4, algorithm="maskgit_plus")[0]
    pair = lm.generate(torch.tensor([prompt, prompt]), 8, 4, 4, 1.0, 5, "origin", alg_temp=0.5)
    assert pair.shape == (2, 11)
    again = lm.generate([prompt, prompt], 8, 4, 4, 1.0, 5, "origin", alg_temp=0.5)
    assert torch.equal(pair, again)
    assert not torch.equal(pair[0], pair[1])
    with pytest.raises(ValueError, match="Dream's samplers are"):
        lm.generate(prompt, 8, 4, algorithm="low_confidence")


@pytest.mark.parametrize("name", ["forbidden_ids", "unconfident_ids"])
def test_dream_refuses_what_only_llada_has(name: str) -> None:
    suppressed: Any = {name: (1,)}
    with pytest.raises(ValueError, match=rf"{name} \[1\]: a setting of LLaDA's sampler"):
        by_model.generate(tiny_dream(), [[5]], 4, 4, 4, **suppressed)
    found = by_model.generate(tiny_llada(), [[5]], 4, 4, 4, **suppressed)
    assert found == generate_llada(tiny_llada(), [[5]], 4, 4, 4, **suppressed)


def test_llada_keeps_its_one_sampler() -> None:
    lm = tiny_llada()
    assert torch.equal(
        lm.generate([9, 8], 4, 2), lm.generate([9, 8], 4, 2, 4, algorithm="low_confidence")
    )
    with pytest.raises(ValueError, match="algorithm 'entropy': LLaDA has one sampler"):
        lm.generate([9, 8], 4, 2, algorithm="entropy")
    with pytest.raises(ValueError, match=r"top_k 5: a setting of Dream's sampler"):
        by_model.generate(lm, [[9]], 4, 2, 4, top_k=5)
