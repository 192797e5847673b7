"""Names in the documentation exist: options, commands, extras, files, links, also where nothing is run."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner

from dllm_qbench import cli, pytest_options, pytest_plugin
from dllm_qbench.quant.audits import AUDITS
from tests.docs.blocks import ROOT, pages, tokens

TOP = ("baselines", "dllm_qbench", "docs", "examples", "tests", "tools", ".ci", ".github")
FOREIGN = {"tests/lmeval/test_lmeval.py"}
"""Files of other projects that are named by their path there: llm-compressor's gate."""
FIXTURES = sorted(
    value.name or name
    for name, value in vars(pytest_plugin).items()
    if type(value).__name__ == "FixtureFunctionDefinition"
)


def _commands() -> dict[str, tuple[str, ...]]:
    """Each command as it is typed, by its words: ``baseline show`` is one of a group."""
    apps: dict[tuple[str, ...], Any] = {(): cli.app}
    apps |= {(str(group.name),): group.typer_instance for group in cli.app.registered_groups}
    found = [
        (*group, command.name or (command.callback.__name__ if command.callback else ""))
        for group, app in apps.items()
        for command in app.registered_commands
    ]
    words = [tuple(word.replace("_", "-") for word in parts) for parts in found]
    return {" ".join(parts): parts for parts in words}


COMMANDS = _commands()
GROUPS = {parts[0] for parts in COMMANDS.values() if len(parts) == 2}
_CALL = r"(?:^|`|\$ )qbench ([a-z]+(?:-[a-z]+)*(?: [a-z]+(?![^\s`]))?)"


def _options() -> list[str]:
    parser = pytest.Parser(_ispytest=True)
    pytest_options.add_options(parser)
    return [name for option in parser.getgroup("qbench").options for name in option.names()]


OPTIONS = _options()
# Of tests/benchmarks/plugin.py, which only this repository's own runs load.
BENCHMARKS = ["--qbench-every-shape", "--qbench-update-benchmarks"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages())
def test_options_exist(page: str) -> None:
    known = {*OPTIONS, *BENCHMARKS}
    named = set(re.findall(r"--qbench-[a-z]+(?:-[a-z]+)*", text_of(page)))
    assert named <= known, page
    twins = {name.removeprefix("--").replace("-", "_") for name in OPTIONS}
    assert set(re.findall(r"\bqbench_(?!cell|lm|job|run|subject_)[a-z_]+", text_of(page))) <= (
        twins | set(FIXTURES)
    ), page


@pytest.mark.parametrize("page", pages())
def test_commands_exist(page: str) -> None:
    named = {command_of(words) for words in re.findall(_CALL, text_of(page), re.M)}
    assert named <= {*COMMANDS, *GROUPS}, page


def command_of(words: str) -> str:
    """The command that text after ``qbench`` names: two words where the first is a group."""
    first = words.split(" ")[0]
    return words if first in GROUPS else first


@pytest.mark.parametrize("page", pages())
def test_options_of_commands_exist(page: str) -> None:
    text = text_of(page).replace("\\\n", " ")
    for words, given in re.findall(_CALL + r"([^\n`|&;#>]*)", text, re.M):
        name = command_of(words)
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", given))
        assert options <= options_of(name), f"{page}: qbench {name}{given}"


@cache
def options_of(command: str) -> set[str]:
    """What ``--help`` names."""
    told = (
        CliRunner().invoke(cli.app, [*command.split(" "), "--help"], env={"COLUMNS": "200"}).output
    )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", told))


@pytest.mark.parametrize("page", pages())
def test_extras_exist(page: str) -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = re.findall(r"(?:dllm-qbench|\.)\[([a-z,]+)\]", text_of(page))
    assert {e for group in named for e in group.split(",")} <= set(
        project["optional-dependencies"]
    ), page


@pytest.mark.parametrize("page", pages())
def test_files_that_are_named_exist(page: str) -> None:
    """What stands in backticks and begins with a folder of the repository is a file or a folder of it.

    Commands are cut into words; ``*`` and ``<...>`` stand for names.
    """
    for token in tokens(page):
        for child in token.children or ():
            if child.type != "code_inline":
                continue
            for word in re.split(r"[\s=]+", child.content):
                path = word.partition("::")[0].rstrip(".,:;")
                if path.split("/")[0] in TOP and "/" in path and path not in FOREIGN:
                    pattern = re.sub(r"<[^>]*>", "*", path).rstrip("/")
                    assert list(ROOT.glob(pattern)), f"{page}: {word} does not exist"


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for token in tokens(page):
        for child in token.children or ():
            url = str(child.attrs.get("href", child.attrs.get("src", "")))
            parts = urlsplit(url)
            if not url:
                continue
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https", f"{page}: {url}"
                assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), f"{page}: {url}"
                continue
            target = (folder / unquote(parts.path)).resolve() if parts.path else ROOT / page
            assert target.exists(), f"{page}: {url} leads to no file"
            if parts.fragment and target.suffix == ".md":
                assert parts.fragment in anchors(target), f"{page}: {url} leads to no heading"


def anchors(path: Path) -> set[str]:
    """What links to the headings of a file are, as GitHub and the site make them."""
    found, parsed = set(), tokens(str(path.relative_to(ROOT)))
    for token, following in pairwise(parsed):
        if token.type == "heading_open":
            text = "".join(c.content for c in following.children or ())
            found.add(re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-"))
    return found


def test_concepts_name_every_audit() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", text_of("docs/concepts.md"), re.M)
    assert rows == list(AUDITS)


def test_tables_of_the_paper_are_those_of_its_files() -> None:
    from dllm_qbench.paper_files import read_paper
    from tools.paper_page import PAGE, rewritten

    text = PAGE.read_text(encoding="utf-8")
    assert rewritten(text, read_paper()) == text, "run python tools/paper_page.py"
    assert text.count("| GPTQ always loses less than AWQ: 6 of 14 comparisons say no |") == 1
