"""Texts of records come from other people's code: on the page they are text, wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dllm_qbench.report.page import write_page
from tests.browser.conftest import Open
from tests.helpers.report_example import example

HOSTILE = "</script></style><img src=x onerror=window.hit=1>\"'{{ 7*7 }}<!--"
_KEPT = {"version", "png"}


def poisoned(value: Any, name: str = "") -> Any:
    """The same data with the hostile text at the end of every text and of every name that is data."""
    if isinstance(value, str):
        return value if name in _KEPT else value + HOSTILE
    if isinstance(value, list):
        return [poisoned(inner, name) for inner in value]
    if isinstance(value, dict):
        names = name in {"counts", "profiles", "items", "of-items", "peaks"}
        inside = "of-items" if name == "items" else None
        return {
            (key + HOSTILE if names else key): poisoned(inner, inside or key)
            for key, inner in value.items()
        }
    return value


def test_hostile_texts_are_shown_and_do_nothing(open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(poisoned(example()), path)
    opened = open_page(path)
    page = opened.page
    page.locator("#roofline").scroll_into_view_if_needed()
    page.locator("#roofline .plot.drawn").wait_for()
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.locator("a.c").count() == 30
    page.locator("a.c").nth(7).click()
    page.locator("dialog .plot.drawn").nth(4).wait_for()
    for selector in ("#d-name", ".broke", ".answers pre >> nth=0", ".answers code >> nth=0"):
        assert HOSTILE in page.locator(f"dialog {selector}").inner_text()
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main img").count() == 2
    assert opened.watch.problems == []
