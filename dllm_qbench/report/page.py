"""``render(data)``: a report's data as one HTML page, without network, and without script for what matters.

- The verdict, the failing cells with their reasons, the comparison and the heat map are plain HTML.
- What a cell opens to (profiles, answers, prompts) travels compressed and is unpacked by the first click;
  so does the chart library, most of the page.
- The page's policy admits its own style and scripts by their hashes and nothing else: no request leaves it.
- Texts of records are data everywhere: escaped by the template, put into the document as text by the script.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.report import charts, roofline_chart, shape, view

if TYPE_CHECKING:
    from jinja2 import Template

SCRIPTS: Final = ("unpack", "draw", "profile", "cell", "filters", "start")
STYLES: Final = ("report", "parts", "cell", "print")


def render(data: Mapping[str, Any]) -> str:
    """The whole page. Raises ``QBenchError`` naming the field of data of another version or shape."""
    shape.check(data)
    script, style, library = _joined(SCRIPTS, "js"), _joined(STYLES, "css"), _library()
    roofline = data["roofline"]
    details = {
        "cells": [cell | {"bar": view.bar(cell)} for cell in data["cells"]],
        "profiles": data["profiles"],
        "items": data["items"],
        "charts": charts.templates(),
        "roofline": roofline_chart.roofline(roofline) if roofline else None,
        "environments": data["environments"],
    }
    return _template().render(
        data=data,
        cells=data["cells"],
        failing=view.failing(data["cells"]),
        environments=view.environments(data["environments"]),
        policy=_policy(script, style, library),
        script=script,
        style=style,
        library=_packed(library),
        details=_packed(json.dumps(details, ensure_ascii=False, allow_nan=False)),
    )


def write_page(data: Mapping[str, Any], path: str | Path) -> None:
    """Replace ``path`` by the page in one step."""
    page = render(data)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise QBenchError(f"{path}: the report cannot be written: {error}") from error


def _policy(script: str, style: str, library: str) -> str:
    """What the browser lets the page do: nothing but its own style and scripts, and pictures inside it."""
    scripts = f"{_hash(script)} {_hash(library)}"
    return (
        f"default-src 'none'; connect-src 'none'; img-src data:; style-src {_hash(style)};"
        f" script-src {scripts}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    """Gzip in base64, the same bytes each time: nothing in it can end a script element."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs no other."""
    import vl_convert

    # Its stub asks for a snippet; without one the libraries are put on the window.
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle


@cache
def _joined(names: tuple[str, ...], kind: str) -> str:
    """The page's own style or script. It lies raw in the page, so it must not end its own element."""
    folder = resources.files("dllm_qbench.report").joinpath("assets")
    text = "\n".join(folder.joinpath(f"{name}.{kind}").read_text("utf-8") for name in names)
    return f'"use strict";\n(() => {{\n{text}\n}})();' if kind == "js" else text


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dllm_qbench.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "statuses": view.STATUSES,
        "steps": view.steps(),
        "grouped": view.grouped,
        "step": view.step,
        "sign_of": view.sign_of,
        "bar": view.bar,
        "reason": view.reason,
        "described": view.described,
        "fragment": view.fragment,
    }
    environment.filters |= {
        "number": view.number,
        "interval": view.interval,
        "p_value": view.p_value,
        "shown_time": view.shown_time,
    }
    return environment.get_template("page.html.j2")
