"""The checks of the page catch what they are for: each is shown a page that is broken on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.checks import cut_off, low_contrast, on_first_screen
from tests.browser.conftest import Open


def test_a_page_wider_than_the_window_is_caught(open_page: Open, report: Path) -> None:
    page = open_page(report, width=360, height=800).page
    assert cut_off(page) == []
    page.evaluate("document.querySelector('h1').style.width = '700px'")
    assert any("the page is" in problem for problem in cut_off(page))


def test_a_text_wider_than_its_box_is_caught(open_page: Open, report: Path) -> None:
    page = open_page(report).page
    page.evaluate(
        "Object.assign(document.querySelector('.why').style,"
        " {width: '60px', overflow: 'hidden', whiteSpace: 'nowrap'})"
    )
    assert any("in a box of 60" in problem for problem in cut_off(page))


def test_what_scrolls_without_the_keyboard_is_caught(open_page: Open, report: Path) -> None:
    page = open_page(report, width=360, height=800).page
    page.evaluate("document.querySelectorAll('.map .scroll')[0].removeAttribute('tabindex')")
    assert any("not by the keyboard" in problem for problem in cut_off(page))


@pytest.mark.parametrize(
    ("selector", "rule"),
    [
        (".hint", "color: #b0b6c0"),
        ("footer p", "opacity: 0.4"),
        ("a.c b", "color: #7f9fc0"),
        (".bar text", "fill: #cccccc"),
    ],
)
def test_a_pale_text_is_caught(open_page: Open, report: Path, selector: str, rule: str) -> None:
    page = open_page(report, color_scheme="light").page
    assert low_contrast(page) == []
    name, value = rule.split(": ")
    page.evaluate(f"document.querySelector({selector!r}).style.setProperty({name!r}, {value!r})")
    assert len(low_contrast(page)) == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("console.error('broken')", "console error: broken"),
        ("console.warn('odd')", "console warning: odd"),
        ("throw new Error('thrown')", "error: thrown"),
        ("fetch('http://127.0.0.1:9/x').catch(() => 0)", "request: http://127.0.0.1:9/x"),
        ("new Image().src = 'other.png'", "other.png"),
    ],
)
def test_an_error_or_a_request_is_caught(
    open_page: Open, tmp_path: Path, script: str, said: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><link rel=icon href=data:,><script>{script}</script>")
    opened = open_page(path)
    opened.page.wait_for_timeout(100)
    assert any(said in problem for problem in opened.watch.problems)


def test_the_policy_keeps_the_page_from_loading_anything(open_page: Open, report: Path) -> None:
    opened = open_page(report)
    refused = opened.page.evaluate(
        "fetch('http://127.0.0.1:9/x').then(() => 'loaded', (error) => error.name)"
    )
    assert refused == "TypeError"
    assert any("Content Security Policy" in problem for problem in opened.watch.problems)
    assert not any(problem.startswith("request") for problem in opened.watch.problems)


def test_what_is_further_down_is_not_on_the_first_screen(open_page: Open, report: Path) -> None:
    page = open_page(report).page
    assert on_first_screen(page, "h1")
    assert not on_first_screen(page, "footer p")
