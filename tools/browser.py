"""The system's Chromium, driven by playwright, for tests and tools that look at a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class MissingBrowser(RuntimeError):
    """There is no playwright, or no Chromium; the message says which, and how to get it."""


@contextmanager
def launched(*options: str) -> Iterator[Browser]:
    """Start the first Chromium on the PATH without a window; raise ``MissingBrowser`` where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingBrowser(
            'playwright is not installed: pip install -c constraints.txt -e ".[browser]"'
        ) from error
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise MissingBrowser(
            f"no browser: none of {', '.join(NAMES)} is on the PATH (apt install chromium)"
        )
    given = ["--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb", *options]
    if os.geteuid() == 0:
        given.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=given)
        try:
            yield browser
        finally:
            browser.close()
