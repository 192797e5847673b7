"""A real browser: one for the whole session, the system's Chromium, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dllm_qbench.report.page import write_page
from tests.browser.checks import Watch
from tests.helpers.report_example import example
from tools.browser import MissingBrowser, launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass(frozen=True)
class Opened:
    """A page in the browser and what it did that it must not."""

    page: Page
    watch: Watch


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        with launched() as started:
            yield started
    except MissingBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """``open_page(path, fragment, width=..., height=..., before=script, **context)``: in a fresh context."""
    contexts = []

    def opening(
        path: Path,
        fragment: str = "",
        width: int = 1440,
        height: int = 900,
        before: str = "",
        **context: Any,
    ) -> Opened:
        made = browser.new_context(viewport={"width": width, "height": height}, **context)
        contexts.append(made)
        if before:
            made.add_init_script(before)
        page = made.new_page()
        page.set_default_timeout(30_000)  # of a machine that is busy
        watch = Watch(page)
        page.goto(path.as_uri() + fragment)
        return Opened(page, watch)

    yield opening
    for made in contexts:
        made.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's page."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(example(), path)
    return path
