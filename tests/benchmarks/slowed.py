"""Slow every kernel down on purpose: ``pytest tests/benchmarks -p tests.benchmarks.slowed --slowed=HOW``.

The gate has to fail each case that is timed this way. ``twice`` makes every pass a second time;
``sleep`` sleeps as long as the kernel took. Not loaded unless ``-p`` names it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import pytest

TARGETS: Final = (
    ("dllm_qbench.kernels", "hadamard"),
    ("dllm_qbench.kernels", "rotate_quantize"),
    ("dllm_qbench.kernels", "quantize"),
    ("dllm_qbench.kernels", "linear"),
    ("dllm_qbench.kernels", "linear_quantized"),
    ("dllm_qbench.quant.methods.gptq", "solve"),
    ("tests.benchmarks.contenders", "second_moment"),
)
"""What a benchmark calls by this module's name when it is timed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How to slow down."""
    parser.addoption("--slowed", choices=sorted(WAYS), default="twice")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Put the slow kernels in place; nothing has been timed yet."""
    from dllm_qbench.benchmarks import gate

    gate.QUIET = math.inf  # what is slow on purpose is not excused by a busy machine
    from importlib import import_module

    way = WAYS[session.config.getoption("slowed")]
    for module, name in TARGETS:
        owner = import_module(module)
        setattr(owner, name, way(getattr(owner, name)))


def _twice(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(kernel)
    def slow(*args: Any, **named: Any) -> Any:
        kernel(*args, **named)
        return kernel(*args, **named)

    return slow


def _sleep(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(kernel)
    def slow(*args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = kernel(*args, **named)
        time.sleep(time.perf_counter() - start)
        return found

    return slow


WAYS: Final = {"twice": _twice, "sleep": _sleep}
