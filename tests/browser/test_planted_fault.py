"""The README's first run, for real and on fewer items: the page names the layer that was broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dllm_qbench.summary_files import read_outcomes
from examples.planted_fault import LAYER
from tests.browser.checks import on_first_screen
from tests.browser.conftest import Open

ROOT = Path(__file__).parents[2]
CELL = "llada-embedded-gptq-W4A16-g64-math"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one cell with the bug in it."""
    page = tmp_path_factory.mktemp("planted") / "report.html"
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "examples.planted_fault"),
            *("-m", "quick", "-k", CELL, "--qbench-items=50", f"--qbench-html={page}"),
            "tests/test_regression.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert found.returncode == pytest.ExitCode.TESTS_FAILED, found.stdout + found.stderr
    # What the README shows of the terminal.
    assert (
        f"where      first  {LAYER}: fed with full precision's inputs it is at 20." in found.stdout
    )
    assert f"report: {page}" in found.stdout
    return page


def test_no_other_module_is_blamed(planted: Path) -> None:
    (outcome,) = read_outcomes(planted.with_suffix(".jsonl"))
    assert (outcome.verdict or {})["place"]["first"] == LAYER


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (360, 800)])
def test_the_first_screen_and_the_cell_name_the_layer(
    planted: Path, open_page: Open, width: int, height: int
) -> None:
    opened = open_page(planted, width=width, height=height)
    page = opened.page
    assert page.locator("h1").inner_text().startswith("1 of 1 cell")
    assert LAYER in page.locator(".first").inner_text()
    assert on_first_screen(page, ".first")
    assert page.locator(".failing .broke").inner_text() == LAYER
    page.locator("a.c").first.click()
    dialog = page.locator("dialog#cell")
    dialog.locator(".plot.drawn").first.wait_for()
    assert dialog.locator(".broke").inner_text() == LAYER
    # The shipped model's outlier maps come with the page: before and after rotation.
    assert page.locator("#outliers img").count() >= 4
    assert opened.watch.problems == []
