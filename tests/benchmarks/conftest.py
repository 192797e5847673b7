"""What benchmarks share: the cases of the run, and the session's state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.plugin import Benchmarks, state_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every case of the run."""
    if "case" in metafunc.fixturenames:
        from tests.benchmarks.cases import cases

        state = state_of(metafunc.config)
        found = cases(state.device, state.every_shape)
        metafunc.parametrize("case", found, ids=[case.name for case in found])


@pytest.fixture(scope="session")
def benchmarks(request: pytest.FixtureRequest) -> Iterator[Benchmarks]:
    """The session's state; on a machine that lacks what the run needs, its tests are skipped."""
    import torch

    state = state_of(request.config)
    if state.device == "cuda":
        import dllm_qbench.kernels as kernels

        lacks = kernels.available()["triton"]
        if not torch.cuda.is_available():
            lacks = f"torch {torch.__version__} sees no GPU"
        if lacks:
            pytest.skip(f"--qbench-device=cuda: {lacks}")
    from dllm_qbench.benchmarks.memory import keep_freed_memory

    state.keeps_memory = keep_freed_memory()
    with torch.no_grad():
        yield state
