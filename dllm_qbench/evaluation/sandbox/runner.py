"""Run programs one by one in forked, limited processes. Started by ``jail.py``; standard library only.

Reads a job from standard input, ``{"programs": [...], "seconds": s, "memory": bytes}``, and writes a list of
``[status, value, detail]`` to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import posix
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

_REPLY_BYTES = 2**20
_FORBIDDEN_STATUS = 77
# What computing and importing raise. Everything else (sockets, processes, changes to files, signals,
# ctypes, the garbage collector's view of other objects, ...) ends the process: a list of what is allowed
# does not have to know what future versions add.
_ALLOWED = frozenset(
    "array.__new__ builtins.id compile cpython.run_interactivehook exec import marshal.load marshal.loads"
    " object.__delattr__ object.__getattr__ object.__setattr__ open os.listdir sys._current_frames"
    " sys._getframe sys._getframemodulename sys.excepthook sys.unraisablehook time.sleep".split()
)
_NEVER_IMPORTED = frozenset("_ctypes _posixsubprocess ctypes multiprocessing".split())
# Functions that change something outside and raise no audit event.
_UNAUDITED = (
    "chroot fchdir mkfifo mknod nice pwrite sched_setscheduler setgid setgroups sync".split()
)
_READING = os.O_CLOEXEC | os.O_RDONLY


def _hook(report: int, token: bytes) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that ends the process on a forbidden event.

    Everything it uses is bound here: a program can rebind builtins, but not these.
    """
    roots = tuple({os.path.dirname(os.__file__), *(path for path in sys.path if path)})

    def hook(
        event: str,
        args: tuple[Any, ...],
        allowed: frozenset[str] = _ALLOWED,
        never: frozenset[str] = _NEVER_IMPORTED,
        reading: int = _READING,
        text: type = str,
        kind: Callable[[Any], type] = type,
        leave: Callable[[int], NoReturn] = os._exit,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        if event in allowed:
            if event == "import":
                if args[0] not in never:
                    return
            elif event == "open":
                path, _, flags = args
                inside = kind(path) is text and path.startswith(roots) and ".." not in path
                if inside and kind(flags) is int and not flags & ~reading:
                    return
            elif event == "os.listdir":
                if kind(args[0]) is text and args[0].startswith(roots) and ".." not in args[0]:
                    return
            else:
                return
        detail = f"{event} {args[0]}" if event in ("import", "open") and args else event
        write(report, token + detail.encode("utf-8", "replace")[:200])
        leave(_FORBIDDEN_STATUS)

    return hook


def _limit(seconds: float, memory: int) -> None:
    whole = int(seconds) + 1
    for name, limit in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS takes no limit on the address space
            resource.setrlimit(name, (limit, limit))


def _program(source: str, report: int, token: bytes, seconds: float, memory: int) -> NoReturn:
    """Run one program in this (forked) process; never returns."""
    os.setsid()
    for standard in (0, 1):
        os.dup2(2, standard)  # standard error is the null device
    os.closerange(3, report)
    os.closerange(report + 1, 256)
    for name in _UNAUDITED:
        for module in (os, posix):
            if hasattr(module, name):
                delattr(module, name)
    dumps, write, leave = json.dumps, os.write, os._exit
    _limit(seconds, memory)
    sys.addaudithook(_hook(report, token))
    space: dict[str, Any] = {"__name__": "__main__", "result": None}
    try:
        exec(compile(source, "<program>", "exec"), space)  # noqa: S102 - this process exists for it
        reply = dumps(["ok", space["result"], ""]).encode()
        if len(reply) > _REPLY_BYTES:
            reply = dumps(["error", None, "the result is too large"]).encode()
    except MemoryError:
        reply = b'["memory", null, "MemoryError"]'
    except BaseException as error:
        reply = dumps(["error", None, f"{type(error).__name__}: {error}"[:200]]).encode()
    while reply:  # a pipe takes 64 KiB at a time; the token goes first, with the first bytes
        sent = write(report, token + reply)
        reply, token = reply[max(0, sent - len(token)) :], b""
    leave(0)


def _collect(pid: int, channel: int, deadline: float) -> tuple[bytes, bool]:
    """Read what the process reports until it ends or the deadline; say whether it was on time."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([channel], [], [], left)[0]:
            return b"".join(parts), False
        part = os.read(channel, 65536)
        if not part:
            return b"".join(parts), True
        parts.append(part)
        if sum(map(len, parts)) > 2 * _REPLY_BYTES:
            return b"", True


def run_one(source: str, seconds: float, memory: int) -> list[Any]:
    """Run one program; return ``[status, value, detail]``."""
    token = os.urandom(16).hex().encode()
    channel, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        _program(source, report, token, seconds, memory)
    os.close(report)
    reply, on_time = _collect(pid, channel, time.monotonic() + seconds)
    os.close(channel)
    # The process may have closed its report and gone on.
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not yet its own session
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if not on_time or code == -signal.SIGXCPU:
        return ["timeout", None, f"not finished after {seconds:g} s"]
    if not reply.startswith(token):
        return ["crashed", None, f"left without a result, exit status {code}"]
    if code == _FORBIDDEN_STATUS:
        return ["forbidden", None, reply[len(token) :].decode("utf-8", "replace")]
    try:
        outcome = json.loads(reply[len(token) :])
    except ValueError:
        return ["crashed", None, f"an unreadable result, exit status {code}"]
    return outcome if isinstance(outcome, list) and len(outcome) == 3 else ["crashed", None, ""]


def main() -> None:
    """Serve one job."""
    job = json.load(sys.stdin)
    outcomes = [run_one(source, job["seconds"], job["memory"]) for source in job["programs"]]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
