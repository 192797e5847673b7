"""The embedded families: sound answers, honest choices, and a test side that training never
sees.
"""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from dllm_qbench.errors import TaskError
from dllm_qbench.models.embedded import corpus, items, train, vocabulary

TRAINING_DRAWS = 20_000


@pytest.mark.parametrize("family", items.FAMILIES)
def test_two_thousand_distinct_items_reproducible_from_the_seed(family: str) -> None:
    made = items.test_items(family, seed=0)
    assert len(made) == 2000
    assert len({item.id for item in made}) == 2000
    items._test_set.cache_clear()
    assert items.test_items(family, seed=0) == made
    assert items.test_items(family, 500) == made[:500]
    other = items.test_items(family, seed=1)
    assert {item.id for item in other} != {item.id for item in made}


@pytest.mark.parametrize("family", items.FAMILIES)
def test_training_never_draws_a_test_prompt(family: str) -> None:
    rng = random.Random(99)
    trained = {corpus.text(family, rng, corpus.Noise())[0] for _ in range(TRAINING_DRAWS)}
    tested = {item.prompt for seed in (0, 1) for item in items.test_items(family, seed=seed)}
    assert len(trained) > 1000
    assert not trained & tested


@pytest.mark.parametrize("family", ["math", "code"])
def test_training_never_sees_a_test_problem_under_another_story(family: str) -> None:
    """Stricter than the prompt: the numbers and signs (math) or the program (code) are new as
    well.
    """
    rng = random.Random(7)

    def essence(prompt: str) -> str:
        if family == "code":
            return prompt.removeprefix("write code for ")
        verbs = dict.fromkeys(vocabulary.GAINS, "+") | dict.fromkeys(vocabulary.LOSSES, "-")
        return " ".join(
            verbs.get(word, word) for word in prompt.split() if word in verbs or word.isdigit()
        )

    trained = {essence(corpus.text(family, rng, corpus.Noise())[0]) for _ in range(TRAINING_DRAWS)}
    assert not trained & {essence(item.prompt) for item in items.test_items(family)}


def test_each_fact_keeps_one_phrasing_for_the_test() -> None:
    assert len(items.facts()) == 720
    for fact in items.facts():
        trained = {fact.prompt(p) for p in range(items.PHRASINGS) if p != fact.test_phrasing}
        assert fact.prompt(fact.test_phrasing) not in trained
        assert fact.rival != fact.answer
        assert (
            sum(a != b for a, b in zip(fact.rival.split(), fact.answer.split(), strict=True)) == 1
        )


def test_general_choices_hold_the_answer_once_and_are_equally_long() -> None:
    for item in items.test_items("general"):
        assert item.choices[item.gold] == item.answer
        assert len(set(item.choices)) == 4
        assert {len(choice.split()) for choice in item.choices} == {3}
    golds = [item.gold for item in items.test_items("general")]
    assert all(abs(golds.count(position) - 500) < 80 for position in range(4))


def test_math_answers_follow_from_the_story() -> None:
    for item in items.test_items("math"):
        words = item.prompt.split()
        value = int(words[2])
        for verb, amount in zip(words[4::2], words[5::2], strict=False):
            if verb in vocabulary.GAINS + vocabulary.LOSSES:
                value += int(amount) if verb in vocabulary.GAINS else -int(amount)
        assert item.answer.endswith(f"# {value}")
        for left, sign, right, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", item.answer):
            assert int(result) == (
                int(left) + int(right) if sign == "+" else int(left) - int(right)
            )


def test_code_answers_compute_the_described_program() -> None:
    for item in items.test_items("code"):
        told = item.prompt.removeprefix("write code for ").removesuffix(" ?")
        steps: list[tuple[str, int]] = []
        for link, name, first, _, second in re.findall(
            r"(then |first |)([a-z]+) (\d+)( and (\d+))?", told
        ):
            step = (name, int(first) + int(second or 0))
            steps = [step, *steps] if link == "first " else [*steps, step]
        assert len(steps) == (2 if item.kind == "two-op" else 3)
        for x, expected in item.tests:
            value = x
            for name, n in steps:
                value = {
                    "add": value + n, "take": value - n, "times": value * n,
                    "mod": value % n, "atmost": min(value, n), "atleast": max(value, n),
                }[name]  # fmt: skip
            assert value == expected


def test_no_constant_passes_a_code_item() -> None:
    assert all(len({output for _, output in item.tests}) >= 5 for item in items.test_items("code"))


def test_slips_are_wrong_in_one_place_only_when_asked() -> None:
    clean = [items.math_problem(random.Random(seed), 3) for seed in range(50)]
    slipped = [items.math_problem(random.Random(seed), 3, slip=1.0) for seed in range(50)]
    assert all(a.prompt != "" and b.answer != "" for a, b in zip(clean, slipped, strict=True))
    exact = [
        all(_holds(step) for step in re.findall(r"\d+ [+-] \d+ = \d+", p.answer)) for p in clean
    ]
    wrong = [
        any(not _holds(step) for step in re.findall(r"\d+ [+-] \d+ = \d+", p.answer))
        for p in slipped
    ]
    assert all(exact)
    assert all(wrong)


def _holds(step: str) -> bool:
    left, sign, right, _, result = step.split()
    return int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


def test_every_text_fits_the_vocabulary_and_the_canvas() -> None:
    rng = random.Random(3)
    tokenizer = vocabulary.tokenizer()
    lengths = {"general": 11, "math": 30, "code": 32}
    for family, closed in product(items.FAMILIES, (False, True)):
        for _ in range(150):
            prompt, answer = corpus.text(family, rng, corpus.Noise())
            ids = train.canvas(items.answer_length(family, closed), prompt, answer)
            assert len(ids) == lengths[family] + (closed and family == "general")
            told = tokenizer(f"{prompt} {answer}").input_ids
            assert ids[: len(told)] == told
            assert all(token == tokenizer.eos_token_id for token in ids[len(told) :])


def test_calibration_texts_are_noiseless_training_texts() -> None:
    texts = corpus.calibration_texts(60, seed=4)
    assert texts == corpus.calibration_texts(60, seed=4) != corpus.calibration_texts(60, seed=5)
    tested = {item.prompt for family in items.FAMILIES for item in items.test_items(family)}
    assert not any(text.startswith(prompt) for text in texts for prompt in tested)


@pytest.mark.parametrize(("family", "n"), [("poetry", 10), ("math", 0), ("math", 2001)])
def test_impossible_requests_are_named(family: str, n: int) -> None:
    with pytest.raises(TaskError, match=family):
        items.test_items(family, n)
