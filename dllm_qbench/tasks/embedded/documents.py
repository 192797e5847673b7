"""The embedded families as data sets of lm-eval, made in memory: no files, no cache, no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

from dllm_qbench.models.embedded.items import TEST_ITEMS, Item, test_items


def general(
    items: int = TEST_ITEMS, seed: int = 0, start: int = 0, **_metadata: Any
) -> dict[str, Dataset]:
    """Return the first ``items`` questions of a seed from the ``start``-th on, as split ``test``."""
    return _split(
        "general",
        items,
        seed,
        start,
        lambda item: {"choices": list(item.choices), "gold": item.gold},
    )


def math(
    items: int = TEST_ITEMS, seed: int = 0, start: int = 0, **_metadata: Any
) -> dict[str, Dataset]:
    """Return the first ``items`` stories of a seed; ``result`` is what stands after ``#``."""
    return _split(
        "math", items, seed, start, lambda item: {"result": item.answer.rpartition("#")[2].strip()}
    )


def code(
    items: int = TEST_ITEMS, seed: int = 0, start: int = 0, **_metadata: Any
) -> dict[str, Dataset]:
    """Return the first ``items`` programs of a seed; ``outputs`` are those of ``inputs``."""
    return _split(
        "code",
        items,
        seed,
        start,
        lambda item: {"inputs": [x for x, _ in item.tests], "outputs": [y for _, y in item.tests]},
    )


def _split(
    family: str, items: int, seed: int, start: int, more: Callable[[Item], dict[str, Any]]
) -> dict[str, Dataset]:
    documents = [
        {
            "id": item.id,
            "kind": item.kind,
            "prompt": item.prompt,
            "answer": item.answer,
            **more(item),
        }
        for item in test_items(family, items, seed)[start:]
    ]
    return {"test": Dataset.from_list(documents)}
