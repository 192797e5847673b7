"""Tiny stand-ins for every released model, and a local data folder, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lm_eval
import pytest

from dllm_qbench.models.embedded.corpus import calibration_texts
from dllm_qbench.models.synthetic import write_stand_ins
from tests.helpers.paper_data import write_paper_data


@dataclass(frozen=True)
class Local:
    """Where the stand-ins and the data lie."""

    models: Path
    data: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What makes ``pytest -m full`` use them, in little time."""
        return (
            f"--qbench-models-dir={self.models}",
            f"--qbench-data-dir={self.data}",
            "--qbench-dtype=float32",
            "--qbench-run-programs",
        )


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    folder = tmp_path_factory.mktemp("local")
    found = Local(folder / "models", folder / "data")
    write_paper_data(found.data, records=3)
    # As much as 128 sequences of 2048 tokens take.
    texts = calibration_texts(18_000, seed=0)
    (found.data / "calibration.txt").write_text("\n\n".join(texts), encoding="utf-8")
    # Their tokenizers learn the data's own words, or prompts would be spelled out byte by byte.
    shown = Path(lm_eval.__file__).parent / "tasks" / "mbpp" / "utils.py"  # its worked examples
    files = [*sorted(found.data.rglob("*.jsonl")), shown]
    asked = [path.read_text(encoding="utf-8") for path in files]
    write_stand_ins(found.models, [*texts[:500], *asked], vocabulary=3000)
    return found
