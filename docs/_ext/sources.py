"""README.md and CONTRIBUTING.md are pages of the site as well: links to them lead there.

In the sources such a link is an ordinary one (``../README.md#how-to-read-a-failure``), which also works
where Markdown is read from a checkout.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

PAGES: Final = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
"""Files beside ``docs/``, and the pages that take them in."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to what is read."""
    app.connect("source-read", lambda app, page, source: _links(source))
    app.connect("include-read", _included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _links(source: list[str]) -> None:
    for name, page in PAGES.items():
        source[0] = re.sub(rf"\]\(\.\./{re.escape(name)}(#[^)]*)?\)", rf"]({page}\1)", source[0])


def _included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Read from ``docs/``, what lies beside it is one folder less far, and ``docs/`` is here."""
    source[0] = re.sub(r"\]\(docs/", "](", source[0])
