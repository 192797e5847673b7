"""Leases: one of all who compete gets the work, and nobody waits for the dead."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.engine import leases
from dllm_qbench.engine.leases import Holder, process_lives
from dllm_qbench.engine.store import Store
from dllm_qbench.errors import QBenchError
from tests.helpers.lease_workers import DEATHS, KEY, ROUNDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def running() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


def files(store: Store) -> list[str]:
    return sorted(path.name.rpartition(".")[2] for path in (store.folder / "leases").iterdir())


def plant(store: Store, holder: Holder, age: float = 0.0) -> Path:
    """Leave a lease of ``KEY`` behind that ``holder`` took, with a heartbeat ``age`` seconds ago."""
    home = store.folder / "leases"
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"records-{store.name_of('records', KEY)}.0"
    path.write_text(holder.to_json())
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def compete(mode: str, folder: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.lease_workers", mode, str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_lease_is_held_by_one_and_free_afterwards(store: Store) -> None:
    with store.lease("records", KEY) as ours, store.lease("records", KEY) as theirs:
        assert (ours, theirs) == (True, False)
        with (
            store.lease("records", {"cell": "another"}) as other,
            store.lease("answers", KEY) as kind,
        ):
            assert other
            assert kind
    assert files(store) == []
    with store.lease("records", KEY) as ours:
        assert ours


def test_of_those_who_come_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    assert compete("race", tmp_path) == [1] * ROUNDS


def test_holders_that_are_killed_never_leave_it_to_two_or_to_nobody(tmp_path: Path) -> None:
    found = compete("die", tmp_path)
    assert found["together"] == 0
    assert found["free"] == 1
    assert found["had"] > DEATHS


def test_dead_holder_of_this_host_is_followed_at_once(store: Store, ended: int) -> None:
    plant(store, replace(Holder.here(), pid=ended, started=""))
    with store.lease("records", KEY) as ours:
        assert ours
        assert files(store) == ["0", "1"]
    assert files(store) == []


def test_process_that_got_the_id_of_a_dead_one_is_not_taken_for_it(
    store: Store, running: int
) -> None:
    plant(store, replace(Holder.here(), pid=running, started="1"))
    with store.lease("records", KEY) as ours:
        assert ours


def test_process_that_waits_to_be_reaped_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not process_lives(process.pid, "")
    process.wait()
    assert process_lives(os.getpid(), "")


def test_holder_elsewhere_is_dead_when_its_heart_has_stopped_for_long(
    store: Store, ended: int
) -> None:
    far = replace(Holder.here(), host="elsewhere", pid=ended)
    plant(store, far, age=50)
    with store.lease("records", KEY, stale_after=60) as ours:
        assert not ours
    plant(store, far, age=70)
    with store.lease("records", KEY, stale_after=60) as ours:
        assert ours


def test_another_boot_of_this_host_is_elsewhere(store: Store, ended: int) -> None:
    name = Holder.here().host.split()[0]
    plant(store, replace(Holder.here(), host=f"{name} another-boot", pid=ended))
    with store.lease("records", KEY) as ours:
        assert not ours


@pytest.mark.parametrize("shift", [-86400.0, 86400.0])
def test_clock_of_a_host_plays_no_part(
    store: Store, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    plant(store, replace(Holder.here(), host="elsewhere"), age=30)
    now = time.time() + shift
    monkeypatch.setattr(time, "time", lambda: now)  # it stands still, and is a day off
    with store.lease("records", KEY, stale_after=60) as ours:
        assert not ours
    with store.lease("records", KEY, stale_after=20) as ours:
        assert ours


def test_heart_beats_while_the_lease_is_held(store: Store) -> None:
    with store.lease("records", KEY, stale_after=0.3):
        (path,) = (store.folder / "leases").iterdir()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_who_was_taken_for_dead_does_not_disturb_the_one_that_followed(store: Store) -> None:
    slept = store.lease("records", KEY, stale_after=0.2)
    with slept as ours:
        assert ours
        path = next((store.folder / "leases").iterdir())
        other = replace(Holder.here(), host="elsewhere")
        path.write_text(other.to_json())  # as if another had followed, finished, and begun again
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0
    assert Holder.read(path) == other


def test_waiting_ends_when_the_holder_is_done(store: Store) -> None:
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lease("records", KEY):
            held.set()
            let_go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    before = time.monotonic()
    with store.lease("records", KEY, wait=True, timeout=0.2) as ours:
        assert not ours
    assert time.monotonic() - before >= 0.2
    threading.Timer(0.2, let_go.set).start()
    with store.lease("records", KEY, wait=True, timeout=60) as ours:
        assert ours
        assert let_go.is_set()
    holder.join()


def test_forked_process_does_not_let_go_of_its_parents_lease(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dllm_qbench.engine.store import Store\n"
        "store, key = Store(Path(sys.argv[1])), {'a': 1}\n"
        "with store.lease('records', key) as ours:\n"
        "    child = os.fork()\n"
        "    if child: os.waitpid(child, 0)\n"
        "    if child: print(len(list((store.folder / 'leases').iterdir())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1"]


def test_lease_works_without_hard_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    monkeypatch.setattr(leases.os, "link", no_links)
    with store.lease("records", KEY) as ours, store.lease("records", KEY) as theirs:
        assert (ours, theirs) == (True, False)
    store.put("records", KEY, [1])
    assert store.get("records", KEY) == [1]


def test_link_that_was_made_though_the_file_system_says_otherwise_is_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(*places: Path) -> None:
        link(*places)
        link(*places)

    monkeypatch.setattr(leases.os, "link", twice)
    with store.lease("records", KEY) as ours, store.lease("records", KEY) as theirs:
        assert (ours, theirs) == (True, False)


def test_lease_file_without_content_is_held_until_it_is_old(store: Store) -> None:
    path = plant(store, Holder.here())
    path.write_text("")
    with store.lease("records", KEY, stale_after=60) as ours:
        assert not ours
    os.utime(path, (0, 0))
    with store.lease("records", KEY, stale_after=60) as ours:
        assert ours


def test_stale_after_must_be_a_time(store: Store) -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(QBenchError, match="stale_after is"):
            store.lease("records", KEY, stale_after=wrong)


@pytest.mark.parametrize("number", [0, 1])
def test_slow_one_gives_way_to_who_came_between_its_look_and_its_file(
    store: Store, ended: int, running: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """0: a winner followed on the dead, finished, and another began; 1: nobody was there, then two."""
    dead = plant(store, replace(Holder.here(), pid=ended, started=""))
    if number == 1:
        dead.unlink()
    create, other = leases._create, replace(Holder.here(), pid=running, started="")

    def late(draft: Path, path: Path) -> bool:
        dead.with_suffix(f".{number}").write_text(other.to_json())
        return create(draft, path)

    monkeypatch.setattr(leases, "_create", late)
    with store.lease("records", KEY) as ours:
        assert not ours
        assert files(store) == [str(number)]
