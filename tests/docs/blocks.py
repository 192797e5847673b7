"""Code in the documentation, and how a test is to run it.

A fenced block of ``sh``, ``console`` or ``python`` is run as it stands, unless comments right above it say
otherwise::

    <!-- test: before: COMMANDS -->        run these first
    <!-- test: with: 500 -> 20 -->         as it stands, but for this text
    <!-- test: file: NAME -->              it is a file of this name, which later blocks use
    <!-- test: instead: COMMANDS -->       cheaper ones, of the same programs
    <!-- test: needs a GPU: COMMANDS -->   what can be run without what is missing here
    <!-- test: needs the network -->       nothing can
    <!-- test: elsewhere: FILE -->         FILE, of the tests or of CI, runs these very commands

Files that have no such comments (README.md, CONTRIBUTING.md, what a tool writes) have theirs in ``DECLARED``,
by how a block begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).parents[2]
RUN: Final = frozenset({"sh", "console", "python"})
SHOWN: Final = frozenset({"text", "json", "toml", "yaml", "ini", "diff"})
"""Languages of what is not run; what has a syntax is parsed."""
MISSING: Final = frozenset(
    {
        "a GPU",
        "several GPUs",
        "weights",
        "the network",
        "a Ray cluster",
        "a Slurm cluster",
        "GitHub",
        "two cores for some minutes",
        "a quiet machine for some minutes",
    }
)
"""What a block may need that is not here."""
DECLARED: Final = {
    ("README.md", "python3 -m venv .venv && . .venv/bin/activate"): (
        # Run for real, and looked at in a browser, by tests/browser/test_planted_fault.py.
        "instead:\npython3 -m venv --without-pip .venv && . .venv/bin/activate\npip --version\n"
        "pytest -m quick -k llada-embedded-gptq-W4A16 -p examples.planted_fault"
        " --qbench-html=report.html --collect-only -q"
    ),
    ("README.md", 'pip install -c constraints.txt -e ".[test]" && pytest -m quick -n 2'): (
        "elsewhere: tests/unit/test_readme.py"
    ),
    ("README.md", 'pip install -c constraints.txt -e ".[dev]" && pytest -n 2'): (
        "elsewhere: .ci/run"
    ),
    ("README.md", "pytest tests/benchmarks"): "elsewhere: .ci/run",
    # Run for real by tests/unit/test_example_project.py.
    ("README.md", "cd examples/own_quantizer && pytest"): (
        "with: && pytest -> && pytest -o testpaths=tests --collect-only -q"
    ),
    ("README.md", "qbench doctor --tier full --device cuda"): (
        "before: qbench doctor --tier full --device cuda > doctor.txt || test $? = 1\n"
        "before: pytest -m full --qbench-run-programs --collect-only -q\n"
        "needs a GPU and weights: qbench compare paper paper"
    ),
    ("README.md", "import dllm_qbench as qb"): (
        "with: items=500 -> items=20\nwith: seed=0) -> seed=0, sequences=128)"
    ),
    ("README.md", "def test_my_cell(gptq, qbench_cell):"): (
        "with: gptq -> rtn\nwith: --qbench-model=llada-embedded --qbench-items=20"
    ),
    ("CONTRIBUTING.md", 'pip install -c constraints.txt -e ".[dev]"'): "elsewhere: .ci/run",
    ("CONTRIBUTING.md", "pytest -m quick -k gptq --qbench-items=2000 --qbench-update"): (
        'instead:\npytest -m quick -k "llada and rtn-W8A8-general" --qbench-items=20'
        " --qbench-baselines=new --qbench-update || test $? = 1\n"
        "git diff --no-index baselines/ new/ > difference.txt || test $? = 1"
    ),
    ("CONTRIBUTING.md", "python tools/reruns.py runs --vary seeds --runs 0..8"): (
        "instead:\npython tools/reruns.py --help\npython tools/noise_floors.py --help"
    ),
    # One measured cell under the names of all.
    ("CONTRIBUTING.md", "pytest -m quick --qbench-records=run.jsonl"): (
        'before: pytest -m quick -k "llada and rtn-W8A8-general" --qbench-items=20'
        " --qbench-records=run.jsonl\n"
        "instead: "
        "python -c '\n"
        "import json\nfrom pathlib import Path\n"
        'one = json.loads(Path("run.jsonl").read_text())\n'
        "lines = [\n"
        '    json.dumps(one | {"model": file.stem, "cell": cell})\n'
        '    for file in sorted(Path("baselines").glob("*.json"))\n'
        '    for cell in json.loads(file.read_text())["cells"]\n'
        "]\n"
        'Path("all-cells.jsonl").write_text("\\n".join(lines))\n'
        "'\n"
        "python tools/readme_tables.py all-cells.jsonl"
    ),
    # Written by a tool, which others may run.
    ("docs/other_libraries.md", "tox -e others-torchao"): (
        "needs the network: pytest -o markers=others -m others --collect-only -q"
        " tests/test_other_libraries.py"
    ),
}
_COMMENT: Final = re.compile(r"<!--\s*test:\s*(.*?)\s*-->", re.DOTALL)


class Unclear(ValueError):
    """A block, or what is declared of it, that no test can act on."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its file, from the root.
        line: the first of the code.
        before: commands that are run first.
        instead: what is run in place of the code.
        changes: pairs of text to replace in the code; of a test also options of its run.
        needs: what is missing here, in words.
        elsewhere: the file that runs the code.
        file: what the code is stored as, instead of being run.
    """

    page: str
    line: int
    language: str
    code: str
    before: tuple[str, ...] = ()
    instead: str | None = None
    changes: tuple[str, ...] = ()
    needs: str | None = None
    elsewhere: str | None = None
    file: str | None = None

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.page}:{self.line}"

    @property
    def is_test(self) -> bool:
        """Whether the code is a test file rather than a script."""
        return self.language == "python" and re.search(r"^def test_", self.code, re.M) is not None

    @property
    def to_run(self) -> str | None:
        """The code that a test runs, if any."""
        if self.instead is not None:
            return self.instead
        if self.needs is not None or self.elsewhere is not None:
            return None
        code = self.code
        for change in self.changes:
            if self.is_test and change.startswith("--"):
                continue
            old, arrow, new = change.partition(" -> ")
            if not arrow or old not in code:
                raise Unclear(f"{self.place}: {change!r} is no OLD -> NEW of this block")
            code = code.replace(old, new)
        return code


def pages() -> list[str]:
    """Every page, from the root: those of ``docs/`` and the two beside it."""
    found = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    return ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in found)]


def tokens(page: str) -> list[Token]:
    """A page's Markdown, parsed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are commands or code, with what is declared of each.

    Raises:
        Unclear: a block without a language or in an unknown one, an indented one, a declaration that is
            none or that belongs to no block.
    """
    found, said = [], []
    for token in tokens(page):
        line = token.map[0] + 2 if token.map else 0
        if token.type == "html_block" and _COMMENT.search(token.content):
            said += _COMMENT.findall(token.content)
            continue
        if token.type == "code_block":
            raise Unclear(f"{page}:{line}: an indented block has no language; fence it")
        if token.type == "fence":
            language = token.info.strip().split(" ")[0]
            if language in RUN:
                said += _declared(page, token.content)
                found.append(_block(page, line, language, token.content, said))
                said = []
            elif language not in SHOWN and not language.startswith("{"):
                raise Unclear(
                    f"{page}:{line}: language {language!r}; expected one of"
                    f" {', '.join(sorted(RUN | SHOWN))}"
                )
        if said and token.nesting >= 0 and token.type not in ("html_block", "fence"):
            raise Unclear(f"{page}:{line}: {said[-1]!r} stands above no block")
    return found


def _declared(page: str, code: str) -> list[str]:
    for (where, begin), said in DECLARED.items():
        if where == page and code.startswith(begin):
            return re.split(r"\n(?=(?:before|instead|with|needs)\b)", said)
    return []


def _block(page: str, line: int, language: str, code: str, said: list[str]) -> Block:
    block = Block(page, line, language, code)
    for text in said:
        block = _with(block, text)
    return block


def _with(block: Block, text: str) -> Block:
    head, colon, rest = text.partition(":")
    head, rest = head.strip(), rest.strip()
    if head.startswith("needs "):
        needs = head.removeprefix("needs ")
        unknown = set(re.split(r" and |, ", needs)) - MISSING
        if unknown:
            raise Unclear(
                f"{block.place}: needs {', '.join(sorted(unknown))}; known: {sorted(MISSING)}"
            )
        return replace(block, needs=needs, instead=rest or None)
    if not colon or not rest:
        raise Unclear(f"{block.place}: {text!r} is no declaration; see tests/docs/blocks.py")
    if head == "before":
        return replace(block, before=(*block.before, rest))
    if head == "with":
        return replace(block, changes=(*block.changes, rest))
    if head == "instead":
        return replace(block, instead=rest)
    if head == "elsewhere":
        return replace(block, elsewhere=rest)
    if head == "file":
        return replace(block, file=rest)
    raise Unclear(f"{block.place}: {head!r} is unknown; see tests/docs/blocks.py")


# --- commands ----------------------------------------------------------------------------------

_WORDS: Final = frozenset(
    {
        "for",
        "do",
        "done",
        "if",
        "then",
        "fi",
        "test",
        "cp",
        "rm",
        "kill",
        "wait",
        "echo",
        "cd",
        "export",
    }
)
_INSTALL: Final = frozenset({"pip", "tox", "python3", "."})


def programs(script: str) -> set[str]:
    """The programs that a script runs, with the subcommand or file that says what they do.

    >>> sorted(programs("qbench merge all.jsonl a.jsonl && python tools/scale.py --size 1b  # both"))
    ['python tools/scale.py', 'qbench merge']
    """
    found = set()
    joined = script.replace("\\\n", " ")
    for line in re.split(r"&&|\|\||;|\n|\|", re.sub(r"(^|\s)#.*", "", joined, flags=re.M)):
        words = [word for word in line.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        while words and words[0] in ("do", "then", "!", "$"):
            words = words[1:]
        if not words or words[0] in _WORDS | _INSTALL:
            continue
        if words[0] == "qbench":
            found.add(" ".join(words[:2]))
        elif words[0] == "python":
            found.add(" ".join(words[:3] if words[1:2] == ["-m"] else words[:2]))
        else:
            found.add(words[0])
    return found
