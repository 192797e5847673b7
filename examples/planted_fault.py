"""One bug, planted on purpose: ``pytest -m quick -k llada-embedded-gptq-W4A16 -p examples.planted_fault``.

GPTQ's solver gets the Hessian of one linear in another column order than its weight, as it would where
``act_order`` is undone in one place and not in the other. Every weight still lies on its grid, so nothing
but what the layer computes gives it away. Not loaded unless ``-p`` names it.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final

import pytest

LAYER: Final = "model.layers.2.mlp.down_proj"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Put the broken solver in place; nothing has been quantized yet."""
    from dllm_qbench.quant.methods import gptq

    sound = gptq.solve

    @wraps(sound)
    def solve(weight: Any, hessian: Any, *rest: Any) -> Any:
        if rest[-1] == LAYER:
            hessian = hessian.flip(0, 1)
        return sound(weight, hessian, *rest)

    gptq.solve = solve
