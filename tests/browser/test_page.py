"""The page in Chromium: what it shows first, that nothing is cut off or loaded, and what a cell opens to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.checks import cut_off, low_contrast, on_first_screen
from tests.browser.conftest import Open
from tests.helpers.report_example import BROKEN, FAILING

CELL = "llada-embedded/gptq/W3A16-g64/math"
FRAGMENT = f"#cell={CELL}"
SIZES = pytest.mark.parametrize(("width", "height"), [(1440, 900), (360, 800)])
CHARTS = 5


@SIZES
def test_the_first_screen_says_what_fails_and_which_module_broke(
    open_page: Open, report: Path, width: int, height: int
) -> None:
    opened = open_page(report, width=width, height=height)
    assert opened.page.locator("h1").inner_text() == "3 of 30 cells fail"
    assert on_first_screen(opened.page, "h1")
    assert BROKEN in opened.page.locator(".first").inner_text()
    assert on_first_screen(opened.page, ".first")
    assert opened.page.locator(".failing .broke").first.inner_text() == BROKEN
    assert on_first_screen(opened.page, ".failing .broke")


@SIZES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_pale_or_loaded(
    open_page: Open, report: Path, width: int, height: int, scheme: str
) -> None:
    opened = open_page(report, width=width, height=height, color_scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.locator("#roofline").scroll_into_view_if_needed()
    page.locator("#roofline .plot.drawn").wait_for()
    assert cut_off(page) == []
    assert low_contrast(page) == []
    page.locator(f'a.c[href="{FRAGMENT}"]').click()
    page.locator(".plot.drawn").nth(CHARTS).wait_for()
    page.evaluate("document.querySelectorAll('dialog details').forEach((one) => (one.open = true))")
    assert cut_off(page) == []
    assert low_contrast(page) == []
    assert opened.watch.problems == []


def test_a_cell_opens_to_the_layer_the_charts_and_the_answers(
    open_page: Open, report: Path
) -> None:
    opened = open_page(report)
    dialog = opened.page.locator("dialog#cell")
    assert not dialog.is_visible()
    opened.page.locator(f'a.c[href="{FRAGMENT}"]').click()
    dialog.locator(".plot.drawn").nth(CHARTS - 1).wait_for()
    assert dialog.locator(".broke").inner_text() == BROKEN
    assert "degraded" in dialog.locator("#d-status").inner_text()
    # The suspect is marked in both profiles: by its name in the chart, and in words below it.
    for chart in dialog.locator(".chart.wide").all():
        assert BROKEN in (chart.locator(".plot svg").text_content() or "")
        assert f"Suspect: {BROKEN}" in chart.locator(".sentence").inner_text()
    # What is under the pointer is told inside the dialog, which nothing of the page's can cover.
    dialog.locator(".chart.wide .mark-symbol path").nth(3).hover()
    tip = dialog.locator(".chart.wide .tip:visible")
    assert "model.layers.0.self_attn.o_proj" in tip.inner_text()
    assert "baseline, dB" in tip.inner_text()
    answers = dialog.locator(".answers > li")
    assert answers.count() == 6
    assert [text.split()[0] for text in answers.all_inner_texts()] == ["lost"] * 4 + ["gained"] * 2
    assert "3 + 3 =" in answers.nth(3).inner_text()
    for wanted in ("two-step", "calibration.sequences", "cb4aafc7c0bb", "2.13.0+cpu", "-> 21.0 dB"):
        assert wanted in dialog.inner_text()
    assert opened.watch.problems == []


def test_the_keyboard_opens_a_cell_and_comes_back_to_it(open_page: Open, report: Path) -> None:
    page = open_page(report).page
    place = "document.activeElement.getAttribute('href')"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('c')"):
            break
    first = page.evaluate(place)
    assert first == "#cell=llada-embedded/rtn/W4A16-g64/general"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    there = page.evaluate(place)
    assert there == "#cell=llada-embedded/gptq/W4A16-g64/math"
    page.keyboard.press("Enter")
    page.locator("dialog[open] .broke").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    assert page.evaluate(place) == there
    assert page.evaluate("location.hash") == ""


def test_the_neighbours_are_a_key_away_and_close_where_they_are(
    open_page: Open, report: Path
) -> None:
    page = open_page(report, FRAGMENT).page
    title = page.locator("#d-name")
    page.locator("dialog[open] .broke").wait_for()
    assert title.inner_text() == "gptq W3A16-g64 math"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('d-name').innerText !== 'gptq W3A16-g64 math'")
    assert title.inner_text() == "gptq W4A16-g64 math"
    page.locator("#d-before").click()
    page.wait_for_function("document.getElementById('d-name').innerText !== 'gptq W4A16-g64 math'")
    page.locator("#d-close").click()
    assert page.evaluate("document.activeElement.getAttribute('href')") == FRAGMENT


def test_a_link_to_a_cell_opens_it(open_page: Open, report: Path) -> None:
    opened = open_page(report, FRAGMENT)
    opened.page.locator("dialog[open] .broke").wait_for()
    assert opened.page.locator("#d-name").inner_text() == "gptq W3A16-g64 math"
    opened.page.go_back()
    assert opened.watch.problems == []


def test_a_link_to_no_cell_opens_nothing(open_page: Open, report: Path) -> None:
    opened = open_page(report, "#cell=nobody%2Fhere")
    opened.page.wait_for_timeout(200)
    assert not opened.page.locator("dialog").is_visible()
    assert opened.watch.problems == []


@pytest.mark.parametrize(
    ("control", "value", "left"),
    [
        ("#f-status", "fails", 3),
        ("#f-status", "=infra", 1),
        ("#f-method", "gptq", 12),
        ("#f-model", "dream-embedded", 15),
        ("#f-text", "w3a16 math", 2),
        ("#f-text", "layers.2.mlp", 2),
        ("#f-text", "no such thing", 0),
    ],
)
def test_filters_leave_what_fits(
    open_page: Open, report: Path, control: str, value: str, left: int
) -> None:
    page = open_page(report).page
    field = page.locator(control)
    if control == "#f-text":
        page.keyboard.press("/")
        page.keyboard.type(value)
    else:
        field.select_option(value)
    assert page.locator("a.c:visible").count() == left
    assert page.locator("#f-count").inner_text() == f"{left} of 30 cells"
    assert page.locator(".heat tbody tr:visible").count() <= max(left, 0)
    page.locator("#filters button").click()
    page.wait_for_function("document.getElementById('f-count').textContent === '30 cells'")
    assert page.locator("a.c:visible").count() == 30


def test_the_theme_turns_and_the_charts_with_it(open_page: Open, report: Path) -> None:
    page = open_page(report, FRAGMENT, color_scheme="light").page
    page.locator(".plot.drawn").nth(CHARTS - 1).wait_for()
    ink = "getComputedStyle(document.querySelector('.plot .role-axis-label text')).fill"
    light = [page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")]
    page.keyboard.press("Escape")
    page.locator("#theme").click()
    page.evaluate(f"location.hash = {FRAGMENT!r}")
    page.locator(".plot.drawn").nth(CHARTS - 1).wait_for()
    dark = [page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")]
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert low_contrast(page) == []


def test_without_scripts_the_verdict_its_reasons_and_the_map_are_there(
    open_page: Open, report: Path
) -> None:
    page = open_page(report, java_script_enabled=False).page
    assert page.locator("h1").inner_text() == "3 of 30 cells fail"
    listed = page.locator(".failing > li")
    assert listed.count() == len(FAILING)
    assert "12 values are NaN" in listed.last.inner_text()
    for text in listed.all_inner_texts()[:-1]:
        assert BROKEN in text
        assert "17.1 dB" in text
    assert page.locator("a.c:visible").count() == 30
    assert "42.2" in page.locator(".heat").first.inner_text()
    assert not page.locator("#filters").is_visible()
    assert "JavaScript" in page.locator("noscript").inner_text()


def test_a_browser_that_cannot_unpack_says_so(open_page: Open, report: Path) -> None:
    page = open_page(report, FRAGMENT, before="delete window.DecompressionStream").page
    page.locator("dialog[open] .why").wait_for()
    assert "DecompressionStream" in page.locator("#d-body").inner_text()
    assert page.locator("#d-name").inner_text() == "Details cannot be shown"
    page.keyboard.press("Escape")
    assert page.locator("h1").inner_text() == "3 of 30 cells fail"
    assert page.locator("a.c:visible").count() == 30


def test_headings_descend_one_at_a_time_and_controls_have_names(
    open_page: Open, report: Path
) -> None:
    page = open_page(report, FRAGMENT).page
    page.locator("dialog[open] .broke").wait_for()
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input, a, img, [role=img], [role=region]')].filter("
        "(one) => !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.alt"
        " || one.textContent.trim() || one.labels?.[0]?.textContent.trim())).map((one) => one.outerHTML)"
    )
    assert nameless == []
    unscoped = page.evaluate("[...document.querySelectorAll('th:not([scope])')].length")
    assert unscoped == 0
