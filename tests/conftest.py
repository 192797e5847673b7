"""Fixtures of the suite's own tests."""

from __future__ import annotations

from typing import Final

import pytest

import dllm_qbench as qb

LONG: Final = (
    "tests/full/",
    "tests/test_regression.py",
    "tests/docs/",
    "tests/findings/",
    "tests/meta/",
)
"""What pytest-xdist's workers begin with: begun last, it would leave all but one of them idle."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that only this repository's tests have; xdist takes files in our order."""
    config.addinivalue_line(
        "markers", "others: other libraries' quantizers, where they are installed"
    )
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # its own puts files of few tests last


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a worker, put what takes long first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    return next((k for k, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))


@pytest.fixture(scope="session")
def embedded_lm() -> qb.DiffusionLM:
    """The shipped LLaDA in full precision; do not change it."""
    return qb.load("llada-embedded")
