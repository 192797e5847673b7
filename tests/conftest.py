"""Fixtures of the suite's own tests."""

from __future__ import annotations

import pytest

import dllm_qbench as qb


@pytest.fixture(scope="session")
def embedded_lm() -> qb.DiffusionLM:
    """The shipped LLaDA in full precision; do not change it."""
    return qb.load("llada-embedded")
