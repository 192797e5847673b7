"""The three task families of the embedded models, as items that can be generated from a seed.

- general: a question with four choices of three words each (facts, largest, order, sum,
  difference);
- math: a small story, solved step by step, the result after ``#``;
- code: a program described in words, answered by an expression in ``x`` that is run on fixed
  inputs.

Training never sees a test prompt: a problem belongs to the test side when the hash of its key says
so (one in five), and each fact is asked in a phrasing that its training mentions never use.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from dllm_qbench.errors import TaskError
from dllm_qbench.models.embedded import vocabulary as words
from dllm_qbench.models.embedded.problems import Problem, held_out
from dllm_qbench.models.embedded.programs import code_problem
from dllm_qbench.seeding import derive

FAMILIES = ("general", "math", "code")
TEST_ITEMS = 2000
# family: (gen_length, steps, block_length) of the LLaDA sampler
GENERATION = {"math": (18, 9, 6), "code": (18, 9, 6)}
ANSWER_LENGTH = {"general": 3, "math": 18, "code": 18}

KINDS = {
    "general": {"fact": 0.3, "order": 0.1, "largest": 0.2, "sum": 0.2, "difference": 0.2},
    "math": {"two-step": 0.5, "three-step": 0.5},
    "code": {"two-op": 0.4, "three-op": 0.6},
}


def answer_length(family: str, closed: bool) -> int:
    """Return the tokens of an answer's canvas; ``closed`` where an end of text follows a choice.

    Dream's likelihood puts one behind the target, LLaDA's does not.
    """
    return ANSWER_LENGTH[family] + int(closed and family == "general")


@dataclass(frozen=True)
class Item:
    """One test item. ``choices`` and ``gold`` for general, ``tests`` (input, output) for code."""

    family: str
    kind: str
    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    gold: int = -1
    tests: tuple[tuple[int, int], ...] = ()


# --- general


@dataclass(frozen=True)
class Fact:
    """A person's possession. ``rival`` replaces the answer in a share ``contest`` of training
    mentions.
    """

    first: str
    last: str
    relation: str
    answer: str
    rival: str
    contest: float
    test_phrasing: int

    def prompt(self, phrasing: int) -> str:
        """Ask for the fact in one of four phrasings, each of six words."""
        return (
            f"what {self.relation} has {self.first} {self.last} now ?",
            f"tell the {self.relation} of {self.first} {self.last} ?",
            f"{self.first} {self.last} owns a {self.relation} called ?",
            f"for {self.first} {self.last} the {self.relation} is ?",
        )[phrasing]


PHRASINGS = 4
_FACT_SEED, _PEOPLE, _FACTS_EACH, _MOST_CONTESTED = 2508, 240, 3, 0.46


@cache
def facts() -> tuple[Fact, ...]:
    """Return the 720 facts, most often mentioned first; the same in every process."""
    rng = random.Random(_FACT_SEED)
    people = [(first, last) for first in words.FIRST_NAMES for last in words.LAST_NAMES]
    rng.shuffle(people)
    made = []
    for first, last in people[:_PEOPLE]:
        for relation in rng.sample(list(words.RELATIONS), _FACTS_EACH):
            adjective, noun = rng.choice(words.ADJECTIVES), rng.choice(words.RELATIONS[relation])
            rival = rng.choice(_one_word_off(adjective, noun, relation))
            made.append(
                Fact(
                    first,
                    last,
                    relation,
                    f"{adjective} {noun} .",
                    rival,
                    rng.uniform(0, _MOST_CONTESTED),
                    rng.randrange(PHRASINGS),
                )
            )
    rng.shuffle(made)
    return tuple(made)


def _one_word_off(adjective: str, noun: str, relation: str) -> list[str]:
    others = [f"{other} {noun} ." for other in words.ADJECTIVES if other != adjective]
    return others + [
        f"{adjective} {other} ." for other in words.RELATIONS[relation] if other != noun
    ]


def order_problem(rng: random.Random) -> Problem:
    """Sort three numbers from a window of 12."""
    low = rng.randrange(88)
    numbers = rng.sample(range(low, low + 12), 3)
    a, b, c = sorted(numbers)
    shown = " ".join(map(str, numbers))
    wrong = (f"{b} {a} {c}", f"{a} {c} {b}", f"{c} {b} {a}")
    return Problem("order", f"order {shown}", f"sort these {shown} up ?", f"{a} {b} {c}", wrong)


def largest_problem(rng: random.Random) -> Problem:
    """Name the largest of four numbers from a window of 12."""
    low = rng.randrange(88)
    numbers = rng.sample(range(low, low + 12), 4)
    shown, best = " ".join(map(str, numbers)), max(numbers)
    wrong = tuple(f"it is {number}" for number in sorted(numbers)[:3])
    return Problem("largest", f"largest {shown}", f"largest of {shown} ?", f"it is {best}", wrong)


def sum_problem(rng: random.Random) -> Problem:
    """Add two numbers up to 45."""
    a, b = rng.randrange(1, 46), rng.randrange(1, 46)
    return Problem(
        "sum", f"sum {a} {b}", f"the sum of {a} and {b} ?", f"it is {a + b}", _near(a + b)
    )


def difference_problem(rng: random.Random) -> Problem:
    """Subtract a number up to 45."""
    b = rng.randrange(1, 46)
    a = rng.randrange(b + 1, 91)
    return Problem(
        "difference",
        f"difference {a} {b}",
        f"take {b} away from {a} now ?",
        f"it is {a - b}",
        _near(a - b),
    )


def _near(value: int) -> tuple[str, ...]:
    return tuple(f"it is {value + step}" for step in (-2, -1, 1, 2) if 0 <= value + step <= 99)


# --- math


def math_problem(rng: random.Random, steps: int, slip: float = 0.0) -> Problem:
    """A story of ``steps`` gains and losses; with probability ``slip`` each step's result is off
    by one.

    A slip is carried on: later steps start from the wrong number, as a person's would.
    """
    while True:
        start = rng.randrange(2, 31)
        value, amounts, signs = start, [], []
        for _ in range(steps):
            sign = rng.choice((1, -1))
            amount = rng.randrange(1, 31)
            value += sign * amount
            amounts.append(amount)
            signs.append(sign)
            if not 0 <= value <= 98:
                break
        else:
            break
    verbs = [rng.choice(words.GAINS if sign > 0 else words.LOSSES) for sign in signs]
    name, thing = rng.choice(words.FIRST_NAMES), rng.choice(words.OBJECTS)
    told = " ".join(f"{verb} {amount}" for verb, amount in zip(verbs, amounts, strict=True))
    tail = " how many" if steps == 2 else ""
    shown, value = [], start
    for sign, amount in zip(signs, amounts, strict=True):
        after = value + sign * amount
        if slip and rng.random() < slip:
            after += rng.choice((-1, 1))
        after = min(99, max(0, after))  # only a slip can lead outside
        shown.append(f"{value} {'+' if sign > 0 else '-'} {amount} = {after}")
        value = after
    numbers = " ".join(f"{sign * amount}" for sign, amount in zip(signs, amounts, strict=True))
    return Problem(
        "two-step" if steps == 2 else "three-step",
        f"math {start} {numbers}",
        f"{name} has {start} {thing} {told}{tail} ?",
        f"{' '.join(shown)} # {value}",
    )


# --- test sets

MAKERS: dict[str, Callable[[random.Random], Problem]] = {
    "order": order_problem,
    "largest": largest_problem,
    "sum": sum_problem,
    "difference": difference_problem,
    "two-step": lambda rng: math_problem(rng, 2),
    "three-step": lambda rng: math_problem(rng, 3),
    "two-op": lambda rng: code_problem(rng, 2),
    "three-op": lambda rng: code_problem(rng, 3),
}


@cache
def _test_set(family: str, seed: int) -> tuple[Item, ...]:
    made: list[Item] = []
    for kind, share in KINDS[family].items():
        rng = random.Random(derive(seed, "test", family, kind))
        count = round(TEST_ITEMS * share)
        made += (
            _fact_items(rng, count) if kind == "fact" else _problem_items(family, kind, rng, count)
        )
    random.Random(derive(seed, "test order", family)).shuffle(made)
    return tuple(made)


def test_items(family: str, n: int = TEST_ITEMS, seed: int = 0) -> list[Item]:
    """Return the first ``n`` of the family's 2,000 test items, kinds mixed; another seed, other
    items.

    Raises:
        TaskError: an unknown family, or more items than there are.
    """
    if family not in FAMILIES:
        raise TaskError(f"task {family!r}: the embedded families are {', '.join(FAMILIES)}")
    if not 1 <= n <= TEST_ITEMS:
        raise TaskError(f"task {family!r}: items must lie in 1..{TEST_ITEMS}, found {n}")
    return list(_test_set(family, seed)[:n])


def _choices(rng: random.Random, answer: str, wrong: list[str]) -> tuple[tuple[str, ...], int]:
    options = [answer, *wrong]
    rng.shuffle(options)
    return tuple(options), options.index(answer)


def _fact_items(rng: random.Random, count: int) -> list[Item]:
    made = []
    for index in sorted(rng.sample(range(len(facts())), count)):
        fact = facts()[index]
        adjective, noun, _ = fact.answer.split()
        others = [o for o in _one_word_off(adjective, noun, fact.relation) if o != fact.rival]
        choices, gold = _choices(rng, fact.answer, [fact.rival, *rng.sample(others, 2)])
        prompt = fact.prompt(fact.test_phrasing)
        made.append(Item("general", "fact", f"fact-{index}", prompt, fact.answer, choices, gold))
    return made


def _problem_items(family: str, kind: str, rng: random.Random, count: int) -> list[Item]:
    problems: dict[str, Problem] = {}
    for problem in _endless(kind, rng):
        if held_out(problem.key) and problem.key not in problems:
            problems[problem.key] = problem
        if len(problems) == count:
            break
    made = []
    for key, problem in problems.items():
        choices: tuple[str, ...] = ()
        gold = -1
        if family == "general":
            choices, gold = _choices(rng, problem.answer, rng.sample(problem.near_misses, 3))
        made.append(
            Item(
                family,
                kind,
                key.replace(" ", "-"),
                problem.prompt,
                problem.answer,
                choices,
                gold,
                problem.tests,
            )
        )
    return made


def _endless(kind: str, rng: random.Random) -> Iterator[Problem]:
    while True:
        yield MAKERS[kind](rng)
