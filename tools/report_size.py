"""Measure the report of a run of the full tier's size: ``python -m tools.report_size [--cells 300]``.

Builds the page of a made-up run of that many cells (``tests/helpers/many_cells.py``: three models of 32
blocks, 500 items a cell), opens it in the system's Chromium, and prints the table of ``docs/report.md``.
Times are medians; the page is loaded from a file, by a fresh context each time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from dllm_qbench.report.data import build
from dllm_qbench.report.page import render, write_page
from tests.browser.test_load import PAINTED
from tests.helpers.many_cells import many_baselines, many_cells
from tools.browser import launched

_OPEN = """() => new Promise((done) => {
    const began = performance.now();
    document.querySelector("a.c.fails").click();
    const look = () => document.querySelector("dialog[open] svg")
        ? done(performance.now() - began) : requestAnimationFrame(look);
    look();
})"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=int, default=300, help="at most 300")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        outcomes = many_cells(given.cells)
        baselines = many_baselines(Path(folder) / "baselines", given.cells)
        began = time.perf_counter()
        data = build(outcomes, baselines=baselines)
        built = time.perf_counter() - began
        began = time.perf_counter()
        write_page(data, page)
        written = time.perf_counter() - began
        began = time.perf_counter()
        render(data)
        again = time.perf_counter() - began
        size = page.stat().st_size
        painted, opened = _in_browser(page, given.repeats)
    print("| what | measured |", "|---|---:|", sep="\n")
    for name, value in (
        ("cells", str(given.cells)),
        ("size of the page", f"{size / 1e6:.2f} MB"),
        ("its data from records", f"{built:.1f} s"),
        ("the page from its data", f"{written:.1f} s, {again:.1f} s the second time"),
        ("opened: loaded and painted", f"{painted / 1000:.2f} s"),
        ("a failing cell opened: its first chart drawn", f"{opened / 1000:.2f} s"),
    ):
        print(f"| {name} | {value} |")


def _in_browser(page: Path, repeats: int) -> tuple[float, float]:
    """Milliseconds until the page is painted, and from a click until the cell's first chart is drawn."""
    painted, opened = [], []
    with launched() as browser:
        for _ in range(repeats):
            context: Any = browser.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            tab.goto(page.as_uri())
            painted.append(float(tab.evaluate(PAINTED)))
            opened.append(float(tab.evaluate(_OPEN)))
            context.close()
    return statistics.median(painted), statistics.median(opened)


if __name__ == "__main__":
    main()
