"""The table's layout, what is left out of it when all is well, and colours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dllm_qbench import terminal, terminal_table
from dllm_qbench.baselines import CellBaseline
from dllm_qbench.outcomes import Outcome
from dllm_qbench.verdict.judge import judge
from tests.helpers.records import make_record
from tests.helpers.screens import Reporter

SOUND = (1795, 5, 5, 195)


def outcome(
    cell: str, counts: tuple[int, int, int, int] = SOUND, model: str = "toy", **change: Any
) -> Outcome:
    record = make_record(counts=counts, cell=cell, model=model)
    verdict = judge(record, CellBaseline.from_record(record))
    made = Outcome.of_verdict(record, verdict, verdict.fails())
    return Outcome(**(vars(made) | change))


def failing(cell: str, model: str = "toy") -> Outcome:
    return outcome(cell, (900, 900, 0, 200), model, status="degraded", fails=True)


def names(lines: list[str]) -> list[str]:
    """The cells that have a row."""
    return [line.split()[0] for line in lines if line.split(" ")[0].count("/") == 2]


def test_full_matrix_fits_100_columns_without_cutting_a_name() -> None:
    cells = [
        outcome("smoothquant/W4A4/general", (10, 1790, 0, 200)),
        outcome("gptq/W3A16-g64/general", (1600, 200, 30, 170)),
        outcome("rtn/W8A8/code"),
        Outcome.of_error("gptq/W3A16-g64/math", "toy", ValueError("no"), None),
    ]
    lines = [text for text, _ in terminal.table(cells)]
    assert max(map(len, lines)) <= 100
    assert lines[2].split() == ["gptq/W3A16-g64/math", "-", "-", "-", "-", "infra"]
    assert lines[3].startswith("smoothquant/W4A4/general")
    assert [color for _, color in terminal.table(cells)][2:] == ["red", "green", "green", "green"]


def test_what_fails_comes_before_what_is_only_uncertain() -> None:
    """With strict verdicts, an equivalent cell that is to be written fails, too."""
    cells = [
        outcome("rtn/W8A8/code", status="inconclusive", fails=False),
        outcome("rtn/W8A8/math", status="equivalent", fails=True),
    ]
    assert names([text for text, _ in terminal.table(cells)]) == ["rtn/W8A8/math", "rtn/W8A8/code"]


LONG = (
    "llmcompressor-smoothquant/W8A8/general",
    "llmcompressor-smoothquant/W4A16-g128-asym/math",
    "llmcompressor-smoothquant/W4A16-g128-asym/arc_challenge",
    "llmcompressor-rtn/W4A16-g128-asym/arc_challenge",
    "a-quantizer-whose-name-is-longer-than-a-line-of-the-whole-table/W4A16-g128-asym/arc_challenge",
    f"{'q' * 120}/W4A16-g128-asym/arc_challenge",
)


@pytest.mark.parametrize("count", range(1, len(LONG) + 1))
def test_no_line_is_too_wide_and_scheme_and_task_are_never_cut(count: int) -> None:
    cells = [outcome(cell, (1000, 800, 0, 200)) for cell in LONG[:count]]
    lines = [text for text, _ in terminal.table(cells)]
    assert max(map(len, lines)) <= 100
    assert len(set(lines)) == len(lines), "two rows look alike"
    text = "".join(lines)
    for cell in LONG[:count]:
        assert f"/{cell.partition('/')[2]}" in text


def test_only_a_method_is_shortened_and_the_same_way_in_every_row() -> None:
    found = terminal_table.short_names(
        [
            "compressor-smoothquant/W8A8/math",
            "compressor-smoothquant/W4A16-g64/general",
            "rtn/W8A8/code",
        ],
        30,
    )
    assert found is not None
    assert list(found.values()) == [
        "compr..quant/W8A8/math",
        "compr..quant/W4A16-g64/general",
        "rtn/W8A8/code",
    ]


def test_methods_stay_apart_when_they_are_shortened() -> None:
    """Equal beginnings and ends: another part of the middle goes, or nothing is shortened at all."""
    alike = ["method-one-of-the-library/W8A8/math", "method-two-of-the-library/W8A8/math"]
    found = terminal_table.short_names(alike, 22)
    assert found is None or len(set(found.values())) == 2
    twins = [f"{'a' * 20}{middle}{'a' * 20}/W8A8/math" for middle in "bc"]
    assert terminal_table.short_names(twins, 30) is None


MANY = [
    outcome("rtn/W8A8/code"),
    outcome("rtn/W4A4/code", (900, 900, 0, 200)),
    outcome("rtn/W8A8/math", status="inconclusive", fails=False),
    failing("gptq/W4A16-g64/math"),
]
ROWS = {
    1: ["gptq/W4A16-g64/math", "rtn/W8A8/math", "rtn/W4A4/code", "rtn/W8A8/code"],
    0: ["gptq/W4A16-g64/math", "rtn/W8A8/math"],
    -1: ["gptq/W4A16-g64/math"],
    -2: ["gptq/W4A16-g64/math"],
}


@pytest.mark.parametrize("verbosity", ROWS)
def test_each_verbosity_lists_what_it_says(verbosity: int) -> None:
    lines = terminal.plain_summary(MANY, 100, verbosity)
    assert names(lines) == ROWS[verbosity]
    told = "2 more cells equivalent, the largest drop 50.0 % (rtn/W4A4/code); -v lists them"
    assert (told in lines) == (verbosity == 0)
    counted = "4 cells: 1 degraded, 1 inconclusive, 2 equivalent"
    assert (counted in lines) == (verbosity == -1)
    assert (lines[-1] == terminal._LEGEND[-1]) == (verbosity >= 0)


def test_a_model_that_is_well_has_one_line() -> None:
    well = [outcome("rtn/W8A8/code"), outcome("rtn/W8A8/math")]
    assert terminal.plain_summary(well, 60) == [
        " quantization fidelity: toy, 2000 items a cell ".center(60, "="),
        "all 2 cells equivalent, the largest drop 0.0 % (rtn/W8A8/code); -v lists them",
    ]
    (_, line) = terminal.plain_summary(well[:1], 60)
    assert line == "the only cell is equivalent, its drop 0.0 % (rtn/W8A8/code); -v lists it"
    assert terminal.plain_summary(well, 60, -2) == []


def test_the_line_for_the_rest_fits_whatever_the_names() -> None:
    for cell in LONG:
        (_, line) = terminal.plain_summary([outcome(cell, (1000, 800, 0, 200))], 100)
        assert len(line) <= 100
        assert "its drop 44.4 %" in line


def test_the_model_with_the_worst_cell_comes_first() -> None:
    cells = [outcome("rtn/W8A8/code", model="a"), failing("rtn/W8A8/code", "b")]
    titles = [line for line in terminal.plain_summary(cells, 80) if line.startswith("=")]
    assert ["fidelity: b" in title for title in titles] == [True, False]


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        (1, ["table", "", *terminal._LEGEND, "whole run: bad", "written"]),
        (0, ["line", "whole run: bad", "written"]),
        (-1, ["1 cell: 1 equivalent", "whole run: bad", "written"]),
        (-2, ["whole run: bad"]),
    ],
)
def test_failure_of_the_whole_run_is_shown_however_quiet(verbosity: int, lines: list[str]) -> None:
    reporter: Any = Reporter(isatty=False)
    reporter.config = SimpleNamespace(get_verbosity=lambda: verbosity)
    passing = outcome("rtn/W8A8/code")
    terminal.write_summary(reporter, [passing], ["written"], ["whole run: bad"])
    shown = [text for name, text in reporter.calls if name == "write_line"]
    known = {
        "table": [text for text, _ in terminal.table([passing])],
        "line": ["the only cell is equivalent, its drop 0.0 % (rtn/W8A8/code); -v lists it"],
    }
    assert shown == [line for name in lines for line in known.get(name, [name])]
