"""How pytest-xdist's workers share out the cells; imported where pytest-xdist is in use only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xdist.scheduler import LoadScopeScheduling

_CELL = re.compile(r"\[(?P<quantized>(?P<model>.+)-[a-z]+-W\d+A\d+[^\[\]]*)-[a-z0-9_]+\]$")


def scope_of(nodeid: str, models: Sequence[str], workers: int) -> str:
    """Name what a test shares with others: tests of one name run on one worker, in their order.

    Cells of one quantized model share it; with no more workers than models, cells of one model. Other
    tests go by their file, as they share its fixtures.

    >>> scope_of("test_x.py::test_cell[toy-gptq-W4A16-g64-math]", ["toy"], 4)
    'toy-gptq-W4A16-g64'
    """
    found = _CELL.search(nodeid)
    if found is None or found["model"] not in models:
        return nodeid.partition("::")[0]
    return found["model"] if workers <= len(models) else found["quantized"]


class ByQuantizedModel(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
    """xdist's scheduling by scope, with :func:`scope_of` for a scope."""

    def __init__(self, config: Any, log: Any, models: Sequence[str]) -> None:
        super().__init__(config, log)
        self._models = models

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid, self._models, self.numnodes)
