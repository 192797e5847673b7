"""Run programs one by one in forked, limited processes. Started by ``jail.py``; standard library only.

Reads from standard input a header, ``{"kinds": [...], "seconds": s, "cpu": s, "memory": bytes}``, then for
each item its parts, every part after its length in eight bytes; writes a line ``[status, value, detail]``
for each item to standard output as soon as it is done.

A ``program`` has one part and hands back its global ``result``. A ``check`` has two, the program and its
test: the program runs in one process, the test in another (``remote.py``), and the test is not read from
standard input before the program's process has left this one. No process of a program ever holds a test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import posix
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType
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
# The last two are always there: only a program that wants a fresh copy of them imports them.
_NEVER_IMPORTED = frozenset(
    "_ctypes _posixshmem _posixsubprocess ctypes multiprocessing _signal posix".split()
)
# Functions that change something outside, or reach another process, and raise no audit event.
_UNAUDITED = (
    "chroot fchdir memfd_create mkfifo mknod nice openpty pidfd_open posix_openpt pwrite"
    " sched_setaffinity sched_setparam sched_setscheduler setegid seteuid setgid setgroups setns"
    " setpgid setpriority setuid sync unshare".split()
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


def _limit(limits: dict[str, float]) -> None:
    seconds, memory = math.ceil(limits["cpu"]), int(limits["memory"])
    for name, limit, most in (
        # A second apart: SIGXCPU says what happened; a program that ignores it is killed.
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, 32, 32),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS takes no limit on the address space
            resource.setrlimit(name, (limit, most))


def _contain(kept: tuple[int, ...], report: int, token: bytes, limits: dict[str, float]) -> None:
    """Give up, in this (forked) process, all that a program has no use for.

    ``kept`` are the channels that stay open beside ``report``.
    """
    os.setsid()
    for standard in (0, 1):
        os.dup2(2, standard)  # standard error is the null device
    for channel in range(3, 256):
        if channel not in (report, *kept):
            with contextlib.suppress(OSError):
                os.close(channel)
    for name in _UNAUDITED:
        for module in (os, posix):
            if hasattr(module, name):
                delattr(module, name)
    if hasattr(signal, "pidfd_send_signal"):
        del signal.pidfd_send_signal
        del sys.modules["_signal"].pidfd_send_signal
    _limit(limits)
    sys.addaudithook(_hook(report, token))


def _finish(report: int, token: bytes, work: Callable[[], Any]) -> NoReturn:
    """Do the work and report ``[status, value, detail]``; never returns."""
    dumps, write, leave = json.dumps, os.write, os._exit
    try:
        reply = dumps(["ok", work(), ""]).encode()
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


def _compiled(source: str) -> Any:
    """Return a program's code, or the error that compiling it raises.

    Before the audit hook: Python looks for the file of a text with a syntax error.
    """
    try:
        return compile(source, "<program>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return error


def _run(source: str, space: dict[str, Any], code: Any) -> None:
    if isinstance(code, Exception):
        raise code
    exec(code, space)  # noqa: S102 - this process exists for it


def _program(source: str, report: int, token: bytes, limits: dict[str, float]) -> NoReturn:
    """Run one program in this (forked) process; never returns."""
    code = _compiled(source)
    _contain((), report, token, limits)
    space: dict[str, Any] = {"__name__": "__main__", "result": None}

    def work() -> Any:
        _run(source, space, code)
        return space["result"]

    _finish(report, token, work)


def _server(
    source: str,
    remote: ModuleType,
    channels: tuple[int, int],
    report: int,
    limits: dict[str, float],
) -> NoReturn:
    """Run a program in this (forked) process and answer its test's questions; never returns."""
    code = _compiled(source)
    _contain(channels, report, b"", limits)
    # Not "__main__": what a program does for its own demonstration is no part of the answer.
    space: dict[str, Any] = {"__name__": "program"}
    leave = os._exit
    try:
        _run(source, space, code)
        first = ["value", None]
    except BaseException as error:
        first = ["raised", type(error).__name__, str(error)[:200]]
    with contextlib.suppress(BaseException):
        remote.send(channels[1], first)
        if first[0] == "value":
            remote.serve(space, *channels)
    leave(0)


