"""Shards and their results: every cell once, nothing lost, contradictions told."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.engine.merge import merge, parse_shard, shard_of, subject_of
from dllm_qbench.engine.store import Store
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome, OutcomeFile, read_records
from dllm_qbench.records import Record
from tests.helpers.records import make_record

MATH = make_record(cell="rtn/W8A8/math")
CODE = make_record(cell="rtn/W8A8/code", counts=(50, 10, 10, 30))
LATER = {**MATH.provenance, "date": "2027-01-01T00:00:00+00:00", "commit": "def"}


@pytest.mark.parametrize(
    ("text", "shard"), [("1/1", (1, 1)), ("2/3", (2, 3)), (" 10/12 ", (10, 12))]
)
def test_shard_is_read(text: str, shard: tuple[int, int]) -> None:
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "1", "a/b", "1/2/3", "-1/2", "1.5/2", "1 /2", "٣/٣"])
def test_text_that_is_no_shard_says_what_was_expected(text: str) -> None:
    with pytest.raises(QBenchError, match="expected i/N, such as 1/4"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["3/2", "0/4", "0/0", "1/0"])
def test_shard_that_is_none_of_the_parts_is_an_error(text: str) -> None:
    with pytest.raises(QBenchError, match="with i from 1 to N"):
        parse_shard(text)


MODELS = st.sampled_from(["llada-8b-base", "dream-7b-base", "toy"])
SCHEMES = st.sampled_from(["W4A16-g128", "W8A8", "W3A16-g128-sym"])
TASKS = st.sampled_from(["gsm8k", "arc_easy", "math", "mmlu"])
PARTS = st.tuples(MODELS, st.sampled_from(["rtn", "gptq"]), SCHEMES, TASKS)
CELLS = st.lists(PARTS, unique=True, max_size=60)


@given(cells=CELLS, parts=st.integers(1, 9), named=st.sampled_from(["/", "-"]))
def test_every_cell_is_in_one_part_and_a_quantized_model_is_too(
    cells: list[tuple[str, ...]], parts: int, named: str
) -> None:
    names = [
        "/".join(cell) if named == "/" else f"tests/test_full.py::test_cell[{'-'.join(cell)}]"
        for cell in cells
    ]
    shards = [shard_of(names, part, parts) for part in range(1, parts + 1)]
    assert sorted(name for shard in shards for name in shard) == sorted(names)
    homes: dict[tuple[str, ...], set[int]] = {}
    for cell, name in zip(cells, names, strict=True):
        homes.setdefault(cell[:3], set()).add(
            next(n for n, shard in enumerate(shards) if name in shard)
        )
    assert all(len(home) == 1 for home in homes.values())
    largest = max(Counter(map(subject_of, names)).values(), default=0)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= largest
    assert all(shard == [name for name in names if name in shard] for shard in shards)


@given(cells=CELLS, parts=st.integers(1, 5), data=st.data())
def test_part_of_a_cell_does_not_depend_on_the_order(
    cells: list[tuple[str, ...]], parts: int, data: st.DataObject
) -> None:
    names = ["/".join(cell) for cell in cells]
    mixed = data.draw(st.permutations(names))
    for part in range(1, parts + 1):
        assert sorted(shard_of(names, part, parts)) == sorted(shard_of(mixed, part, parts))


def test_shards_of_the_papers_matrix_are_of_one_size() -> None:
    names = [
        f"{model}/{method}/W4A4/task{n}"
        for model in ("a", "b", "c")
        for method in ("rtn", "gptq", "awq", "smoothquant", "quarot", "duquant")
        for n in range(10)
    ]
    assert [len(shard_of(names, part, 6)) for part in range(1, 7)] == [30] * 6


def test_shard_out_of_range_is_an_error() -> None:
    with pytest.raises(QBenchError, match="shard 3/2"):
        shard_of(["a/b/c/d"], 3, 2)


def measured(record: Record) -> Outcome:
    return Outcome(record.cell, record.model, "equivalent", record.items, record=record.to_dict())


def failed(record: Record, text: str = "no memory") -> Outcome:
    return Outcome.of_error(record.cell, record.model, MemoryError(text), None)


def write(path: Path, *outcomes: Outcome) -> Path:
    file = OutcomeFile(path)
    for outcome in outcomes:
        file.append(outcome)
    return path


def test_record_files_become_one(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / "1.jsonl", measured(MATH)),
        write(tmp_path / "2.jsonl", measured(CODE)),
    )
    out = tmp_path / "all" / "r.jsonl"
    done = merge([one, two], out)
    assert (done.entries, done.repeated, done.interrupted) == (2, 0, ())
    assert read_records(out) == [MATH, CODE]
    assert out.read_text() == one.read_text() + two.read_text()
    assert merge([one, one], tmp_path / "again.jsonl").entries == 1
    # Merging into one of the parts, again and again, changes nothing more.
    assert merge([one, two], one).entries == 2
    assert merge([one, two], one).repeated == 1
    assert one.read_text() == out.read_text()


def test_cell_that_came_twice_is_kept_once(tmp_path: Path) -> None:
    again = replace(MATH, seconds=77.0, provenance=LATER)
    files = [
        write(tmp_path / "1", measured(MATH)),
        write(tmp_path / "2", measured(again), measured(CODE)),
    ]
    done = merge(files, tmp_path / "out")
    assert (done.entries, done.repeated) == (2, 1)
    assert read_records(tmp_path / "out") == [MATH, CODE]
    assert "2 results, 1 of them more than once" in str(done)


def test_contradiction_names_cell_place_and_both_files_and_keeps_the_output(tmp_path: Path) -> None:
    changed = (not MATH.quantized_correct[0], *MATH.quantized_correct[1:])
    one = write(tmp_path / "1", measured(MATH))
    two = write(tmp_path / "2", measured(replace(MATH, quantized_correct=changed)))
    before = one.read_text()
    with pytest.raises(QBenchError) as caught:
        merge([one, two], one)
    for said in ("rtn/W8A8/math on toy", str(one), str(two), "record.quantized_correct[0]: True"):
        assert said in str(caught.value)
    assert one.read_text() == before
    with pytest.raises(QBenchError, match="differ in status: 'equivalent', 'degraded'"):
        merge([one, write(tmp_path / "3", replace(measured(MATH), status="degraded"))], one)


@pytest.mark.parametrize("order", [1, -1])
def test_record_replaces_the_error_of_an_earlier_try(tmp_path: Path, order: int) -> None:
    files = [write(tmp_path / "1", failed(MATH)), write(tmp_path / "2", measured(MATH))][::order]
    assert merge(files, tmp_path / "out").entries == 1
    assert read_records(tmp_path / "out") == [MATH]


def test_cell_that_failed_everywhere_stays_as_a_failure(tmp_path: Path) -> None:
    files = [write(tmp_path / "1", failed(MATH)), write(tmp_path / "2", failed(MATH, "no disk"))]
    assert merge(files, tmp_path / "out").entries == 1
    (line,) = (tmp_path / "out").read_text().splitlines()
    assert json.loads(line)["status"] == "infra"


def test_line_that_a_kill_cut_off_is_left_out_and_told(tmp_path: Path) -> None:
    one = write(tmp_path / "1", measured(MATH), measured(CODE))
    one.write_text(one.read_text()[:-20])
    done = merge([one], tmp_path / "out")
    assert (done.entries, done.interrupted) == (1, (one,))
    assert str(one) in str(done)
    assert read_records(tmp_path / "out") == [MATH]
    two = write(tmp_path / "2", measured(CODE))
    assert merge([one, two], tmp_path / "both").entries == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reco', r"1:2: not JSON"),
        ("[]", r"1:2: expected a JSON object, found list"),
        ('{"cell": "a/b/c"}', r"1:2: field 'model' is missing"),
        (
            replace(measured(MATH), cell="rtn/W8A8/code").to_json(),
            "the line is about rtn/W8A8/code",
        ),
        (replace(measured(MATH), record={"record_version": 1}).to_json(), "record_version is 1"),
    ],
)
def test_broken_line_is_named_and_nothing_is_written(
    tmp_path: Path, line: str, message: str
) -> None:
    one = write(tmp_path / "1", measured(MATH))
    one.write_text(one.read_text() + line + "\n")
    with pytest.raises(QBenchError, match=message):
        merge([one], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_an_error(tmp_path: Path) -> None:
    one, folder = write(tmp_path / "1", measured(MATH)), tmp_path / "store"
    folder.mkdir()
    out = write(tmp_path / "out", measured(CODE))
    for paths, target, message in (
        ([], out, "nothing to merge"),
        ([tmp_path / "absent"], out, "does not exist"),
        ([one, folder], out, "merge stores with stores"),
        ([one], out, "exists and is none of the files to merge"),
        ([one], folder, "is a folder, expected a file"),
        ([folder], out, "is a file, expected a folder"),
    ):
        with pytest.raises(QBenchError, match=message):
            merge(paths, target)
    assert read_records(out) == [CODE]


def stored(folder: Path, *records: Record) -> Path:
    store = Store(folder)
    for record in records:
        key = {"model": record.model, "method": record.method, "task": record.task}
        store.put("records", key, record.to_dict())
        store.put("answers", {**key, "chunk": 0}, list(record.quantized_answers))
    return folder


def test_stores_become_one(tmp_path: Path) -> None:
    one, two = (
        stored(tmp_path / "1", MATH),
        stored(tmp_path / "2", CODE, replace(MATH, seconds=9.0)),
    )
    done = merge([one, two], tmp_path / "all")
    assert (done.entries, done.repeated) == (4, 2)
    merged = Store(tmp_path / "all")
    assert sorted(record.cell for record in merged.records()) == [CODE.cell, MATH.cell]
    assert MATH in merged.records()
    assert merged.kinds() == ["answers", "records"]
    assert merge([two], one).entries == 4
    assert sorted(r.cell for r in Store(one).records()) == [CODE.cell, MATH.cell]


def test_stores_that_contradict_each_other_are_not_merged(tmp_path: Path) -> None:
    wrong = replace(MATH, fidelity={**MATH.fidelity, "agreement": 0.5})
    one, two = stored(tmp_path / "1", CODE, MATH), stored(tmp_path / "2", wrong)
    with pytest.raises(QBenchError) as caught:
        merge([one, two], tmp_path / "all")
    for said in ("toy rtn math", str(one), str(two), "fidelity.agreement: 0.925, 0.5"):
        assert said in str(caught.value)
    assert not (tmp_path / "all").exists()
    with pytest.raises(QBenchError, match="differ in"):
        merge([two], one)


def test_damaged_file_of_a_store_stops_the_merge(tmp_path: Path) -> None:
    one = stored(tmp_path / "1", MATH)
    path = next((one / "records").glob("??/*.json"))
    path.write_text(path.read_text().replace("0.925", "0.926"))
    with pytest.raises(QBenchError, match="is damaged"):
        merge([one], tmp_path / "all")
    assert not (tmp_path / "all").exists()
