"""Result tables: every number by hand, what is missing stays missing, and files that others read back."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.paper_files import read_paper
from dllm_qbench.report.result_tables import ResultTable, Row, result_tables
from dllm_qbench.report.table_files import as_csv, escaped, latex, markdown, write_tables
from dllm_qbench.verdict.averages import TaskAnswers, interval_of_tasks
from dllm_qbench.verdict.statistics import Pairs, drop_interval
from tests.helpers.records import make_record

MODEL = "toy"


def measured(cell: str, right: int, before: int = 80, items: int = 100, **given: Any) -> Outcome:
    """A cell whose full precision has the first ``before`` items right, and whose own the first ``right``."""
    record = make_record(
        [at < before for at in range(items)],
        [at < right for at in range(items)],
        cell=cell,
        **{"model": MODEL, **given},
    )
    return Outcome.of_measurement(record, "told")


def failed(cell: str) -> Outcome:
    return Outcome.of_error(cell, MODEL, RuntimeError("out of memory"), None)


def one(outcomes: list[Outcome], **given: Any) -> ResultTable:
    (table,) = result_tables(outcomes, **given)
    return table


def row(table: ResultTable, scheme: str, method: str) -> Row:
    (found,) = (r for r in table.rows if (r.scheme, r.method) == (scheme, method))
    return found


def numbers(found: Row) -> list[float | None]:
    return [value.number for value in found.values]


MATH = [
    measured("gptq/W4A16-g128/gsm8k", 60, before=80),
    measured("gptq/W4A16-g128/minerva_math", 30, before=40, items=200),
]


def test_averages_weigh_tasks_alike_and_drops_are_of_averages() -> None:
    table = one(MATH)
    assert [column.title for column in table.columns] == [
        "gsm8k", "minerva_math", "math average", "math drop",
    ]  # fmt: skip
    # 80 % and 20 % before, 60 % and 15 % after: averages 50 and 37.5, a drop of a quarter
    assert numbers(table.rows[0]) == [80.0, 20.0, 50.0, None]
    assert numbers(row(table, "W4A16-g128", "gptq")) == [60.0, 15.0, 37.5, 25.0]
    assert table.items == "100-200"


def test_an_average_over_an_incomplete_family_is_not_given() -> None:
    others = [measured("awq/W4A16-g128/gsm8k", 70), failed("awq/W4A16-g128/minerva_math")]
    table = one([*MATH, *others])
    assert numbers(row(table, "W4A16-g128", "awq")) == [70.0, None, None, None]
    assert [value.shown for value in row(table, "W4A16-g128", "awq").values] == ["70.0", *"–––"]
    # nobody measured it: full precision has no average either
    table = one([MATH[0], failed("gptq/W4A16-g128/minerva_math")])
    assert numbers(table.rows[0]) == [80.0, None, None, None]


def test_rows_and_columns_stand_as_in_the_paper() -> None:
    cells = [
        *(
            "quarot/W4A4",
            "smoothquant/W4A4",
            "own/W4A16-g128",
            "gptq/W3A16-g128",
            "gptq/W4A16-g128",
        ),
        *("duquant/W8A8", "awq/W4A16-g128", "rtn/W4A16-g128", "own/FP4"),
    ]
    tasks = ["mbpp", "mmlu", "riddles", "gsm8k", "winogrande", "humaneval"]
    table = one([measured(f"{cell}/{task}", 50) for cell in cells for task in tasks])
    assert [(found.scheme, found.method) for found in table.rows] == [
        ("W16A16", "full precision"),
        ("W4A16-g128", "rtn"),
        ("W4A16-g128", "gptq"),
        ("W4A16-g128", "awq"),
        ("W4A16-g128", "own"),
        ("W3A16-g128", "gptq"),
        ("W8A8", "duquant"),
        ("W4A4", "smoothquant"),
        ("W4A4", "quarot"),
        ("FP4", "own"),
    ]
    assert [column.title for column in table.columns] == [
        *("winogrande", "mmlu", "general average", "general drop"),
        *("gsm8k", "math drop"),
        *("humaneval", "mbpp", "code average", "code drop"),
        *("riddles", "riddles drop"),
    ]
    chosen = one([measured(f"{cells[0]}/{t}", 50) for t in tasks], tasks=["mmlu", "winogrande"])
    assert [column.title for column in chosen.columns][:2] == ["mmlu", "winogrande"]


def test_the_papers_own_scores_give_the_averages_that_were_recomputed_from_them() -> None:
    """Table 4, QuaRot W4A4 on LLaDA-8B-Base, as answers to 1,000 items a task."""
    paper = read_paper()
    found = [
        printed for printed in paper.averages
        if (printed.model, printed.quantized, printed.category)
        == ("llada-8b-base", "quarot/W4A4", "code")
    ]  # fmt: skip
    (printed,) = found
    outcomes = []
    for task in printed.tasks:
        cell = paper.cell(printed.model, f"quarot/W4A4/{task}")
        assert cell is not None
        before, after = round(10 * cell.full_precision), round(10 * cell.score)
        outcomes.append(measured(f"quarot/W4A4/{task}", after, before, 1000))
    average, drop = numbers(row(one(outcomes), "W4A4", "quarot"))[-2:]
    assert average == pytest.approx(printed.recomputed_average, abs=0.006)
    assert drop == pytest.approx(printed.recomputed_drop, abs=0.006)


def test_the_best_of_a_scheme_is_marked_and_ties_are_all() -> None:
    table = one(
        [
            measured("rtn/W4A4/math", 50),
            measured("quarot/W4A4/math", 70),
            measured("duquant/W4A4/math", 70),
            measured("gptq/W3A16/math", 60),
        ]
    )
    best = {found.method: [value.best for value in found.values] for found in table.rows}
    assert best == {
        "full precision": [False, False],
        "gptq": [False, False],  # alone in its scheme: better than nothing
        "rtn": [False, False],
        "quarot": [True, True],
        "duquant": [True, True],
    }
    # 70.04 and 70.00 are one number where a decimal is shown
    close = [
        measured("rtn/W4A4/math", 17510, 20000, 25000),
        measured("quarot/W4A4/math", 17500, 20000, 25000),
    ]
    assert all(v.best for found in one(close).rows[1:] for v in found.values[:1])


def test_nothing_right_before_has_no_drop() -> None:
    table = one([measured("rtn/W4A4/math", 3, before=0)])
    assert numbers(row(table, "W4A4", "rtn")) == [3.0, None]


def test_intervals_are_those_that_cells_and_findings_are_judged_by() -> None:
    table = one([*MATH, measured("gptq/W4A16-g128/mbpp", 70)], intervals=True)
    values = row(table, "W4A16-g128", "gptq").values
    pairs = Pairs(kept=70, lost=10, gained=0, missed=20)
    assert values[-1].interval == drop_interval(pairs)
    answers = []
    for outcome in MATH:
        record: Any = outcome.record
        keys = record["item_ids"], record["reference_correct"], record["quantized_correct"]
        answers.append(TaskAnswers(*keys))
    assert values[3].interval == interval_of_tasks(answers)
    assert values[3].interval is not None
    low, high = values[3].interval
    assert low is not None
    assert low < 25.0 < high
    assert all(value.interval is None for value in values[:3])
    assert all(value.interval is None for found in one(MATH).rows for value in found.values)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (measured("gptq/W4A16-g128/gsm8k", 61), "gptq/W4A16-g128/gsm8k on toy is there twice"),
        (
            measured("awq/W4A16-g128/gsm8k", 61, before=81),
            r"answers gsm8k in two ways, 81 of 100 right \(awq/W4A16-g128/gsm8k\) and 80 of 100",
        ),
        (
            measured("awq/W4A16-g128/gsm8k", 61, items=99),
            "give the records of one run, on the same items",
        ),
        (Outcome("gsm8k", MODEL, "infra"), "cell 'gsm8k' on toy: expected method/scheme/task"),
    ],
)
def test_records_that_contradict_each_other_make_no_table(other: Outcome, message: str) -> None:
    with pytest.raises(QBenchError, match=message):
        result_tables([*MATH, other])


def test_shards_with_the_same_cell_are_one_and_models_have_a_table_each() -> None:
    assert result_tables([*MATH, MATH[0]]) == result_tables(MATH)
    # what one run could not measure, another did
    assert result_tables([failed("gptq/W4A16-g128/gsm8k"), *MATH]) == result_tables(MATH)
    tables = result_tables([*MATH, measured("rtn/W8A8/code", 50, model="b")])
    assert [table.model for table in tables] == ["toy", "b"]
    assert [len(table.columns) for table in tables] == [4, 2]
    assert result_tables([]) == []
    with pytest.raises(QBenchError, match="about task 'gsm9k'; tasks: gsm8k, minerva_math"):
        result_tables(MATH, ["gsm9k"])


# --- files -------------------------------------------------------------------------------------

ODD = r"a_b%c&d$e#f{g}h~i^j\k<l>m|n"


def odd_tables() -> list[ResultTable]:
    odd = [
        measured("rtn/W4A4/mbpp", 70, model=ODD),
        measured("quarot/W4A4/mbpp", 78, model=ODD),
        measured("rtn/W8A8/mbpp", 81, model=ODD),
        Outcome.of_error("rtn/W4A4/humaneval", ODD, RuntimeError("gone"), None),
        measured("quarot/W4A4/humaneval", 20, before=30, model=ODD),
    ]
    return result_tables([*MATH, *odd], intervals=True)


def test_csv_is_read_back_with_all_digits(tmp_path: Path) -> None:
    toy, odd = odd_tables()
    files = write_tables([toy, odd], tmp_path, ["csv"])
    assert [path.name for path in files] == [
        "table-toy.csv",
        f"table-{'_'.join('abcdefghijklmn')}.csv",
    ]
    for table, path in zip((toy, odd), files, strict=True):
        assert path.read_bytes().count(b"\r\n") == len(path.read_bytes().splitlines())
        frame = pd.read_csv(path)
        assert len(frame) == len(table.rows)
        assert set(frame["model"]) == {table.model}
        for at, found in enumerate(table.rows):
            for column, value in zip(table.columns, found.values, strict=True):
                read = frame.loc[at, column.title]
                assert (None if pd.isna(read) else read) == value.number  # to the last bit
                if value.interval:
                    ends = [frame.loc[at, f"{column.title} {end}"] for end in ("low", "high")]
                    assert ends == list(value.interval)
        with path.open(newline="") as stream:
            lengths = {len(line) for line in csv.reader(stream, strict=True)}
        assert len(lengths) == 1


def test_markdown_has_a_cell_a_column_and_shows_what_is_missing() -> None:
    text = markdown(odd_tables())
    assert "## `toy`" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # scheme, method and four columns, and what is outside the first and the last bar
    assert {len(re.split(r"(?<!\\)\|", line)) for line in rows} == {8}
    assert "| W4A4 | rtn | – | **" not in text
    assert "| W4A4 | rtn | – | 70.0 | – | – |" in text
    assert "| W4A4 | quarot | 20.0 | **78.0** | 49.0 | 10.9 [" in text
    assert "| W16A16 | full precision | 30.0 | 80.0 | 55.0 |  |" in text
    assert "In brackets" in text
    assert "In brackets" not in markdown(result_tables(MATH))


def test_latex_is_well_formed_and_escapes_what_it_would_act_on() -> None:
    text = latex(odd_tables())
    # nothing that acts is left unescaped, and every group and environment is closed
    plain = re.sub(r"\\.", "", text.replace(r"\\", "").partition("\n")[2])
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"[#~^<>|\"`_]", plain)
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert opened == ["table", "tabular"] * 2
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"] * 2
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        widths = set()
        for line in lines:
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            widths.add(len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans))
        assert widths == {6}
        assert body.count(r"\midrule") >= 2
    assert r"\textbf{78.0}" in text
    assert r"\textbf{" not in latex(result_tables(MATH))


def test_latex_escapes_each_special_sign_once() -> None:
    assert escaped("W4A16_g% & $#{}") == r"W4A16\_g\% \& \$\#\{\}"
    assert escaped("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert escaped("a\nb\x00c") == "abc"
    worse = latex(result_tables([measured("rtn/W8A8/mbpp", 81)]))
    assert r" & $-$1.2 \\" in worse


def test_files_that_cannot_be_made_are_said(tmp_path: Path) -> None:
    tables = odd_tables()
    names = [path.name for path in write_tables(tables, tmp_path / "new")]
    assert names[:2] == ["tables.md", "tables.tex"]
    with pytest.raises(QBenchError, match="format 'html' is unknown; expected md, latex, csv"):
        write_tables(tables, tmp_path, ["html"])
    twins = result_tables([measured("rtn/W8A8/code", 5, model=name) for name in ("a b", "a/b")])
    with pytest.raises(QBenchError, match=r"table-a_b\.csv: two models' tables"):
        write_tables(twins, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(QBenchError, match=r"tables\.md: cannot be written"):
        write_tables(tables, tmp_path / "file")


def test_the_same_records_give_the_same_bytes() -> None:
    for write in (markdown, latex, lambda tables: "".join(map(as_csv, tables))):
        assert write(odd_tables()) == write(odd_tables())
