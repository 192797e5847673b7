"""``kill -9`` at any moment: nothing is lost, nothing is there twice, and no file is half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.engine.store import Store
from dllm_qbench.engine.store_format import first_difference
from tests.helpers import put_workers

ROOT = Path(__file__).parents[2]
SEED = 20260
CHUNK, CELLS, MODELS = 10, 2, 2
# What two runs of one cell differ in: when, and how long it took. The commit too, if one was made between.
DIFFERS = frozenset({"date", "seconds", "commit"})


def helper(name: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.helpers.{name}", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_writer_that_is_killed_leaves_whole_values_and_none_that_it_told_of_is_missing(
    tmp_path: Path,
) -> None:
    told = helper("put_workers", tmp_path, 100, SEED)
    store = Store(tmp_path / "store")
    kept = {key["number"]: value for key, value in store.entries("answers")}
    assert all(value == put_workers.value(number) for number, value in kept.items())
    assert set(told["noted"]) <= set(kept)
    assert sorted(kept) == [*range(len(kept))]
    assert told["litter"] > 0  # some were killed in the middle of a file
    assert not list((tmp_path / "store" / "tmp").iterdir())


@pytest.mark.parametrize(
    ("kills", "items"), [(8, 20), pytest.param(50, 40, marks=pytest.mark.scale)]
)
def test_run_that_is_killed_and_begun_again_comes_to_the_same_records(
    tmp_path: Path, kills: int, items: int
) -> None:
    by_store = helper("kill_worker", tmp_path, items, kills, SEED)
    assert sum(by_store) == kills
    whole = contents(tmp_path / "whole")
    assert Counter(kind for kind, _ in whole) == {
        "answers": CELLS * MODELS * items // CHUNK, "drafts": MODELS, "records": CELLS,
    }  # fmt: skip
    interrupted = 0
    for number, killed in enumerate(by_store):
        found = contents(tmp_path / str(number))
        assert set(found) == set(whole)
        for place, value in whole.items():
            assert first_difference(value, found[place], DIFFERS) is None, place
        assert not list((tmp_path / str(number) / "tmp").iterdir())
        again = repeated((tmp_path / str(number)).with_suffix(".log"))
        interrupted += sum(again.values())
        # A kill costs the batch in flight: at most one of 10 items, or one set of drafts, and the record.
        assert again["answers"] + again["drafts"] <= killed
        assert again["records"] <= killed
    assert interrupted > 0  # the kills did not only hit the start of the processes


def contents(folder: Path) -> dict[tuple[str, str], Any]:
    """All that a store holds; reading checks every file."""
    store = Store(folder)
    kinds = ("answers", "drafts", "records")
    found = [(kind, key, value) for kind in kinds for key, value in store.entries(kind)]
    assert len(list(store.records())) == CELLS
    return {(kind, json.dumps(key)): value for kind, key, value in found}


def repeated(log: Path) -> Counter[str]:
    """How often something was begun again, by kind; nothing may be that was kept."""
    again: Counter[str] = Counter()
    begun, kept = set(), set()
    for line in log.read_text().splitlines():
        what, kind, name = line.split()
        assert (kind, name) not in kept, f"{line} once it had been kept"
        if what == "kept":
            kept.add((kind, name))
        else:
            again[kind] += (kind, name) in begun
            begun.add((kind, name))
    return again
