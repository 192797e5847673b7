"""Two sets of measurements side by side: read from anywhere, paired where the items are, the worst first."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_qbench.baselines import write_cell
from dllm_qbench.compare import compare_runs, report
from dllm_qbench.compare_text import as_text, render_table
from dllm_qbench.engine.store import Store
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome, OutcomeFile
from dllm_qbench.paper_files import paper_folder
from dllm_qbench.records import Record
from dllm_qbench.verdict.statistics import Pairs, drop_interval, relative_drop
from tests.helpers.records import PROVENANCE, make_record

MATH, CODE, GENERAL = (f"gptq/W4A16-g64/{family}" for family in ("math", "code", "general"))
BASE = "llada-8b-base"


def write_run(path: Path, records: Sequence[Record]) -> Path:
    file = OutcomeFile(path)
    for record in records:
        file.append(
            Outcome(record.cell, record.model, "equivalent", record.items, record=record.to_dict())
        )
    return path


def mixed(cell: str, seed: int, kept: float = 0.9, items: int = 300, model: str = "toy") -> Record:
    """Answers in no order; one seed gives one full precision, ``kept`` how much of it stays."""
    rng = random.Random(seed)
    full = [rng.random() < 0.8 for _ in range(items)]
    hard = [rng.random() for _ in range(items)]
    return make_record(
        full, [f and h < kept for f, h in zip(full, hard, strict=True)], cell=cell, model=model
    )


def changed(record: Record, lost: int) -> Record:
    """The same record, but ``lost`` of the quantized model's right answers are wrong."""
    right = [n for n, correct in enumerate(record.quantized_correct) if correct][:lost]
    correct = [c and n not in right for n, c in enumerate(record.quantized_correct)]
    return replace(record, quantized_correct=tuple(correct))


@pytest.fixture
def before() -> list[Record]:
    return [mixed(MATH, 1), mixed(CODE, 2), mixed(GENERAL, 3)]


def test_rows_have_each_side_s_drop_and_the_paired_difference(
    before: list[Record], tmp_path: Path
) -> None:
    after = [changed(before[0], 5), changed(before[1], 60), before[2]]
    found = compare_runs(
        write_run(tmp_path / "after.jsonl", after), write_run(tmp_path / "before.jsonl", before)
    )
    assert [row.one.cell for row in found.rows] == [CODE, MATH, GENERAL]
    for row, record in zip(found.rows, (after[1], after[0], after[2]), strict=True):
        pairs = Pairs.count(record.reference_correct, record.quantized_correct)
        assert row.one.drop == pytest.approx(relative_drop(pairs))
        assert row.one.interval == drop_interval(pairs)
        assert row.difference is not None
        assert row.difference.paired == 300
    assert [row.word for row in found.rows] == ["worse", "", ""]
    worst = found.rows[0].difference
    assert worst is not None
    full = sum(before[1].reference_correct)
    assert worst.value == pytest.approx(100 * 60 / full)
    assert worst.interval[0] > 15


def test_sides_exchanged_turn_worse_into_better(before: list[Record], tmp_path: Path) -> None:
    one = write_run(tmp_path / "one.jsonl", before)
    other = write_run(tmp_path / "other.jsonl", [changed(r, 60) for r in before])
    assert {row.word for row in compare_runs(one, other).rows} == {"better"}
    assert {row.word for row in compare_runs(other, one).rows} == {"worse"}


