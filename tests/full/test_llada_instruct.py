"""The paper's whole matrix of one model, on its stand-in. One file a model: workers share out files."""

from __future__ import annotations

from pathlib import Path

from tests.full.conftest import Local
from tests.full.runs import require_whole_matrix


def test_whole_matrix_runs_to_its_end(local: Local, tmp_path: Path) -> None:
    require_whole_matrix(local, tmp_path, "llada-8b-instruct", items=1)
