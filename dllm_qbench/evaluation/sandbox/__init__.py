"""Run generated programs where they can do no harm: not to this process, its files, or each other.

Notable, from the outside in:
- ``jail.py`` starts a fresh interpreter (``-I -S``, empty environment, an empty temporary folder) in its own
  user, network, process and IPC namespaces and under a Landlock rule set that forbids every change to the
  file system, where the kernel offers them (Linux);
- ``runner.py`` forks one process per program with limits on CPU time, memory, file size, open files and
  processes, a wall clock, and an audit hook that ends the process on anything but computing and importing
  from the standard library;
- results come back on a pipe of their own, so nothing that a program prints is taken for its result.

The audit hook is the only layer on systems without namespaces and Landlock. A program that inspects the
interpreter's own frames could forge its *own* outcome, never another's: compare values outside, where the
expected answers never enter the sandbox (as :mod:`.expressions` does).
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
    if not programs:
        return []
    job = {"programs": list(programs), "seconds": seconds, "memory": memory_mb * 2**20}
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
            reply, _ = process.communicate(
                json.dumps(job).encode(), timeout=_START_SECONDS + len(programs) * (seconds + 1)
            )
        except subprocess.TimeoutExpired as error:
            raise QBenchError(
                f"the sandbox did not answer within {error.timeout:.0f} s for {len(programs)} programs;"
                " this is an infrastructure error, nothing was scored"
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    try:
        outcomes = [Outcome(*fields) for fields in json.loads(reply)]
    except (ValueError, TypeError) as error:
        raise QBenchError(
            f"the sandbox gave no readable reply (exit status {process.returncode});"
            " this is an infrastructure error, nothing was scored"
        ) from error
    if len(outcomes) != len(programs):
        raise QBenchError(
            f"the sandbox answered for {len(outcomes)} of {len(programs)} programs;"
            " this is an infrastructure error, nothing was scored"
        )
    return outcomes
