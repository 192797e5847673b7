"""Pip with this project's constraints, for any release of torch: what tox installs its packages with.

``constraints.txt`` pins the release of torch that the baselines were recorded with. For an environment of
another one, ``TOX_TORCH=2.10``, its line gives way to ``torch~=2.10.0``; all other pins stay. With
``TOX_TORCH_INDEX`` that index is looked at too: on Linux, PyPI's torch brings several GB of CUDA
libraries, and https://download.pytorch.org/whl/cpu has builds without them (2.10.0+cpu counts as newer
than 2.10.0, so it is the one that is taken).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def constraints(text: str, release: str) -> str:
    """The constraints with torch's line exchanged for ``release`` (``2.10``); "" keeps it.

    Raises ``ValueError`` for what is no release of torch, and where torch is pinned by no line or by
    several.
    """
    if not release:
        return text
    if not re.fullmatch(r"\d+\.\d+", release, re.ASCII):
        raise ValueError(f"TOX_TORCH is {release!r}, expected a release of torch such as 2.13")
    changed, count = re.subn(r"(?m)^torch==.*$", f"torch~={release}.0", text)
    if count != 1:
        raise ValueError(f"{CONSTRAINTS}: {count} lines pin torch, expected one: torch==...")
    return changed


def main(arguments: list[str]) -> int:
    """Run ``pip install`` with ``arguments``; its exit status."""
    try:
        text = constraints(CONSTRAINTS.read_text("utf-8"), os.environ.get("TOX_TORCH", ""))
    except ValueError as error:
        print(f"tools/tox_install.py: {error}", file=sys.stderr)
        return 2
    index = os.environ.get("TOX_TORCH_INDEX", "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-I", "-m", "pip", "install", "-c", str(path)]
        command += ["--extra-index-url", index] if index else []
        return subprocess.run([*command, *arguments], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
