"""The tools that measure a page and take its pictures, in processes of their own: each starts a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.browser.conftest import Open
from tests.helpers.report_example import FAILING

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n"


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_size_and_times_of_a_page_are_measured(open_page: Open) -> None:
    done = tool("tools.report_size", "--cells", "12", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    rows = [[part.strip() for part in line.split("|")[1:3]] for line in done.stdout.splitlines()]
    found = dict(rows[2:])
    assert found["cells"] == "12"
    assert 0.3 < float(found["size of the page"].removesuffix(" MB")) < 2
    for name in ("opened: loaded and painted", "a failing cell opened: its first chart drawn"):
        assert 0 < float(found[name].removesuffix(" s")) < 60


def test_pictures_are_taken(open_page: Open, report: Path, tmp_path: Path) -> None:
    cell = next(iter(FAILING))
    done = tool("tools.report_screenshots", str(report), str(tmp_path / "out"), cell)
    assert done.returncode == 0, done.stderr
    taken = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(taken) == {"light.png", "dark.png", "cell.png", "cell_dark.png", "phone.png"}
    assert all(data.startswith(PNG) for data in taken.values())
    assert len(set(taken.values())) == 5


def test_a_page_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = tool("tools.report_screenshots", str(tmp_path / "none.html"), str(tmp_path))
    assert done.returncode == 1
    assert "none.html: no such file" in done.stderr
