"""Who is at work on what: lease files by which processes on any hosts share out work.

A lease spares work, it does not guard results: two who hold one by mistake (a host that slept, a clock that
jumped) compute the same value twice, and the store compares the two.

Notable:
- a lease of name x is a file ``x.<n>``; it comes into being whole, in one step that only one can win;
- who finds the holder of ``x.<n>`` dead makes ``x.<n+1>``. Nobody ever removes or renames a file of
  another that may be alive, so a slow loser cannot take away what a fast winner has just got;
- ages are differences between times that one file system gave: clocks of hosts play no part.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final

from dllm_qbench.errors import QBenchError

STALE_AFTER: Final = 120.0
"""Seconds without a heartbeat after which a holder on another host counts as dead."""

NO_LINKS: Final = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
"""Errors by which a file system says that it has no hard links, or no more of them."""

_BEATS: Final = 6  # heartbeats until a holder counts as dead
_POLL: Final = (0.02, 1.0)  # seconds between two looks while waiting, first and longest


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        host: one value for all processes that see each other's process ids, until the next boot.
        started: what tells the process from a later one of the same id; empty where unknown.
        token: of this one lease.
    """

    host: str
    pid: int
    started: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process, with a new token."""
        pid = os.getpid()
        return cls(this_host(), pid, _started(pid) or "", secrets.token_hex(8))

    @property
    def is_near(self) -> bool:
        """Whether this process can see whether the holder lives."""
        return self.host == this_host()

    @property
    def is_gone(self) -> bool:
        """Whether a near holder has ended; a process that waits to be reaped has."""
        return not process_lives(self.pid, self.started)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Return who holds a lease file; ``None`` if it is gone or, still, without its content."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            values = {entry.name: data[entry.name] for entry in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(**values)


class Lease:
    """A context that says whether the work of this name is ours: ``with Lease(...) as ours``.

    ``False`` means that somebody else is at it. While it is ours, a thread touches the file; a process that
    was forked meanwhile holds nothing.

    Args:
        folder: where the lease files are; all who share the work give the same.
        name: of the work; letters, digits, ``-`` and ``_``.
        temporary: makes a new file with this text in the same file system, and returns its path.
        stale_after: seconds without a heartbeat after which a holder whose process cannot be looked at
            counts as dead. Holders and waiters should give the same.
        wait: wait for another holder to finish or die, at most ``timeout`` seconds if given.

    Raises:
        QBenchError: a name or a time that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        temporary: Callable[[str], Path],
        *,
        stale_after: float = STALE_AFTER,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise QBenchError(f"lease {name!r}: expected letters, digits, '-' and '_'")
        if not stale_after > 0:
            raise QBenchError(f"lease {name}: stale_after is {stale_after}, expected more than 0")
        self._folder, self._name = folder, name
        self._temporary = temporary
        self._stale_after = stale_after
        self._wait, self._timeout = wait, timeout
        self._path: Path | None = None
        self._holder: Holder | None = None
        self._stop = threading.Event()

    def __enter__(self) -> bool:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        pause, longest = _POLL
        while not (found := self._try()):
            # Nobody holds it, but several reached for it at once: somebody has to get it.
            if found is None:
                time.sleep(random.uniform(0, _POLL[0]))
                continue
            if not self._wait or (deadline is not None and time.monotonic() >= deadline):
                return False
            time.sleep(pause)
            pause = min(2 * pause, longest)
        threading.Thread(target=self._beat, name=f"lease {self._name}", daemon=True).start()
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._path is None or self._holder is None or self._holder.pid != os.getpid():
            return
        # The dead first: while our file is there nobody can follow on them.
        for number, path in sorted(self._files().items()):
            if number < _number(self._path):
                path.unlink(missing_ok=True)
        if Holder.read(self._path) == self._holder:
            self._path.unlink(missing_ok=True)

    def _try(self) -> bool | None:
        """Say whether it is ours now; ``None``: the others changed things meanwhile, look again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        mine = Holder.here()
        draft = self._temporary(mine.to_json() + "\n")
        try:
            last, dead = self._last(), None
            if last is not None:
                dead = Holder.read(last)
                is_dead = self._is_dead(last, dead, draft.stat().st_mtime)
                if not is_dead:
                    return is_dead
            path = self._folder / f"{self._name}.{0 if last is None else _number(last) + 1}"
            if not _create(draft, path):
                return None
        finally:
            draft.unlink(missing_ok=True)
        # Between the look and the file, a holder may have finished, and another begun: then what we
        # followed on is no longer what it was, or there is a file above ours.
        followed = last is None or (last.exists() and Holder.read(last) == dead)
        if followed and self._last() == path:
            self._path, self._holder = path, mine
            return True
        path.unlink(missing_ok=True)
        return None

    def _is_dead(self, path: Path, holder: Holder | None, now: float) -> bool | None:
        if holder is not None and holder.is_near:
            return holder.is_gone
        try:
            return now - path.stat().st_mtime > self._stale_after
        except FileNotFoundError:
            return None  # it has just finished

    def _last(self) -> Path | None:
        files = self._files()
        return files[max(files)] if files else None

    def _files(self) -> Mapping[int, Path]:
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name, _, number = entry.name.rpartition(".")
                if name == self._name and number.isdecimal():
                    found[int(number)] = Path(entry.path)
        return found

    def _beat(self) -> None:
        path = self._path
        while path is not None and not self._stop.wait(self._stale_after / _BEATS):
            # A file system that is away for a moment is no reason to stop.
            with suppress(OSError):
                if Holder.read(path) not in (self._holder, None):
                    return  # taken for dead, and followed
                os.utime(path)


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _create(draft: Path, path: Path) -> bool:
    """Make ``path`` with the content of ``draft``; false if there is one already."""
    try:
        os.link(draft, path)
    except FileExistsError:
        # A network file system may have done it, lost the answer, and been asked again.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # No hard links here: for a moment the file is empty, and counts as held.
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(draft.read_bytes())
    return True


def process_lives(pid: int, started: str) -> bool:
    """Whether a process of this host runs; ``started`` tells it from a later one of the same id."""
    now = _started(pid)
    if now is not None:
        return not started or now == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # There is such a process. Where /proc is, it has ended and was not reaped; elsewhere, it runs.
    return _started(os.getpid()) is None


def _started(pid: int) -> str | None:
    """When a running process started, in the kernel's ticks; ``None`` if it has ended or nobody says."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = text.rpartition(")")[2].split()
    return None if values[0] in "ZX" else values[19]


@cache
def this_host() -> str:
    """Name the host, this boot of it, and the process ids that are seen here."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return " ".join(filter(None, (socket.gethostname(), boot, namespace)))
