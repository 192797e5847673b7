"""The report's page without a browser: its shape, its charts, its colours, its policy, its escaping."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.errors import QBenchError
from dllm_qbench.report.page import render, write_page
from tests.helpers.report_example import BROKEN, FAILING, example

ASSETS = resources.files("dllm_qbench.report").joinpath("assets")
HOSTILE = "</script></style><img src=x onerror=window.hit=1>\"'<!--"


@pytest.fixture(scope="module")
def page() -> str:
    return render(example())


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[int, str] = {}
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            at = len(self.tags) - 1
            self.raw[at] = self.raw.get(at, "") + data

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            self.raw.get(at, "")
            for at, (name, found) in enumerate(self.tags)
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (("version",), 2, "field version is 2, this page is made of version 1"),
        (("generated",), None, "field generated is None, expected text"),
        (("verdict", "failing"), -1, "field verdict.failing is -1, expected a whole number"),
        (("verdict", "fails"), 1, "field verdict.fails is 1, expected true or false"),
        (("cells", 3, "drop"), "x", "field cells[3].drop is 'x', expected a finite number"),
        (
            ("cells", 3, "drop"),
            float("nan"),
            "field cells[3].drop is nan, expected a finite number",
        ),
        (("cells", 0, "interval"), [1.0], "field cells[0].interval is [1.0], expected a list of 2"),
        (
            ("cells", 1, "discordant", "shown", 0, "item"),
            7,
            "cells[1].discordant.shown[0].item is 7",
        ),
        (("cells", 4, "layers", "local"), [1.0], "field cells[4].layers.local's length is 1"),
        (("cells", 4, "layers", "suspect"), 99, "field cells[4].layers.suspect is 99, expected"),
        (("cells", 2, "versions"), 1, "field cells[2].versions is 1, expected a position"),
        (
            ("models", 0, "rows", 1, "cells"),
            [0],
            "models[0].rows[1].cells is [0], expected a list of 3",
        ),
        (("models", 0, "rows", 1, "cells", 2), 30, "field models[0].rows[1].cells[2] is 30"),
        (("profiles", "llada-embedded", 2), 5, "field profiles['llada-embedded'][2] is 5"),
        (("comparison", "changed", 0, "cell"), 30, "field comparison.changed[0].cell is 30"),
        (("outliers", 0, "png"), "https://x/y.png", "field outliers[0].png is 'https://x/y.png'"),
        (("roofline", "roofs", "GB/s"), "fast", "field roofline.roofs.GB/s is 'fast'"),
    ],
)
def test_data_of_another_shape_is_an_error_that_names_the_field(
    at: tuple[str | int, ...], value: object, said: str
) -> None:
    data = example()
    inner: Any = data
    for part in at[:-1]:
        inner = inner[part]
    inner[at[-1]] = value
    with pytest.raises(QBenchError, match=re.escape(said)):
        render(data)


def _paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every named field of the data, the first of each list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from _paths(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


# Names of these are data, and what a bin or the fidelity holds beside what is drawn is nobody's promise.
_FREE = {"counts", "profiles", "items", "peaks", "fidelity", "agreement", "tokens", "contributors"}


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in _paths({**example(), "cells": example()["cells"][1:2]})
        if isinstance(path[-1], str) and not _FREE.intersection(path[-2:-1] or ())
        and not (_FREE - {"items"}).intersection(path[:-1]) and path[0] != "items"
        and path[-1] not in {"agreement", "tokens"}
    ],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_each_field_is_needed(path: tuple[str | int, ...]) -> None:
    from dllm_qbench.report.shape import check

    data = {**example(), "cells": example()["cells"][1:2], "comparison": None}
    for model in data["models"]:
        for row in model["rows"]:
            row["cells"] = [0, None, None]
    if path[0] == "comparison" and len(path) > 1:
        data["comparison"] = example()["comparison"]
        data["comparison"]["changed"] = data["comparison"]["changed"][:1]
        data["comparison"]["changed"][0]["cell"] = 0
    check(data)
    inner: Any = data
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    with pytest.raises(QBenchError, match=re.escape(str(path[-1]))):
        check(data)


def test_no_cell_at_all_is_a_page_too() -> None:
    data = example()
    data |= {"cells": [], "models": [], "profiles": {}, "items": {}, "environments": []}
    data |= {"comparison": None, "outliers": [], "roofline": None}
    data["verdict"] |= {"fails": False, "failing": 0, "cells": 0, "counts": {}, "first": []}
    data["verdict"]["headline"] = "No cell was measured"
    page = render(data)
    assert "No cell was measured</h1>" in page
    assert "behaves as its baseline allows" not in page


def test_the_same_data_is_the_same_page(page: str) -> None:
    assert render(example()) == page


def test_the_policy_admits_what_the_page_runs_and_nothing_else(page: str) -> None:
    elements = Elements(page)
    (policy,) = [
        found["content"] or ""
        for tag, found in elements.tags
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy"
    ]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["connect-src"] == "'none'"
    assert parts["img-src"] == "data:"
    assert "unsafe" not in policy
    (style,) = elements.texts("style")
    scripts = [
        elements.raw[at]
        for at, (tag, found) in enumerate(elements.tags)
        if tag == "script" and "type" not in found
    ]
    (library,) = elements.texts("script", id="library")
    allowed = [_hash(text) for text in (*scripts, unpacked(library))]
    assert parts["style-src"] == _hash(style)
    assert parts["script-src"].split() == allowed
    assert len(scripts) == 1


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_nothing_on_the_page_points_outside(page: str) -> None:
    for tag, found in Elements(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            target = found.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
        assert not [name for name in found if name.startswith("on")]
        assert "style" not in found


def test_the_details_are_the_data(page: str) -> None:
    (packed,) = Elements(page).texts("script", id="details")
    details = json.loads(unpacked(packed))
    data = example()
    assert details["profiles"] == data["profiles"]
    assert details["items"] == data["items"]
    assert [{**cell, "bar": None} for cell in details["cells"]] == [
        {**cell, "bar": None} for cell in data["cells"]
    ]


def test_the_failing_cells_stand_in_the_page_itself(page: str) -> None:
    main = page[page.index("<main>") : page.index("</main>")]
    # The ones that name a module come first.
    places = [main.index(text) for text in ("3 of 30 cells fail", "17.1 dB", "12 values are NaN")]
    assert places == sorted(places)
    for name in FAILING:
        assert f'id="cell={name}"' in main
    assert BROKEN.replace(".", ".<wbr>") in main
    assert main.count('<a class="c ') == 30


class Nesting(HTMLParser):
    """Elements that are open at the end, and ends that close something else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "img", "wbr", "br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize(("failing", "folded"), [(0, 0), (1, 0), (5, 0), (6, 2), (30, 26)])
