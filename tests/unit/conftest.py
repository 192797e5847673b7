"""What unit tests share: one thread, and suites of cells for the plugin to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.helpers.suite import Suite


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On small tensors a second one only waits, for minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Three cells without baselines."""
    from tests.helpers.suite import Suite

    monkeypatch.delenv("CI", raising=False)
    return Suite(pytester)


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """Three cells with baselines."""
    return suite.record()
