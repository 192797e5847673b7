"""Every command and every piece of code in the documentation is run, or says why it cannot be here."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from doctest import ELLIPSIS, OutputChecker

import pytest
import yaml

from tests.docs.blocks import (
    DECLARED,
    ROOT,
    Block,
    Unclear,
    _with,
    blocks,
    pages,
    programs,
    tokens,
)
from tests.docs.conftest import Clone

PAGES = [page for page in pages() if blocks(page)]
ALL = [block for page in PAGES for block in blocks(page)]
# Page -> what its commands need beyond the extra test, and the extra that brings it.
OPTIONAL = {"docs/checkpoint.md": ("compressed_tensors", "checkpoints")}


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs(page: str, clone: Clone) -> None:
    """Blocks in their order; those of Python that no command stands between, as one script."""
    if page in OPTIONAL:
        module, extra = OPTIONAL[page]
        pytest.importorskip(module, reason=f"pip install 'dllm-qbench[{extra}]'")
    script = ""
    for block in blocks(page):
        code = block.to_run
        is_script = block.language == "python" and not block.is_test and block.file is None
        if script and not is_script:
            clone.python(script, page)
            script = ""
        for commands in block.before:
            clone.shell(commands)
        if code is None:
            continue
        if block.file is not None:
            (clone.folder / block.file).write_text(code, encoding="utf-8")
        elif block.is_test:
            name = f"test_{re.sub(r'[^a-z]', '_', page.lower())}_{block.line}.py"
            (clone.folder / name).write_text(code, encoding="utf-8")
            options = [change for change in block.changes if change.startswith("--")]
            clone.shell(f"pytest -q {name} {' '.join(options)}")
        elif is_script:
            # Blank lines in front, so that a traceback names the page's own line.
            script += "\n" * max(0, block.line - 1 - script.count("\n")) + code + "\n"
        elif block.language == "console" and block.instead is None:
            session(code, clone, block.place)
        else:
            clone.shell(code)
    if script:
        clone.python(script, page)


def session(code: str, clone: Clone, place: str) -> None:
    """Run lines that begin with ``$``; what each prints is what stands below it (``...``: anything)."""
    checker = OutputChecker()
    for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
        command, _, wanted = part.partition("\n")
        seen = clone.shell(command)
        assert checker.check_output(wanted, seen, ELLIPSIS), f"{place}: {command} printed\n{seen}"


@pytest.mark.parametrize("block", [b for b in ALL if b.instead], ids=lambda b: b.place)
def test_twin_runs_the_same_programs(block: Block) -> None:
    if block.language == "python":
        names = re.compile(r"\b(\w+)\(")
        wanted = {*names.findall(block.code)} - {*dir(__builtins__), "Path"}
        assert wanted <= {*names.findall(block.instead or "")}, block.place
        return
    said = "\n".join((*block.before, block.instead or ""))
    gone = programs(block.code) - programs(said)
    assert not gone, f"{block.place}: {', '.join(sorted(gone))} is not run by {said!r}"


@pytest.mark.parametrize("block", [b for b in ALL if b.elsewhere], ids=lambda b: b.place)
def test_what_runs_elsewhere_stands_there(block: Block) -> None:
    text = (ROOT / str(block.elsewhere)).read_text(encoding="utf-8")
    for command in re.split(r" && |\n", block.code.strip()):
        assert command in text, f"{block.place}: {block.elsewhere} does not run {command!r}"


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.needs and not b.instead], ids=lambda b: b.place
)
def test_only_the_network_leaves_nothing_to_run(block: Block) -> None:
    assert block.needs in ("the network", "GitHub", "a Slurm cluster"), block.place


@pytest.mark.parametrize(("page", "begin"), DECLARED)
def test_declarations_belong_to_one_block_each(page: str, begin: str) -> None:
    assert sum(block.code.startswith(begin) for block in blocks(page)) == 1


@pytest.mark.parametrize("page", pages())
def test_what_is_shown_can_be_read(page: str) -> None:
    for token in tokens(page):
        language = token.info.strip() if token.type == "fence" else ""
        if language == "json":
            json.loads(token.content)
        elif language == "toml":
            tomllib.loads(token.content)
        elif language == "yaml":
            yaml.safe_load(token.content)
        elif language == "ini":
            configparser.ConfigParser().read_string(token.content)


# --- the collector itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```\nls\n```\n", "language ''"),
        ("```bash\nls\n```\n", "language 'bash'"),
        ("text\n\n    ls\n", "indented"),
        ("<!-- test: instead: ls -->\ntext\n", "stands above no block"),
        ("<!-- test: skip -->\n```sh\nls\n```\n", "is no declaration"),
        ("<!-- test: perhaps: ls -->\n```sh\nls\n```\n", "'perhaps' is unknown"),
        ("<!-- test: needs patience: ls -->\n```sh\nls\n```\n", "needs patience"),
    ],
)
def test_unclear_pages_are_refused(
    text: str, why: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path
    (folder / "page.md").write_text(text)  # type: ignore[attr-defined]
    monkeypatch.setattr("tests.docs.blocks.ROOT", folder)
    with pytest.raises(Unclear, match=re.escape(why)):
        blocks("page.md")


def test_a_change_that_fits_nothing_is_refused() -> None:
    block = _with(Block("p.md", 1, "sh", "ls\n"), "with: 500 -> 20")
    with pytest.raises(Unclear, match="is no OLD -> NEW"):
        _ = block.to_run


def test_failing_commands_fail(clone: Clone) -> None:
    with pytest.raises(AssertionError, match="exit status 3"):
        clone.shell("true\n(exit 3)\ntrue")
    with pytest.raises(AssertionError, match="pipe"):
        clone.shell("false | cat  # pipe")
    with pytest.raises(AssertionError, match=r"ZeroDivisionError|exit status 1"):
        clone.python("\n1 / 0\n", "page.md")
    with pytest.raises(AssertionError, match="echo b printed"):
        session("$ echo b\na\n", clone, "page.md")


def test_programs_are_told_by_what_they_do() -> None:
    assert programs("for i in 1 2; do pytest -m quick; done\n# no\nqbench merge a b") == {
        "pytest",
        "qbench merge",
    }
    assert programs("python -m tools.scale --size 1b | head") == {"python -m tools.scale", "head"}
