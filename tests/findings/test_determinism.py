"""The same answers, item by item: twice, at any batch size, on one thread and on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.evaluation.benchmark import Answers
from dllm_qbench.evaluation.evaluate import answers
from dllm_qbench.models.embedded.items import FAMILIES

ITEMS = 64
SUBJECTS = (
    ("llada-embedded", "gptq", "W4A16-g64"),
    ("llada-embedded", "smoothquant", "W4A4"),
    ("dream-embedded", "quarot", "W4A4"),
)


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: "-".join(subject))
def quantized(request: pytest.FixtureRequest) -> qb.DiffusionLM:
    model, method, scheme = request.param
    lm = qb.load(model)
    return qb.quantize(lm, method, scheme, calibration=qb.calibration(lm, seed=0))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_quantizing_twice_gives_the_same_bits(quantized: qb.DiffusionLM) -> None:
    recipe = quantized.recipe
    assert recipe is not None
    lm = qb.load(quantized.name)
    calibration = qb.calibration(lm, seed=0)
    again = qb.quantize(lm, recipe["method"], recipe["scheme"], calibration=calibration)
    assert again.fingerprint() == quantized.fingerprint()
    assert again.recipe == recipe


@pytest.fixture(scope="module")
def usual(quantized: qb.DiffusionLM) -> Callable[[str], Answers]:
    """A task's answers as a run has them, computed once: what other runs are compared with."""
    return cache(lambda task: answers(quantized, task, ITEMS))


@pytest.mark.parametrize("task", FAMILIES)
def test_two_runs_give_the_same_answers(
    quantized: qb.DiffusionLM, usual: Callable[[str], Answers], task: str
) -> None:
    first = usual(task)
    assert answers(quantized, task, ITEMS) == first


@pytest.mark.parametrize("task", FAMILIES)
def test_batch_size_1_and_64_give_the_same_answers(
    quantized: qb.DiffusionLM, usual: Callable[[str], Answers], task: str
) -> None:
    expected = usual(task)  # in passes of a token budget, about 16 canvases
    for size in (1, 64):
        found = answers(quantized, task, ITEMS, batch_size=size)
        assert found == expected
        assert found.scores == pytest.approx(expected.scores, abs=1e-3)  # nats; float32 logits


@pytest.mark.parametrize("task", FAMILIES)
def test_answers_to_the_first_items_do_not_depend_on_how_many_follow(
    quantized: qb.DiffusionLM, usual: Callable[[str], Answers], task: str
) -> None:
    assert answers(quantized, task, 16).texts == usual(task).texts[:16]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("task", FAMILIES)
def test_one_and_two_threads_give_the_same_answers(
    quantized: qb.DiffusionLM, usual: Callable[[str], Answers], task: str
) -> None:
    expected = usual(task)
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)
    assert answers(quantized, task, ITEMS) == expected
