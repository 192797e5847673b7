"""A dry run at a chosen size: load, quantize, audit, save, reload, evaluate, within its memory.

``QBENCH_SCALE_SIZE=1b python -m pytest -m scale tests/scale/test_dry_run.py`` runs the size that the
project promises limits for; the default takes seconds.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
import torch

from tools import device_memory, scale

SIZE = os.environ.get("QBENCH_SCALE_SIZE", "tiny")
LIMIT_GIB = {"tiny": 1.5, "1b": 24.0}
METHODS = {"tiny": scale.SCHEMES, "1b": {m: scale.SCHEMES[m] for m in ("rtn", "gptq")}}
DEVICE_GIB = 22.0


def run(folder: Path, family: str, size: str, methods: dict[str, str], length: int) -> scale.Run:
    vocabulary = scale.VOCABULARY if (family, size) == ("llada", "1b") else {}
    return scale.dry_run(folder, family, size, methods, 8, length, torch.bfloat16, **vocabulary)


def test_smallest_run_goes_through_every_stage(tmp_path: Path) -> None:
    found = run(tmp_path, "Dream", "tiny", {"rtn": "W4A16-g128"}, 32)
    assert [stage.name for stage in found.stages] == [
        "write the checkpoint",
        "load",
        "calibration data",
        "evaluate full precision",
        "rtn W4A16-g128: quantize",
        "rtn: audit",
        "rtn: save",
        "rtn: reload",
        "rtn: evaluate",
    ]
    assert found.notes["rtn"]["findings"] == []
    assert list(tmp_path.iterdir()) == []  # checkpoints are removed once they were read
    for stage in found.stages:
        assert stage.seconds > 0
        assert stage.peak >= stage.before > 0


def test_peak_is_that_of_the_stage_and_not_of_an_earlier_one() -> None:
    found = scale.Run()
    with found.stage("large"), mmap.mmap(-1, 2**28) as pages:
        # From the system itself: an allocator may have as much left of an earlier test, which counts already.
        for page in range(0, 2**28, mmap.PAGESIZE):
            pages[page] = 1
    with found.stage("small"):
        torch.ones(2**10)
    large, small = found.stages
    assert large.peak - large.before > 0.9 * 2**28
    assert small.peak < large.peak - 0.5 * 2**28


def test_peak_is_not_below_what_was_held_when_the_kernel_lags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel brings its counts up to date in batches: a peak was once read 4 KiB below the start."""
    readings = {"VmRSS": 2212151296, "VmHWM": 2212147200}
    monkeypatch.setattr(scale, "status", readings.__getitem__)
    monkeypatch.setattr(scale, "reset_peak", lambda: readings["VmRSS"])
    found = scale.Run()
    with found.stage("nothing"):
        pass
    assert found.stages[0].peak == found.stages[0].before == 2212151296


def test_table_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.START}\nold\n{scale.END}\nafter\n")
    found = scale.Run(stages=[scale.Stage("load", 1.25, 3 * 2**30, 2**30)])
    scale.put_table(page, scale.table(found, "a title"))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| load | 1.2 s | 3.00 GiB |" in text
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the lines"):
        scale.put_table(page, "text")


@pytest.mark.scale
@pytest.mark.parametrize("family", ["llada", "illada", "Dream"] if SIZE == "tiny" else ["llada"])
def test_dry_run_stays_within_its_memory(family: str, tmp_path: Path) -> None:
    found = run(tmp_path, family, SIZE, dict(METHODS[SIZE]), 256)
    print("\n" + scale.table(found, f"{family} {SIZE}"))
    (tmp_path / "stages.json").write_text(json.dumps(found.notes))
    assert max(stage.peak for stage in found.stages) <= LIMIT_GIB[SIZE] * scale.GIB
    assert all(note["findings"] == [] for note in found.notes.values())
    if SIZE == "1b":
        assert 1.0e9 <= found.parameters <= 1.5e9


@pytest.mark.scale
@pytest.mark.parametrize(("method", "scheme"), device_memory.CASES)
@pytest.mark.parametrize("model", device_memory.SHAPES)
def test_every_method_fits_one_card_at_true_shapes(model: str, method: str, scheme: str) -> None:
    raw = device_memory.SHAPES[model]
    layers = "num_hidden_layers" if raw["model_type"] == "Dream" else "n_layers"
    found = device_memory.count(
        raw | {layers: 1}, method, scheme, 24, 2048, **device_memory.FEWER.get(method, {})
    )
    print(f"\n{model} {method} {scheme}: {found.peak / device_memory.GIB:.2f} GiB")
    assert 0.5 <= found.peak / device_memory.GIB <= DEVICE_GIB
