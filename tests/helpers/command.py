"""``qbench`` run in this process."""

from __future__ import annotations

import sys

import pytest

from dllm_qbench import cli


def qbench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["qbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)
