"""Pictures of a report for the README and the docs: ``python -m tools.report_screenshots PAGE OUT [CELL]``.

Writes ``light.png`` and ``dark.png`` (the first screen at 1440 x 900), ``cell.png`` and ``cell_dark.png`` (a
cell's view: the one named, or the worst) and ``phone.png`` (360 x 800) into the folder OUT. Needs
playwright and a Chromium on the PATH; with PIL the files are a third of the size.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from tools.browser import MissingBrowser, launched

_DESKTOP: Final = (1440, 900)
_PHONE: Final = (360, 800)
_APART: Final = 8
"""Sum of differences over red, green and blue."""


def main(page: Path, folder: Path, cell: str | None = None) -> None:
    """Take the five pictures; say what is missing where they cannot be taken."""
    if not page.is_file():
        raise SystemExit(f"{page}: no such file; make it with qbench report or --qbench-html")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with launched("--hide-scrollbars") as browser:
            _shot(browser, page, folder / "light.png", "light", _DESKTOP)
            _shot(browser, page, folder / "dark.png", "dark", _DESKTOP)
            _shot(browser, page, folder / "phone.png", "light", _PHONE)
            _shot(browser, page, folder / "cell.png", "light", _DESKTOP, cell or "")
            _shot(browser, page, folder / "cell_dark.png", "dark", _DESKTOP, cell or "")
    except MissingBrowser as missing:
        raise SystemExit(str(missing)) from missing


def _shot(
    browser: Any,
    page: Path,
    path: Path,
    scheme: str,
    size: tuple[int, int],
    cell: str | None = None,
) -> None:
    """One picture; ``cell`` opens one first, the worst where it is empty."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        device_scale_factor=2 if width < 500 else 1,
    )
    shown = context.new_page()
    shown.goto(page.resolve().as_uri())
    if cell is not None:
        links = "[...document.querySelectorAll('a.c')]"
        shown.evaluate(
            f"(id) => {{ const all = {links}; const found = id ? all.find((one) => decodeURIComponent("
            "one.hash) === `#cell=${id}`) : all.sort((a, b) => a.dataset.i - b.dataset.i)[0];"
            " if (!found) throw new Error(`no cell ${id}`); found.click(); }",
            cell,
        )
        shown.locator("dialog[open] .body > .full").wait_for()
        plots = shown.locator("dialog .plot")
        for index in range(plots.count()):
            plots.nth(index).and_(shown.locator(".drawn")).wait_for()
    path.write_bytes(_smaller(shown.screenshot()))
    context.close()


def _smaller(png: bytes) -> bytes:
    """The picture with a palette, where PIL is there to make one.

    The commonest colours that can be told apart, as they are: PIL's own palettes change large grounds a
    little, or lose the colour of a sign that has a few pixels only.
    """
    try:
        from PIL import Image
    except ImportError:
        return png
    import numpy as np

    with Image.open(BytesIO(png)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(np.int64)
    colors, inverse, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    chosen: list[int] = []
    for at in np.argsort(-counts):
        if all(np.abs(colors[at] - colors[one]).sum() > _APART for one in chosen):
            chosen.append(int(at))
        if len(chosen) == 256:
            break
    distances = np.abs(colors[:, None, :] - colors[chosen][None, :, :]).sum(axis=2)
    indices = distances.argmin(axis=1)[inverse].reshape(pixels.shape[:2]).astype(np.uint8)
    reduced = Image.fromarray(indices, "P")
    reduced.putpalette([int(part) for part in colors[chosen].ravel()])
    out = BytesIO()
    reduced.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