def test_a_long_list_of_failing_cells_is_folded_after_the_first(failing: int, folded: int) -> None:
    data = example()
    for index, cell in enumerate(data["cells"]):
        cell["fails"] = index < failing
    page = render(data)
    nesting = Nesting(page)
    assert (nesting.open, nesting.wrong) == ([], [])
    assert page.count('data-of="') == failing
    found = re.search(r"<summary>(\d+) more failing cells", page)
    assert (int(found[1]) if found else 0) == folded
    shown = page[: found.start()] if found else page
    assert shown.count('data-of="') == failing - folded


def test_what_is_to_be_known_of_the_data_stands_below_the_verdict() -> None:
    text = render(example())
    (note,) = example()["notes"]
    assert note in text.partition('id="verdict"')[2].partition("</section>")[0]


def test_hostile_texts_stay_texts() -> None:
    plain = Elements(render(example()))
    data = example()
    for cell in data["cells"]:
        for name in ("id", "method", "scheme", "task", "status", "band", "message", "symptom"):
            cell[name] = f"{cell[name]}{HOSTILE}"
        cell["error"] = HOSTILE
    for model in data["models"]:
        model["tasks"] = [f"{task}{HOSTILE}" for task in model["tasks"]]
        model["items"] += HOSTILE
    data["verdict"] |= {"headline": HOSTILE, "whole_run": [], "first": [[HOSTILE, 2]]}
    data["notes"] = [HOSTILE]
    data["comparison"]["notes"] = [HOSTILE]
    data["environments"][0][0] = [HOSTILE, HOSTILE]
    data["outliers"][0]["alt"] = HOSTILE
    found = Elements(render(data))

    def count(elements: Elements, name: str) -> int:
        return sum(tag == name for tag, _ in elements.tags)

    for tag in ("img", "script", "style", "a", "pre", "th", "td", "h1", "iframe", "svg"):
        # The hostile error takes the place of "where"; all else stands as it stood.
        assert count(found, tag) == count(plain, tag), tag
    assert not [found for _, found in found.tags if found.get("src") == "x" or "onerror" in found]


def test_the_pages_own_style_and_script_end_no_element() -> None:
    files = [file for file in ASSETS.iterdir() if file.name.endswith((".js", ".css"))]
    assert len(files) >= 8
    for file in files:
        text = file.read_text("utf-8").lower()
        assert "</script" not in text
        assert "</style" not in text
        assert "<!--" not in text
        assert "innerhtml" not in text


def test_a_page_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QBenchError, match="cannot be written"):
        write_page(example(), tmp_path / "file" / "report.html")


def test_a_page_is_written_whole(tmp_path: Path, page: str) -> None:
    write_page(example(), tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == page
