"""Three hundred cells: how soon the page is there, how large it is, and that paper takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm_qbench.report.data import build
from dllm_qbench.report.page import write_page
from tests.browser import pdf_text
from tests.browser.conftest import Open
from tests.helpers.many_cells import many_cells
from tests.helpers.report_example import BROKEN, FAILING, example

LIMIT_S = 1.5
TRIES = 5  # of which one has to be in time: what else the machine does is not the page's doing
LIMIT_BYTES = 6 * 1024 * 1024
# The heat map is painted: the second frame after the load event has it on the screen.
PAINTED = """() => new Promise((done) => {
  const then = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
  document.readyState === 'complete' ? then() : addEventListener('load', then);
})"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_page(build(many_cells(300)), folder / "report.html")
    return folder / "report.html"


def test_three_hundred_cells_open_in_time_and_stay_small(open_page: Open, large: Path) -> None:
    assert large.stat().st_size <= LIMIT_BYTES
    took = []
    for _ in range(TRIES):
        opened = open_page(large)
        took.append(opened.page.evaluate(PAINTED) / 1000)
        assert opened.page.locator("a.c").count() == 300
        assert opened.watch.problems == []
        if took[-1] <= LIMIT_S:
            break
    assert min(took) <= LIMIT_S


def test_a_cell_of_three_hundred_opens_at_once(open_page: Open, large: Path) -> None:
    took = []
    for _ in range(TRIES):
        page = open_page(large).page
        page.evaluate("window.began = performance.now()")
        page.evaluate("document.querySelector('a.c.fails').click()")
        page.locator("dialog[open] .broke").wait_for()
        took.append(page.evaluate("performance.now() - window.began") / 1000)
        if took[-1] <= LIMIT_S:
            break
    assert min(took) <= LIMIT_S


def test_paper_has_the_failing_cells_and_their_whole_message(open_page: Open, report: Path) -> None:
    opened = open_page(report)
    opened.page.emulate_media(media="print")
    hidden = opened.page.locator("button:visible, select:visible, input:visible")
    assert hidden.count() == 0
    for message in opened.page.locator(".failing pre").all():
        assert message.bounding_box() is not None
    background = opened.page.evaluate(
        "getComputedStyle(document.querySelector('.verdict')).colorScheme"
    )
    assert background == "light"
    pages = pdf_text.pages(opened.page.pdf(format="A4", print_background=True))
    printed = pdf_text.squeezed("".join(pages))
    assert len(pages) >= 2
    for cell in example()["cells"][: len(FAILING)]:
        assert pdf_text.squeezed(cell["message"]) in printed
    assert BROKEN in printed
    assert "[40.3,44.3]" in printed
