"""What is asked of a page that is open in a browser. Each check returns what is wrong, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request

# Elements with text of their own, as they are seen; inside a closed <details> or dialog nothing is.
_SEEN: Final = """
const seen = (element) => element.checkVisibility({checkVisibilityCSS: true, contentVisibilityAuto: true})
  && !element.closest('.visually-hidden, .skip, noscript, script, style, option');
const withText = [...document.querySelectorAll('body *')].filter((element) => seen(element)
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
const named = (element) => `<${element.tagName.toLowerCase()} class="${element.getAttribute('class')}"> `
  + element.textContent.trim().slice(0, 60);
"""

_CUT_OFF: Final = (
    "() => {"
    + _SEEN
    + """
  const root = document.documentElement;
  const wrong = [];
  if (root.scrollWidth > root.clientWidth) {
    wrong.push(`the page is ${root.scrollWidth} wide, ${root.clientWidth} are there`);
  }
  const scrolls = (element) => {
    for (let one = element; one; one = one.parentElement) {
      if (['auto', 'scroll'].includes(getComputedStyle(one).overflowX)) return one;
    }
    return null;
  };
  for (const element of withText) {
    const style = getComputedStyle(element);
    const own = style.display !== 'inline' && !(element instanceof SVGElement);
    if (own && !scrolls(element) && element.scrollWidth > element.clientWidth + 1) {
      wrong.push(`${element.scrollWidth} in a box of ${element.clientWidth}: ${named(element)}`);
    }
    const host = scrolls(element);
    const box = element.getBoundingClientRect();
    if (!host && box.width && (box.right > root.clientWidth + 1 || box.left < -1)) {
      wrong.push(`from ${Math.round(box.left)} to ${Math.round(box.right)}: ${named(element)}`);
    }
    if (host && host.tabIndex < 0 && host.scrollWidth > host.clientWidth + 1) {
      wrong.push(`scrolls, but not by the keyboard: ${named(host)}`);
    }
  }
  return wrong;
}"""
)

_LOW_CONTRAST: Final = (
    "() => {"
    + _SEEN
    + r"""
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const data = canvas.getImageData(0, 0, 1, 1).data;
    return [data[0], data[1], data[2], data[3] / 255];
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      layers.push(rgba(getComputedStyle(one).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const wrong = [];
  for (const element of withText) {
    const style = getComputedStyle(element);
    const back = behind(element);
    const text = rgba(element instanceof SVGElement ? style.fill : style.color);
    let opacity = 1;
    for (let one = element; one; one = one.parentElement) opacity *= Number(getComputedStyle(one).opacity);
    const front = over([text[0], text[1], text[2], text[3] * opacity], back);
    const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${ratio.toFixed(2)}: ${named(element)}`);
  }
  return [withText.length, [...new Set(wrong)]];
}"""
)


class Watch:
    """Collects what a page must not do: errors, warnings on its console, requests for anything but itself."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", self._request)
        self._page_itself: str | None = None

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning", "assert"}:
            self.problems.append(f"console {message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        url = request.url
        if self._page_itself is None and request.is_navigation_request():
            self._page_itself = url.split("#")[0]
        elif not url.startswith(("data:", "blob:")) and url.split("#")[0] != self._page_itself:
            self.problems.append(f"request: {url}")


def cut_off(page: Page) -> list[str]:
    """Texts wider than their box or than the window, and what scrolls but not by the keyboard."""
    found: list[str] = page.evaluate(_CUT_OFF)
    return found


def low_contrast(page: Page) -> list[str]:
    """Texts under WCAG's AA ratio against what lies behind them: 4.5, or 3 for large ones."""
    looked_at, wrong = page.evaluate(_LOW_CONTRAST)
    if looked_at < 5:
        return [f"only {looked_at} texts were found"]
    return list(wrong)


def on_first_screen(page: Page, selector: str) -> bool:
    """Whether the first such element lies in the window as a whole, before anything is scrolled."""
    box: Any = page.locator(selector).first.bounding_box()
    size = page.viewport_size
    assert box is not None
    assert size is not None
    return bool(
        box["x"] >= 0
        and box["y"] >= 0
        and box["x"] + box["width"] <= size["width"]
        and box["y"] + box["height"] <= size["height"]
    )
