"""Run generated programs where they can do no harm: not to this process, its files, or each other.

Notable, from the outside in:
- ``jail.py`` starts a fresh interpreter (``-I -S``, empty environment, an empty temporary folder) in its own
  user, network, process and IPC namespaces and under a Landlock rule set that forbids every change to the
  file system, where the kernel offers them (Linux);
- ``runner.py`` forks processes for each program with limits on CPU time, memory, file size, open files and
  processes, a wall clock, and an audit hook that ends the process on anything but computing and importing
  from the standard library. One jail serves many programs;
- results come back on a pipe of their own, so nothing that a program prints is taken for its result;
- a test never shares a process with the program that it tests (``remote.py``): the program's process does
  not have the expected answers, and the verdict is given where the program's code does not run.

What is not prevented:
- the audit hook is the only layer on systems without namespaces and Landlock. It holds against Python
  code, not against code that corrupts the interpreter's memory;
- a program of :func:`run_programs` that inspects the interpreter's own frames can forge its *own* result,
  never another's: compare values outside, as :mod:`.expressions` does, or use :func:`run_checks`;
- a program that kills the runner (it may find a system call that no hook reports) ends as ``crashed``; the
  others of its batch are run again. It can burn the CPU time and memory that its limits allow;
- a test asks the program by name for what it uses and does not define, so that a class of the program's
  can stand in a test. Values that a test hands over are seen by the program: that is their purpose.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.errors import QBenchError

_JAIL = Path(__file__).with_name("jail.py")
_CPU_SECONDS = 3.0  # what the published scorer of HumanEval allows in all
_START_SECONDS = 30.0  # for the interpreter itself to start and stop on a busy machine


@dataclass(frozen=True)
class Outcome:
    """How one program ended.

    Attributes:
        status: ``ok``; ``error`` (an exception, named in ``detail``); ``timeout``; ``memory``;
            ``forbidden`` (the operation is named in ``detail``); ``crashed`` (killed by a signal or left
            without finishing).
        value: what the program left in its global ``result``, where the status is ``ok``; JSON types.
        detail: for the reader.
    """

    status: str
    value: Any = None
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A program and how it is tested.

    Attributes:
        program: the source text to be tested.
        test: asserts that use the program's names; where there is an ``entry``, the text that defines
            ``check``.
        entry: the function that ``check`` is called with, as in HumanEval; empty: the test calls it.
        prelude: source text that the test's side runs first, as HumanEval's prompt with its helpers.
    """

    program: str
    test: str
    entry: str = ""
    prelude: str = ""


def run_checks(
    checks: Sequence[Check],
    *,
    seconds: float = 10.0,
    cpu_seconds: float = _CPU_SECONDS,
    memory_mb: int = 512,
) -> list[Outcome]:
    """Run tests on programs, each test and each program in a sandboxed process of its own.

    ``ok`` means that the test ran to its end; the value is always ``None``.

    Args:
        checks: one after the other; none sees another.
        seconds: wall clock for each, wide enough for a busy machine: what ends a loop is the CPU time.
        cpu_seconds: CPU time of each process, rounded up to the next whole second.
        memory_mb: address space of each process, in MiB.

    Raises:
        QBenchError: the sandbox itself failed; nothing was scored.
    """
    parts = [
        [
            check.program,
            json.dumps({"prelude": check.prelude, "test": check.test, "entry": check.entry}),
        ]
        for check in checks
    ]
    return _serve("check", parts, seconds, cpu_seconds, memory_mb)


def run_programs(
    programs: Sequence[str], *, seconds: float = 3.0, memory_mb: int = 512
) -> list[Outcome]:
    """Run Python programs one after the other, each in its own sandboxed process.

    Args:
        programs: source texts; a program hands back what it assigns to ``result`` (JSON types).
        seconds: wall clock for each; CPU time is limited to the next whole second.
        memory_mb: address space of each, in MiB.

    Raises:
        QBenchError: the sandbox itself failed; nothing was scored.
    """
    return _serve("program", [[program] for program in programs], seconds, seconds, memory_mb)


def _serve(
    kind: str, items: list[list[str]], seconds: float, cpu: float, memory_mb: int
) -> list[Outcome]:
    """Run items in as many jails as it takes: one, unless a program takes the runner down with it."""
    outcomes: list[Outcome] = []
    suspect = -1
    while len(outcomes) < len(items):
        rest = items[len(outcomes) :]
        header = {"kinds": [kind] * len(rest), "seconds": seconds, "cpu": cpu}
        job = [json.dumps({**header, "memory": memory_mb * 2**20}), *(p for i in rest for p in i)]
        reply, status = _jail(b"".join(map(_framed, job)), len(rest) * (seconds + 1))
        outcomes += _read(reply, status)
        if len(outcomes) == len(items):
            break
        if status >= 0:
            raise QBenchError(
                f"the sandbox answered for {len(outcomes)} of {len(items)} programs (exit status"
                f" {status}); this is an infrastructure error, nothing was scored"
            )
        # Killed from outside, or by the program that was running: the second time it was that one.
        if suspect == len(outcomes):
            outcomes.append(Outcome("crashed", None, f"took the sandbox down, signal {-status}"))
        suspect = len(outcomes)
    return outcomes


def _framed(text: str) -> bytes:
    body = text.encode("utf-8", "surrogatepass")
    return len(body).to_bytes(8, "big") + body


def _jail(job: bytes, seconds: float) -> tuple[bytes, int]:
    """Start a jail, hand it a job; return what it wrote and its exit status."""
    with tempfile.TemporaryDirectory(prefix="qbench-sandbox-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_JAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            reply, _ = process.communicate(job, timeout=_START_SECONDS + seconds)
        except subprocess.TimeoutExpired as error:
            raise QBenchError(
                f"the sandbox did not answer within {error.timeout:.0f} s; this is an infrastructure"
                " error, nothing was scored"
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return reply, process.returncode


def _read(reply: bytes, status: int) -> list[Outcome]:
    """Read a line for each finished item; a last line without its end is dropped."""
    try:
        return [Outcome(*json.loads(line)) for line in reply.split(b"\n")[:-1]]
    except (ValueError, TypeError) as error:
        raise QBenchError(
            f"the sandbox gave no readable reply (exit status {status});"
            " this is an infrastructure error, nothing was scored"
        ) from error
