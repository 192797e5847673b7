"""Leave the host's network, processes and writable files behind, then become ``runner.py``.

A script for ``python -I -S``: standard library only. What the kernel does not offer is skipped: the limits
and the audit hook of ``runner.py`` do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_NEW_USER, _NEW_NET, _NEW_PID, _NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_NO_NEW_PRIVS = 38  # prctl
# Landlock's system calls have the same numbers on every architecture.
_CREATE_RULESET, _RESTRICT_SELF, _VERSION_FLAG = 444, 446, 1
# Every file system right that changes something, by the ABI that introduced it. (linux/landlock.h; bit 0
# executes, 2 reads files, 3 reads folders.)
_WRITE_RIGHTS = {1: 0b1_1111_1111_0010, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS = 0b11  # bind and connect TCP, from ABI 4
_SCOPES = 0b11  # abstract sockets and signals stay inside, from ABI 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("fs", ctypes.c_uint64),
        ("net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def forbid_changes(libc: ctypes.CDLL) -> bool:
    """Forbid every change to the file system and TCP by Landlock; say whether the kernel did."""
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if abi < 1:
        return False
    rules = _Ruleset(
        sum(rights for since, rights in _WRITE_RIGHTS.items() if abi >= since),
        _NETWORK_RIGHTS if abi >= 4 else 0,
        _SCOPES if abi >= 6 else 0,
    )
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0 or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    # No rule is added: nothing below any folder may be changed. What is open already stays usable.
    done: int = libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return done == 0


def main() -> None:
    """Isolate this process as far as the kernel allows and run ``runner.py`` in its place."""
    in_namespace = False
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        in_namespace = libc.unshare(_NEW_USER | _NEW_NET | _NEW_PID | _NEW_IPC) == 0
        forbid_changes(libc)
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("runner.py"))]
    # A new process namespace begins with the next child: its first process, with which all others end.
    child = os.fork() if in_namespace else 0
    if child == 0:
        os.execv(sys.executable, command)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(os.getpid(), signal.Signals(-code))
    sys.exit(code)


if __name__ == "__main__":
    main()
