"""A copy of the checkout in which commands of the documentation are run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PARTS = (
    *("baselines", "dllm_qbench", "docs", "examples", "tests", "tools", "conftest.py"),
    *("constraints.txt", "pyproject.toml", "tox.ini", "README.md", "CONTRIBUTING.md"),
)


class Clone:
    """A copy of the checkout.

    Commands see the package of the copy, one thread, and no network of the Hugging Face libraries. What
    was run once is not run again: many pages have the same cheap twin.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "_build", ".*")
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignore)
            elif source.exists():
                shutil.copy(source, folder / part)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CI", "COV_"))}
        self.environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            # Where no path is named: collecting all tests to leave out those without the marker takes
            # longer than most of the commands.
            "PYTEST_ADDOPTS": "-p no:cacheprovider"
            " -o 'testpaths=tests/test_regression.py tests/test_full_matrix.py'",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }
        self._done: dict[str, str] = {}
        self._forks: subprocess.Popen[str] | None = None

    def shell(self, script: str) -> str:
        """Run a script of bash, line by line until one fails; what it printed."""
        if script not in self._done:
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
            assert run.returncode == 0, f"exit status {run.returncode}\n{script}\n{run.stdout}"
            self._done[script] = run.stdout
        return self._done[script]

    def python(self, code: str, page: str) -> str:
        """Run a page's script of Python in a process of its own; what it printed."""
        file = self.folder / f"{page.replace('/', '_')}.py"
        file.write_text(code, encoding="utf-8")
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-m", "tests.docs.forks"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(f"{file}\n")
        self._forks.stdin.flush()
        status, printed = json.loads(self._forks.stdout.readline())
        assert status == 0, f"{page}: exit status {status}\n{printed}"
        return str(printed)

    def close(self) -> None:
        """Let go of the process that waits for Python."""
        if self._forks is not None:
            assert self._forks.stdin is not None
            self._forks.stdin.close()
            self._forks.wait(timeout=60)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """One for all pages."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    yield made
    made.close()