def test_a_run_beside_itself_differs_nowhere(before: list[Record], tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl", before)
    found = compare_runs(path, path)
    assert {(row.difference.value, row.word) for row in found.rows if row.difference} == {(0.0, "")}
    assert found.only_one == found.only_other == ()


def test_other_items_are_compared_but_not_paired(before: list[Record], tmp_path: Path) -> None:
    others = [replace(r, item_ids=tuple(f"x{i}" for i in r.item_ids)) for r in before]
    seeds = [replace(r, seed=1) for r in before]
    path = write_run(tmp_path / "before.jsonl", before)
    same = compare_runs(path, path).rows[0].difference
    for name, records in (("others", others), ("seeds", seeds)):
        found = compare_runs(path, write_run(tmp_path / f"{name}.jsonl", records))
        text = as_text(found)
        assert {row.difference.paired for row in found.rows if row.difference} == {0}
        assert "3 of 3 differences are of unpaired items" in text
        apart = found.rows[0].difference
        assert same is not None
        assert apart is not None
        assert apart.interval[1] > 3 * same.interval[1]


def test_fewer_items_are_paired_as_far_as_they_go(before: list[Record], tmp_path: Path) -> None:
    short = [record.first(100) for record in before]
    found = compare_runs(
        write_run(tmp_path / "short.jsonl", short), write_run(tmp_path / "long.jsonl", before)
    )
    assert {row.difference.paired for row in found.rows if row.difference} == {100}
    assert "100 and 300 items a cell" in as_text(found)


def test_baselines_stand_beside_a_run(before: list[Record], tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    for record in before:
        write_cell(folder / "toy.json", record)
    run = write_run(tmp_path / "run.jsonl", [changed(r, 60) for r in before[:2]])
    for source in (folder, folder / "toy.json"):
        found = compare_runs(run, source)
        assert [row.word for row in found.rows] == ["worse", "worse"]
        assert {row.difference.paired for row in found.rows if row.difference} == {300}
        assert found.only_other == (("toy", GENERAL),)
        assert f"Only in the second: {GENERAL} on toy." in as_text(found)


def test_a_store_s_newest_record_of_a_cell_counts(before: list[Record], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    old = replace(changed(before[0], 60), provenance={**PROVENANCE, "date": "2025-01-01T00:00:00"})
    for name, record in (("a", before[0]), ("b", old), ("c", before[1])):
        store.put("records", {"cell": name}, record.to_dict())
    found = compare_runs(tmp_path / "store", write_run(tmp_path / "run.jsonl", before))
    assert {row.difference.value for row in found.rows if row.difference} == {0.0}
    assert any("1 older record(s) of the same cells are left out" in note for note in found.notes)


def test_a_single_record_is_a_side(before: list[Record], tmp_path: Path) -> None:
    before[0].write(tmp_path / "one.json")
    found = compare_runs(tmp_path / "one.json", write_run(tmp_path / "run.jsonl", before))
    assert [row.one.cell for row in found.rows] == [MATH]
    assert len(found.only_other) == 2


# --- the paper


def paper_run() -> list[Record]:
    return [
        mixed(f"{quantized}/{task}", seed, kept, model=BASE)
        for seed, task in enumerate(("gsm8k", "minerva_math", "piqa"))
        for quantized, kept in (
            ("smoothquant/W4A4", 0.02 if task != "piqa" else 0.79),
            ("gptq/W4A16-g128", 0.98),
        )
    ]


def test_a_run_stands_beside_the_paper(tmp_path: Path) -> None:
    found = compare_runs(write_run(tmp_path / "run.jsonl", paper_run()), "paper")
    assert found.other == "paper (arXiv 2508.14896v3)"
    by_cell = {row.one.cell: row for row in found.rows}
    assert len(by_cell) == 6
    row = by_cell["smoothquant/W4A4/gsm8k"]
    assert row.other.accuracies == pytest.approx((69.7, 0.3))
    assert row.other.items == 1319
    assert row.other.interval is not None  # of the printed shares, as if unpaired
    assert row.difference is not None
    assert row.difference.paired == 0
    assert by_cell["gptq/W4A16-g128/piqa"].misprints == ("table 1 general average and drop",)
    assert row.misprints == ()
    (run, results) = found.findings[0]
    assert run.endswith("run.jsonl")
    assert {r.finding.name for r in results} >= {"smoothquant-w4a4-collapses"}
    text = as_text(found).replace("\n  ", " ")
    assert "gptq/W4A16-g128/piqa #" in text
    assert "llada-8b-base: table 1 general average and drop" in text
    assert "SmoothQuant collapses with 4-bit weights and activations: cannot be told" in text
    assert "arc_easy on llada-8b-instruct" not in text  # the list of missing cells is cut
    assert "more." in text


def test_paper_is_found_by_name_and_by_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.jsonl", paper_run())
    by_name, by_folder = compare_runs(run, "paper"), compare_runs(run, paper_folder())
    assert by_name.rows == by_folder.rows


def test_full_precision_that_differs_is_told(tmp_path: Path) -> None:
    """80 % where the paper printed 69.7 and 21.3: no quantizer did that."""
    text = report(write_run(tmp_path / "run.jsonl", paper_run()), "paper")
    assert "Full precision itself differs beyond chance" in text
    assert "minerva_math on llada-8b-base" in text.replace("\n  ", " ")


def test_stand_ins_play_no_part_in_findings(tmp_path: Path) -> None:
    origin = {"stands_in": True}
    records = [replace(r, provenance={**PROVENANCE, "model": origin}) for r in paper_run()]
    found = compare_runs(write_run(tmp_path / "run.jsonl", records), "paper")
    assert len(found.rows) == 6
    assert found.findings == ()
    assert any("6 record(s) are of stand-ins" in note for note in found.notes)


# --- how it is shown


def test_no_line_is_wider_than_asked(tmp_path: Path) -> None:
    found = compare_runs(write_run(tmp_path / "run.jsonl", paper_run()), "paper")
    for width in (80, 100, 120):
        assert max(map(len, as_text(found, width).splitlines())) <= width
        assert max(map(len, render_table(found.rows, width))) <= width


def test_table_reads_as_written(before: list[Record], tmp_path: Path) -> None:
    """40 of 40 right before, 10 and 0 lost: 25 % and 0 %."""
    one = make_record(counts=(30, 10, 0, 0), cell=MATH)
    other = make_record(counts=(40, 0, 0, 0), cell=MATH)
    found = compare_runs(
        write_run(tmp_path / "one.jsonl", [one]), write_run(tmp_path / "other.jsonl", [other])
    )
    head, row = render_table(found.rows)
    assert head.split() == "cell drop, first drop, second difference first is".split()
    assert row.startswith(f"{MATH}  25.0 [15.6, 37.6]")
    assert "+25.0 [" in row
    assert row.endswith("worse")


def test_markdown_and_json_hold_the_same(before: list[Record], tmp_path: Path) -> None:
    one = write_run(tmp_path / "one.jsonl", [changed(r, 60) for r in before])
    other = write_run(tmp_path / "other.jsonl", before)
    data = json.loads(report(one, other, "json"))
    assert [row["cell"] for row in data["rows"]] == [
        row.one.cell for row in compare_runs(one, other).rows
    ]
    assert data["rows"][0]["word"] == "worse"
    assert data["rows"][0]["one"]["items"] == 300
    markdown = report(one, other, "markdown").splitlines()
    table = [line for line in markdown if line.startswith("| `")]
    assert len(table) == 3
    assert all(line.endswith("| worse |") for line in table)
    assert all(line.count("|") == 8 for line in table)


def test_nothing_answered_right_has_no_drop_and_comes_first(
    before: list[Record], tmp_path: Path
) -> None:
    broken = [before[0], make_record(counts=(0, 0, 2, 298), cell=CODE), before[2]]
    found = compare_runs(
        write_run(tmp_path / "broken.jsonl", broken), write_run(tmp_path / "before.jsonl", before)
    )
    assert (found.rows[0].one.cell, found.rows[0].word) == (CODE, "no drop")
    assert json.loads(report(tmp_path / "broken.jsonl", tmp_path / "before.jsonl", "json"))


# --- errors


def test_errors_say_what_was_given_and_what_is_wanted(before: list[Record], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.jsonl", before)
    with pytest.raises(QBenchError, match=r"nowhere: no such file or folder; give a record file"):
        compare_runs(tmp_path / "nowhere", run)
    with pytest.raises(QBenchError, match=r"no cell in common: the first has 3 such as .* on toy"):
        compare_runs(run, "paper")
    with pytest.raises(
        QBenchError, match="format 'html' is unknown; formats: text, markdown, json"
    ):
        report(run, run, "html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QBenchError, match=r"empty: holds no baselines"):
        compare_runs(tmp_path / "empty", run)
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(QBenchError, match="holds no records"):
        compare_runs(tmp_path / "empty.jsonl", run)
