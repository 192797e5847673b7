"""The Markdown summary of a run: the worst first, what changed, other people's text, GitHub's limit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from dllm_qbench import summary, summary_markdown
from dllm_qbench.cli_summary import summary as command
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.records import Record
from dllm_qbench.summary_changes import changes
from dllm_qbench.summary_files import read_outcomes
from dllm_qbench.verdict.bands import Band
from tests.helpers.records import LOCAL, PROFILE, PROVENANCE, make_record, spread

MATH, CODE, GENERAL = (f"gptq/W4A16-g64/{task}" for task in ("math", "code", "general"))
HOSTILE = (
    "a|b",
    "`x` ``y``",
    "<script>alert(1)</script>",
    "</details><img src=x onerror=y>",
    "[click](http://bad.example)",
    "see http://bad.example and www.bad.example",
    "two\nlines\r\n| and | a | row |",
    "@everyone *bold* _it_ ~~no~~ \\| \\",
    "tail\\",
    "![i](x)",
)


def outcome(
    cell: str = MATH,
    counts: tuple[int, int, int, int] = (80, 10, 2, 8),
    status: str = "equivalent",
    fails: bool = False,
    model: str = "toy",
    verdict: dict[str, Any] | None = None,
    **fields: Any,
) -> Outcome:
    """A judged cell, as a run with these counts of answers would leave it."""
    record = spread(make_record(counts=counts, cell=cell, model=model, **fields))
    made = Outcome.of_measurement(record, "told", band=Band("near-lossless", max_drop=2.5))
    said = {**(made.verdict or {}), **(verdict or {})}
    return replace(made, status=status, fails=fails, verdict=said)


def write(path: Path, outcomes: Sequence[Outcome]) -> Path:
    file = OutcomeFile(path)
    for one in outcomes:
        file.append(one)
    return path


class Page(HTMLParser):
    """What a browser would make of a page: its tags, the text of each cell of each table's row."""

    def __init__(self, markdown: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self._in_cell = False
        parser = MarkdownIt("commonmark", {"html": True}).enable("table")
        self.feed(parser.render(markdown))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def rows(markdown: str, columns: int) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    found = Page(markdown).rows
    assert {len(row) for row in found} <= {columns}
    return [row for row in found if row[0] != "cell"]


# --- one run


def test_failing_cells_come_first_then_by_status_then_by_drop() -> None:
    text = summary.render(
        [
            outcome("a/W8A8/math"),
            outcome("b/W8A8/math", (60, 30, 0, 10), "inconclusive"),
            outcome("c/W8A8/math", (50, 40, 0, 10), "inconclusive"),
            outcome("d/W8A8/math", status="improved", fails=True),
            outcome("e/W8A8/math", status="degraded", fails=True),
            Outcome("f/W8A8/math", "toy", "infra", error="NonFiniteError: NaN in layers.0"),
        ]
    )
    assert [row[0] for row in rows(text, 7)] == [f"{name}/W8A8/math" for name in "fedcba"]
    assert text.startswith("## Quantization fidelity: 3 of 6 cells fail\n")
    assert "1 infra, 1 degraded, 1 improved, 2 inconclusive, 1 equivalent." in text
    assert "NonFiniteError: NaN in layers.0" in text


def test_a_row_says_accuracies_drop_band_verdict_and_where() -> None:
    """90 of 100 right before, 82 after: 8.9 %, of the interval that the verdict gives."""
    place = {"first": "layers.1.q_proj", "why": "at 3 dB"}
    one = outcome(verdict={"place": place, "findings": [{"text": "the drop is surely above"}]})
    text = summary.render([replace(one, status="degraded", fails=True)])
    low, high = (one.verdict or {})["interval"]
    assert rows(text, 7) == [
        [
            MATH,
            "90.0",
            "82.0",
            f"8.9 [{low:.1f}, {high:.1f}]",
            "near-lossless <=2.5",
            "degraded",
            "layers.1.q_proj",
        ]
    ]
    assert "where: layers.1.q_proj: at 3 dB\n- the drop is surely above\n" in text
    assert "torch 2.13.0" in text


def test_models_have_tables_of_their_own_the_worst_first() -> None:
    text = summary.render(
        [outcome(model="sound"), outcome(model="broken", status="degraded", fails=True)]
    )
    assert text.index("### `broken`, 100 items a cell") < text.index("### `sound`, 100 items")


def test_what_only_the_whole_run_shows_is_told() -> None:
    tests = {"p_values": {"answers": 1e-9}, "lost": 40, "gained": 0, "common": 100, "margin": 0.0}
    text = summary.render([outcome(verdict=tests)])
    assert "- **whole run**: " in text
    assert MATH in text.partition("**whole run**")[2].partition("\n")[0]
    sound = {**tests, "p_values": {"answers": 0.5}, "lost": 1, "gained": 1}
    assert "whole run" not in summary.render([outcome(verdict=sound)])


def test_of_a_cell_that_ran_twice_the_last_counts_for_the_whole_run() -> None:
    tests = {"p_values": {"answers": 1e-9}, "lost": 40, "gained": 0, "common": 100, "margin": 0.0}
    sound = {**tests, "p_values": {"answers": 0.5}, "lost": 1, "gained": 1}
    broken = outcome(verdict=tests, status="degraded", fails=True)
    assert "whole run" in summary.render([outcome(verdict=sound), broken])
    assert "whole run" not in summary.render([broken, outcome(verdict=sound)])


def test_a_run_without_cells_is_told() -> None:
    assert summary.render([]) == "## Quantization fidelity: no cell was measured\n"


# --- two runs


def compared(now: Sequence[Outcome], base: Sequence[Outcome]) -> list[list[str]]:
    text = summary.render(now, changes(now, base))
    return rows(text.partition("### Against the base")[2].partition("### `")[0], 8)


def test_a_run_beside_itself_changed_nowhere() -> None:
    run = [outcome(MATH), outcome(CODE)]
    text = summary.render(run, changes(run, run))
    assert "The same verdicts, answers and errors of modules in all 2 cells." in text


def answers(cell: str, right: Sequence[bool], **fields: Any) -> Outcome:
    record = make_record([True] * len(right), right, cell=cell, **fields)
    return replace(Outcome.of_measurement(record, "told"), status="equivalent")


def test_changed_cells_say_verdict_answers_and_drops() -> None:
    """20 of 90 answers lost in one cell, one gained in another, a third as it was."""
    right = [True] * 90 + [False] * 10
    base = [answers(cell, right) for cell in (MATH, CODE, GENERAL)]
    worse = answers(MATH, [False] * 20 + [True] * 70 + [False] * 10)
    better = answers(CODE, [True] * 91 + [False] * 9)
    now = [replace(worse, status="degraded", fails=True), better, base[2]]
    found = compared(now, base)
    assert [row[:5] for row in found] == [
        [MATH, "toy", "equivalent → degraded", "20", "0"],
        [CODE, "toy", "equivalent", "0", "1"],
    ]
    assert [row[6] for row in found] == ["10.0 → 30.0", "10.0 → 9.0"]


def test_losses_beyond_chance_are_called_worse_after_holm() -> None:
    """30 lost and none gained in one of 20 cells; 8 of 8 in another, which one cell alone would show."""
    cells = [f"gptq/W{bits}A16/task{n}" for bits in (3, 4) for n in range(10)]
    base = [answers(cell, [True] * 100) for cell in cells]
    now = list(base)
    now[3] = answers(cells[3], [False] * 30 + [True] * 70)
    now[5] = answers(cells[5], [False] * 8 + [True] * 92)
    found = compared(now, base)
    assert [(row[0], row[3], row[4]) for row in found] == [
        (cells[3], "30", "0"),
        (cells[5], "8", "0"),
    ]
    raw = [binomtest(lost, lost, alternative="greater").pvalue for lost in (30, 8)]
    wanted = multipletests([*raw, *[1.0] * 18], method="holm")[1]
    assert [row[5] for row in found] == [f"{wanted[0]:.2g} worse", f"{wanted[1]:.2g}"]
    assert raw[1] < 0.01 < wanted[1]


def test_other_wrong_answers_are_a_change_too() -> None:
    base = answers(MATH, [True, False, False])
    record = Record.from_dict(base.record or {})
    other = replace(record, quantized_answers=("yes", "no", "never"))
    now = replace(base, record=other.to_dict())
    assert [row[:5] for row in compared([now], [base])] == [[MATH, "toy", "equivalent", "0", "0"]]


@pytest.mark.parametrize("profile", ["layer_sqnr", "local_sqnr"])
def test_a_moved_module_is_named_where_no_answer_moved(profile: str) -> None:
    stored = PROFILE if profile == "layer_sqnr" else LOCAL
    moved = {**stored, "layers.0.down_proj": stored["layers.0.down_proj"] - 3}
    still = {**stored, "layers.0.down_proj": stored["layers.0.down_proj"] - 0.2}
    base = [outcome()]
    (row,) = compared([outcome(**{profile: moved})], base)
    assert row[7] == "layers.0.down_proj"
    assert compared([outcome(**{profile: still})], base) == []


def test_cells_of_only_one_run_are_listed() -> None:
    now, base = [outcome(MATH), outcome(CODE)], [outcome(MATH), outcome(GENERAL)]
    text = summary.render(now, changes(now, base))
    assert f"New cells (1):\n\n- `{CODE}` on `toy`\n" in text
    assert f"Gone cells (1):\n\n- `{GENERAL}` on `toy`\n" in text
    text = summary.render(now[1:], changes(now[1:], base))
    assert "No cell is in both runs." in text


def test_other_items_are_not_paired() -> None:
    base = [outcome(status="equivalent")]
    now = [outcome(status="degraded", ids=[f"x{n}" for n in range(100)])]
    (row,) = compared(now, base)
    assert row[3:6] == ["-", "-", "other items"]


def test_fewer_items_are_paired_as_far_as_they_go() -> None:
    base, now = answers(MATH, [True] * 50), answers(MATH, [True] * 30)
    assert changes([now], [base]).changed == ()
    now = answers(MATH, [False] * 30)
    assert changes([now], [base]).changed[0].lost == 30


def test_other_versions_and_other_full_precision_are_told() -> None:
    origin = {**PROVENANCE, "versions": {"torch": "2.8.0"}, "device": "cpu: other"}
    base = [outcome(provenance=origin)]
    now = [outcome()]
    text = summary.render(now, changes(now, base))
    assert "Measured differently: device cpu: other → cpu: test, torch 2.8.0 → 2.13.0." in text
    record = Record.from_dict(now[0].record or {})
    first = not record.reference_correct[0]
    other = replace(record, reference_correct=(first, *record.reference_correct[1:]))
    now = [replace(now[0], record=other.to_dict())]
    text = summary.render(now, changes(now, base))
    assert "Full precision's own answers changed" in text
    assert "not only the quantizer that did: math on toy (1)." in text


def test_a_cell_that_can_no_longer_be_measured_is_a_change() -> None:
    now = [Outcome(MATH, "toy", "infra", error="MemoryError: 64 GiB")]
    (row,) = compared(now, [outcome()])
    assert row[2] == "equivalent → infra"
    assert row[6].endswith("→ -")


# --- other people's text


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_errors_show_as_they_are_and_bring_no_markup(text: str) -> None:
    name = text.replace("/", "\\")
    run = [
        outcome(
            f"{name}/W8A8/math",
            model=name,
            status="degraded",
            fails=True,
            verdict={"place": {"first": text, "why": text}, "findings": [{"text": text}]},
        ),
        Outcome(text, text, text, band=text, error=text),
    ]
    page = Page(summary.render(run, changes(run, [replace(run[0], status=text)])))
    known = "h2 h3 p em strong table thead tbody tr th td code pre details summary ul li".split()
    assert page.tags <= set(known)
    flat = " ".join(text.split()).replace("`", "'")
    shown = [row[-1] for row in page.rows if row[0] != "cell"]
    assert any(" ".join(cell.split()) == flat for cell in shown)
    assert {len(row) for row in page.rows} <= {7, 8}


@given(text=st.text(max_size=60))
@example(text="\\")
@example(text="|`|\\|")
@example(text="a\u2028b\ud800")
def test_a_name_is_one_cell_of_a_row(text: str) -> None:
    """In code spans and outside; a backtick shows as an apostrophe in a code span."""
    for made, wanted in (
        (summary_markdown.code(text), text.replace("`", "'")),
        (summary_markdown.plain(text, 200), text),
    ):
        (row,) = [
            row
            for row in Page(f"| a | cell |\n|---|---|\n| left | {made} |\n").rows
            if row[0] == "left"
        ]
        flat = summary_markdown._CONTROL.sub(" ", wanted)
        assert "".join(row[1].split()) == "".join(flat.split())
        assert len(row) == 2


@given(text=st.text(alphabet="`~\nab<|", max_size=200))
def test_nothing_closes_a_fence_but_its_end(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse("\n".join(summary_markdown.fenced(text, 1000)))
    assert [token.type for token in tokens] == ["fence"]


# --- GitHub's limit


@pytest.mark.parametrize("limit", [4096, 20_000, 200_000])
def test_no_page_is_longer_than_its_limit(limit: int) -> None:
    run = [
        outcome(
            f"m{n:04}{'é' * 90}/W8A8/math",
            (8, 1, 0, 1),
            model=f"model-{n % 7}",
            status="degraded",
            fails=True,
            verdict={"findings": [{"text": "x" * 9000}]},
        )
        for n in range(700)
    ]
    base = [replace(one, status="equivalent", fails=False) for one in run]
    text = summary.render(run, changes(run, base), limit)
    assert limit / 2 < len(text.encode()) <= limit
    assert text.count("<details>") == text.count("</details>")
    assert "see the records." in text
    assert {len(row) for row in Page(text).rows} <= {7, 8}
    assert text.startswith("## Quantization fidelity: 700 of 700 cells fail")


def test_the_default_limit_is_what_github_takes() -> None:
    """1 MiB: docs.github.com, workflow commands, step isolation and limits."""
    assert summary.LIMIT == 1024**2
    cell = outcome("x" * 150 + "/W8A8/math", (8, 1, 0, 1))
    run = [replace(cell, cell=f"{n}{cell.cell}", record=None) for n in range(9000)]
    assert 0.4 * summary.LIMIT < len(summary.render(run).encode()) <= summary.LIMIT


# --- files and the command


def test_the_command_reads_records_and_writes_markdown(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    now = write(tmp_path / "now.jsonl", [outcome(status="degraded", fails=True)])
    base = write(tmp_path / "base.jsonl", [outcome()])
    told = CliRunner().invoke(app, [str(now), "--base", str(base)])
    assert told.exit_code == 0, told.output
    assert "equivalent → degraded" in told.output
    out = tmp_path / "folder" / "summary.md"
    assert CliRunner().invoke(app, [str(now), "--base", str(base), "--out", str(out)]).output == ""
    assert out.read_text("utf-8") == told.output == summary.report(now, base)


def test_an_interrupted_last_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "now.jsonl", [outcome(MATH), outcome(CODE)])
    path.write_text(path.read_text("utf-8")[:-10], "utf-8")
    assert [one.cell for one in read_outcomes(path)] == [MATH]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cell": 1}, r"now.jsonl:1: field 'cell' is 1, expected str"),
        ({"items": True}, r":1: field 'items' is True, expected int"),
        ({"error": []}, r":1: field 'error' is \[\], expected str or null"),
        ({"cell": "a/b/c"}, r":1: the line is about a/b/c on toy, its record about gptq"),
        ({"verdict": {"drop": "high"}}, r":1: verdict: field 'drop' is 'high', expected a number"),
        ({"verdict": {"drop": 1, "interval": [1]}}, r"'interval' is \[1\], expected two numbers"),
        ({"verdict": {"place": {"first": 3}}}, r"field 'place.first' is 3, expected text or null"),
        ({"verdict": {"findings": ["bad"]}}, r"'findings' is no list of objects with a text each"),
        ({"verdict": {"p_values": {"x": 2}}}, r":1: verdict: its tests cannot be read"),
        ({"verdict": None, "status": None}, r"field 'status' is None, expected str"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "now.jsonl"
    data = json.loads(outcome().to_json()) | change
    path.write_text(json.dumps(data) + "\n", "utf-8")
    with pytest.raises(QBenchError, match=said):
        summary.report(path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "now.jsonl"
    for text, said in (
        ("{\n", "now.jsonl:1: not JSON"),
        ("[]\n", "now.jsonl:1: expected a JSON object, found list"),
        ("{}\n", "now.jsonl:1: field 'cell' is missing"),
        (outcome().to_json().replace('"seconds": 1.5', '"seconds": NaN') + "\n", "is nan"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(QBenchError, match=said):
            summary.report(path)
    with pytest.raises(QBenchError, match=r"gone\.jsonl: cannot be read"):
        summary.report(tmp_path / "gone.jsonl")


def test_a_summary_brings_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "now.jsonl", [outcome(), outcome(CODE)])
    program = (
        "import sys\n"
        "from dllm_qbench.summary import report\n"
        f"print(len(report({str(path)!r}, {str(path)!r})))\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'datasets'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[1:] == ["[]"], run.stderr
