"""Tests marked ``scale`` take long: they run where ``-m`` speaks of them, or where they are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out this folder's tests marked ``scale`` unless they were asked for."""
    if re.search(r"\bscale\b", str(config.getoption("-m"))):
        return
    if any("::" in argument for argument in config.args):
        return
    here = Path(__file__).parent
    left_out = [
        item for item in items if here in item.path.parents and item.get_closest_marker("scale")
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = {*map(id, left_out)}
        items[:] = [item for item in items if id(item) not in gone]
