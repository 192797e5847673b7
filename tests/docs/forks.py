"""Runs Python code of pages, each page in a process of its own that has torch already.

``python -m tests.docs.forks`` reads names of files, one a line. For each it forks, and answers with the exit
status and what was printed, as JSON. The parent computes nothing, so that no page sees what another did.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback

# Heavy libraries, once.
import dllm_qbench.engine.cells
import dllm_qbench.quant.quantize
import dllm_qbench.verdict.message  # noqa: F401


def run(file: str) -> tuple[int, str]:
    """Run a script in a forked process; its status and its output."""
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for stream in (1, 2):
                    os.dup2(printed.fileno(), stream)
                runpy.run_path(file, run_name="__main__")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read().decode(errors="replace")


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(line.rstrip())), flush=True)
