"""Results that survive a kill: JSON values in files that are named by what they are the result of.

Notable:
- ``<folder>/<kind>/<2 hex>/<sha256 of the key>.json`` holds the key, the value and the value's checksum;
- a value comes into being whole, or not at all; it is never replaced: who computes it again must get the
  same, except for what :data:`VOLATILE` names;
- nothing relies on file locks: a network file system will do. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from dllm_qbench import __version__
from dllm_qbench.engine.leases import NO_LINKS, STALE_AFTER, Holder, Lease, process_lives, this_host
from dllm_qbench.engine.store_format import canonical, first_difference, read, sha256, write
from dllm_qbench.errors import QBenchError
from dllm_qbench.records import Record

_TEMPORARY: Final = "tmp"
_LEASES: Final = "leases"
_OLD: Final = 3600.0  # seconds after which a temporary file of an unknown writer is litter
_SOURCES: Final = (".py", ".yaml", ".json")
_KIND: Final = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED: Final = {_TEMPORARY, _LEASES}


class Store:
    """A folder of results that any number of processes and hosts read and write.

    Args:
        folder: is made when something is put. Temporary files that writers left behind when they died
            are removed.

    Raises:
        QBenchError: the folder is a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise QBenchError(f"store {self.folder}: is a file, expected a folder")
        self._clean()

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def get(self, kind: str, key: Mapping[str, Any]) -> Any | None:
        """Return the value of a key, ``None`` if there is none.

        Raises:
            QBenchError: the file is damaged; names it and says what to do.
        """
        path = self._path(kind, key, ".json")
        found = read(path, kind)
        return None if found is None else found[1]

    def put(self, kind: str, key: Mapping[str, Any], value: Any) -> None:
        """Keep the value of a key; a kill at any moment leaves it whole or not there.

        Raises:
            QBenchError: there is another value already (names the first difference), or key or value
                are no JSON values.
        """
        place = f"{self}: {kind}"
        if value is None:
            raise QBenchError(f"{place}: the value is None, which means that there is none")
        text = write(kind, key, value, place)
        path = self._path(kind, key, ".json")
        if not path.exists() and self._publish(text, path):
            return
        kept = self.get(kind, key)
        if difference := first_difference(kept, json.loads(text)["value"]):
            raise QBenchError(
                f"{path}: holds another result of the same key: {difference} (kept, then new). Something"
                " that the key does not name decides the result; find it, or delete the file"
            )

    def lease(
        self,
        kind: str,
        key: Mapping[str, Any],
        *,
        stale_after: float = STALE_AFTER,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Lease:
        """``with store.lease(kind, key) as ours:`` says whether making this value is ours to do.

        ``False``: another process is at it, on this host or another one. With ``wait``, that comes only
        after ``timeout`` seconds, if ever. Ask ``get`` again once it is ours: the last holder may have
        finished.
        """
        return Lease(
            self.folder / _LEASES,
            f"{_kind(kind)}-{self.name_of(kind, key)}",
            self._temporary,
            stale_after=stale_after,
            wait=wait,
            timeout=timeout,
        )

    def folder_for(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return where a folder of files is that results from a key.

        It need not exist. Whoever makes it makes it elsewhere in the same parent, and renames it.
        """
        path = self._path(kind, key, "")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def entries(self, kind: str) -> Iterator[tuple[dict[str, Any], Any]]:
        """All keys of a kind with their values, in the order of their digests.

        Raises:
            QBenchError: a file is damaged.
        """
        for path in sorted((self.folder / _kind(kind)).glob("??/*.json")):
            found = read(path, kind)
            if found is not None:
                yield found

    def kinds(self) -> list[str]:
        """The kinds of which there may be something."""
        if not self.folder.is_dir():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        return [name for name in names if _KIND.fullmatch(name) and name not in _RESERVED]

    def records(self) -> Iterator[Record]:
        """The records of all cells that were measured."""
        for key, value in self.entries("records"):
            yield Record.from_dict(value, f"{self}: record of {canonical(key, 'key')}")

    def name_of(self, kind: str, key: Mapping[str, Any]) -> str:
        """Return what files and folders of a key are called: the digest of its canonical spelling."""
        return sha256(canonical(key, f"{self}: key of {kind}"))

    def _path(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path:
        digest = self.name_of(kind, key)
        return self.folder / _kind(kind) / digest[:2] / (digest + suffix)

    def _temporary(self, text: str) -> Path:
        """Write a new file beside the results, down to the disk; its name says who wrote it."""
        home = self.folder / _TEMPORARY
        home.mkdir(parents=True, exist_ok=True)
        here = Holder.here()
        name = f"{sha256(here.host)[:16]}-{here.pid}-{here.started}-{secrets.token_hex(8)}"
        handle = os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            (home / name).unlink(missing_ok=True)
            raise
        return home / name

    def _publish(self, text: str, path: Path) -> bool:
        """Give the file its name in one step; false if there is one of that name already."""
        temporary = self._temporary(text)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                # No hard links here. Of two who come at once the last one stays: they have the same.
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent, self.folder):
            _sync(folder)
        return True

    def _clean(self) -> None:
        """Remove what writers left that died in the middle: at once on this host, else after an hour."""
        home = self.folder / _TEMPORARY
        here = sha256(this_host())[:16]
        files = list(home.iterdir()) if home.is_dir() else []
        if not files:
            return
        probe = self._temporary("")
        now = probe.stat().st_mtime  # by the file system's clock, as the files' own times are
        probe.unlink()
        for path in files:
            host, pid, started, *_ = [*path.name.split("-"), "", "", ""]
            with suppress(FileNotFoundError):
                if host == here and pid.isdecimal():
                    dead = not process_lives(int(pid), started)
                else:
                    dead = now - path.stat().st_mtime > _OLD
                if dead:
                    path.unlink()


@cache
def code_version() -> str:
    """Return the package's version with a digest of its own source files, tasks and schemas.

    Any change to the code gives another one: results of different code never mix.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in _SOURCES and "__pycache__" not in path.parts:
            name, content = path.relative_to(root).as_posix().encode(), path.read_bytes()
            digest.update(b"%d %d " % (len(name), len(content)) + name + content)
    return f"{__version__}+{digest.hexdigest()}"


def _kind(kind: str) -> str:
    if not _KIND.fullmatch(kind) or kind in _RESERVED:
        raise QBenchError(f"store: kind {kind!r}: expected a lower-case word, such as 'records'")
    return kind


def _sync(folder: Path) -> None:
    """Bring a folder's names down to the disk, where the file system knows how."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