def _examiner(
    check: dict[str, str],
    remote: ModuleType,
    channels: tuple[int, int],
    report: int,
    token: bytes,
    limits: dict[str, float],
) -> NoReturn:
    """Run a test in this (forked) process; never returns."""
    examine = remote.prepare(**check)
    _contain(channels, report, token, limits)
    _finish(report, token, lambda: examine(remote.Client(*channels)))


def _collect(channel: int, deadline: float) -> tuple[bytes, bool]:
    """Read what a process reports until it ends or the deadline; say whether it was on time."""
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


def _end(pid: int) -> int:
    """Kill a process with its group; return its exit status, negative for a signal."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not yet its own session
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _outcome(
    reply: bytes, on_time: bool, code: int, token: bytes, limits: dict[str, float]
) -> list[Any]:
    """Read one process's report."""
    if not on_time or code == -signal.SIGXCPU:
        return ["timeout", None, f"not finished after {limits['seconds']:g} s"]
    if not reply.startswith(token):
        return ["crashed", None, f"left without a result, exit status {code}"]
    if code == _FORBIDDEN_STATUS:
        return ["forbidden", None, reply[len(token) :].decode("utf-8", "replace")]
    try:
        outcome = json.loads(reply[len(token) :])
    except ValueError:
        return ["crashed", None, f"an unreadable result, exit status {code}"]
    return outcome if isinstance(outcome, list) and len(outcome) == 3 else ["crashed", None, ""]


def run_one(source: str, limits: dict[str, float]) -> list[Any]:
    """Run one program; return ``[status, value, detail]``."""
    token = os.urandom(16).hex().encode()
    channel, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        _program(source, report, token, limits)
    os.close(report)
    reply, on_time = _collect(channel, time.monotonic() + limits["seconds"])
    os.close(channel)
    return _outcome(reply, on_time, _end(pid), token, limits)  # it may have closed its report


def check_one(read: Callable[[], str], remote: ModuleType, limits: dict[str, float]) -> list[Any]:
    """Run a program and, in another process, its test; return ``[status, null, detail]``.

    ``read`` gives the program, then the test.
    """
    deadline = time.monotonic() + limits["seconds"]
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    trouble, tell = os.pipe()
    source = read()
    program = os.fork()
    if program == 0:
        _server(source, remote, (asked, answer), tell, limits)
    check = json.loads(read())  # only now: the program's process must not have it
    token = os.urandom(16).hex().encode()
    channel, report = os.pipe()
    test = os.fork()
    if test == 0:
        _examiner(check, remote, (ask, answered), report, token, limits)
    for mine in (asked, ask, answered, answer, tell, report):
        os.close(mine)
    reply, on_time = _collect(channel, deadline)
    outcome = _outcome(reply, on_time, _end(test), token, limits)
    code = _end(program)
    said = b"" if outcome[0] == "ok" else _collect(trouble, time.monotonic() + 1)[0]
    for mine in (channel, trouble):
        os.close(mine)
    if outcome[0] == "error" and code == -signal.SIGXCPU:
        return ["timeout", None, f"the program used more than {limits['cpu']:g} s"]
    if outcome[0] == "error" and code == _FORBIDDEN_STATUS:
        return ["forbidden", None, said.decode("utf-8", "replace")[:200]]
    return outcome


def _part() -> str:
    """Read one part from standard input, and not a byte more: the next may be a test."""
    size = int.from_bytes(_exactly(8), "big")
    return _exactly(size).decode("utf-8", "surrogatepass")


def _exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(0, min(count, 65536))
        if not part:
            raise EOFError("the job ended early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _load_remote() -> ModuleType:
    """Load ``remote.py`` from beside this file; the folder itself is on no path that a program has."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "remote.py")
    spec = importlib.util.spec_from_file_location("remote", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Serve one job."""
    header = json.loads(_part())
    limits = {name: float(header[name]) for name in ("seconds", "cpu", "memory")}
    remote = _load_remote()
    for kind in header["kinds"]:
        outcome = check_one(_part, remote, limits) if kind == "check" else run_one(_part(), limits)
        os.write(1, json.dumps(outcome).encode() + b"\n")


if __name__ == "__main__":
    main()
