"""Fixtures of the suite's own tests."""

from __future__ import annotations

import pytest

import dllm_qbench as qb


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that only this repository's tests have."""
    config.addinivalue_line(
        "markers", "others: other libraries' quantizers, where they are installed"
    )


@pytest.fixture(scope="session")
def embedded_lm() -> qb.DiffusionLM:
    """The shipped LLaDA in full precision; do not change it."""
    return qb.load("llada-embedded")
