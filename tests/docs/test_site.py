"""The site builds without a warning, loads nothing from elsewhere, and no link of it is broken.

sphinx-build -W -n docs site
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import ROOT

COMMAND = "sphinx-build -W -n docs site"
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
"""What a browser fetches by itself."""

if find_spec("sphinx") is None or find_spec("myst_parser") is None or find_spec("furo") is None:
    pytest.skip('the generator is missing: pip install -e ".[docs]"', allow_module_level=True)


class Page(HTMLParser):
    """What a page loads, where its links lead, and the names that links may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.names.add(given.get("id", ""))
        for name, value in given.items():
            if (tag, name) in LOADED and given.get("rel") not in ("canonical", "license"):
                self.loads.append(value)
            if (tag, name) == ("a", "href"):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *COMMAND.split()[1:-1], str(out), "-q"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return out


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    """Every page of it."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(built: dict[Path, Page], site: Path) -> None:
    sources = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    assert len(sources) > 20
    assert {site / p.with_suffix(".html") for p in sources} <= set(built)


def test_nothing_is_loaded_from_elsewhere(built: dict[Path, Page], site: Path) -> None:
    for path, page in built.items():
        for url in page.loads:
            parts = urlsplit(url)
            assert not parts.scheme or parts.scheme == "data", f"{path.name} loads {url}"
            assert not parts.netloc, f"{path.name} loads {url}"
    for sheet in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8"), flags=re.DOTALL)
        for url in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text):
            assert not re.match(r"(https?:)?//", "".join(url)), f"{sheet.name} loads {url}"


def test_every_link_inside_leads_somewhere(built: dict[Path, Page]) -> None:
    checked = 0
    for path, page in built.items():
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https", f"{path.name}: {url}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {url} leads to no file"
            if target in built:
                name = unquote(parts.fragment)
                assert name in built[target].names, f"{path.name}: {url} leads to no heading"
            checked += 1
    assert checked > 1000


def test_public_names_are_on_the_page(built: dict[Path, Page], site: Path) -> None:
    import dllm_qbench as qb
    from dllm_qbench import kernels

    names = built[site / "api.html"].names
    public = set(qb.__all__) - {"__version__"}
    assert {f"dllm_qbench.{name}" for name in public} <= names
    names = built[site / "kernels.html"].names
    assert {f"dllm_qbench.kernels.{name}" for name in kernels.__all__} <= names


def test_reference_has_every_option_fixture_and_command(site: Path) -> None:
    from tests.docs.test_words import COMMANDS, FIXTURES, OPTIONS, options_of

    plugin = (site / "plugin.html").read_text(encoding="utf-8")
    commands = (site / "command_line.html").read_text(encoding="utf-8")
    plugin, commands = (re.sub(r"<[^>]+>", "", text) for text in (plugin, commands))
    assert [option for option in OPTIONS if option not in plugin] == []
    assert [name for name in FIXTURES if name not in plugin] == []
    assert [name for name in COMMANDS if f"qbench {name}" not in commands] == []
    for name in COMMANDS:
        options = options_of(name) - {"--help"}
        assert {option for option in options if option not in commands} == set(), name
