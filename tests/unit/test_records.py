from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.jsonfiles import set_member, write_atomic
from dllm_qbench.outcomes import Outcome, OutcomeFile, read_records
from dllm_qbench.records import Record
from tests.helpers.records import make_record


def test_accuracies_and_drop_follow_the_answers() -> None:
    record = make_record(counts=(80, 10, 2, 8))
    assert record.cell == "gptq/W4A16-g64/math"
    assert (record.items, record.reference_accuracy, record.quantized_accuracy) == (100, 0.9, 0.82)
    assert record.drop == pytest.approx(100 * 8 / 90)


def test_json_round_trip_gives_an_equal_record_in_the_same_order(tmp_path: Path) -> None:
    profile = {"z.first": 3.0, "a.second": 2.0}
    record = make_record(layer_sqnr=profile, local_sqnr=profile)
    assert record.fidelity
    assert record.trajectory
    record.write(tmp_path / "new" / "record.json")
    again = Record.read(tmp_path / "new" / "record.json")
    assert again == record
    assert list(again.layer_sqnr) == list(again.local_sqnr) == ["z.first", "a.second"]
    assert record.to_json().count("\n") == 0


def test_first_cuts_every_tuple() -> None:
    record = make_record(counts=(5, 1, 1, 3)).first(6)
    assert record.items == len(record.kinds) == len(record.quantized_answers) == 6
    assert record.reference_accuracy == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("a",)}, "'kinds' has 1 entries for 100 items"),
        ({"quantized_correct": (1,) * 100}, "'quantized_correct' must be a tuple of bool"),
        ({"item_ids": ("same",) * 100}, "item 'same' occurs twice"),
        ({"scheme": "W4/A16"}, "'scheme' is 'W4/A16'"),
        ({"task": ""}, "'task' is empty"),
        ({"seed": 0.5}, "'seed' is 0.5, expected an integer"),
        ({"layer_sqnr": {"q": "12"}}, "layer_sqnr['q'] is '12'"),
        ({"local_sqnr": {"q": True}}, "local_sqnr['q'] is True"),
        ({"fidelity": [1]}, "'fidelity' is list, expected Mapping"),
        ({"trajectory": None}, "'trajectory' is NoneType, expected Mapping"),
        ({"recipe": [1]}, "'recipe' is list, expected Mapping"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(QBenchError) as caught:
        replace(make_record(), **change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")},
        {"layer_sqnr": {"q": float("inf")}},
        {"local_sqnr": {"q": float("nan")}},
        {"fidelity": {"logit_sqnr": [1.0, float("nan")]}},
        {"trajectory": {"commit_flips": [float("inf")]}},
        {"recipe": {"alpha": [1.0, float("-inf")]}},
    ],
)
def test_non_finite_numbers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteError, match="expected a finite number"):
        replace(make_record(), **change)


def test_a_drop_from_nothing_is_an_error_and_not_a_number() -> None:
    with pytest.raises(NonFiniteError, match="none of 3 items correctly"):
        _ = make_record([False] * 3, [True] * 3).drop


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("scheme"), "field 'scheme' is missing"),
        (lambda d: d.update(extra=1), "unknown field 'extra'"),
        (lambda d: d.update(record_version=9), "record_version is 9"),
        (lambda d: d.update(record_version=2), "record_version is 2, this version of dllm_qbench"),
        (lambda d: d.pop("local_sqnr"), "field 'local_sqnr' is missing"),
        (lambda d: d.update(quantized_accuracy=0.5), "'quantized_accuracy' is 0.5 but"),
        (lambda d: d.update(method=7), "field 'method' is int"),
        (lambda d: d.update(audits=None), "field 'audits' must be a tuple of str"),
        (lambda d: d.update(audit_findings=[3]), "field 'audit_findings' must be a tuple of str"),
    ],
)
def test_reading_names_the_file_and_the_broken_field(
    edit: Any, message: str, tmp_path: Path
) -> None:
    data = make_record().to_dict()
    edit(data)
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(QBenchError) as caught:
        Record.read(tmp_path / "r.json")
    assert "r.json" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', r"not JSON at line 1, column 8: .*\(the file ends early\)"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_text_that_is_no_record_is_an_error(text: str, message: str) -> None:
    with pytest.raises(QBenchError, match=message):
        Record.from_json(text)


def test_recipe_that_is_not_json_is_an_error() -> None:
    with pytest.raises(QBenchError, match="not expressible as JSON"):
        replace(make_record(), recipe={"scheme": object()}).to_json()


def test_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file.json"
    write_atomic(target, "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_write_keeps_the_mode_of_the_file(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    target.write_text("old")
    target.chmod(0o640)
    write_atomic(target, "new")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ('{"a" :  1.00,"c":[ 2 ]}', ("a",), '{"a" :  5,"c":[ 2 ]}'),
        ('{"a": 1,\n  "c": 2}', ("b",), '{"a": 1,\n  "b": 5,\n  "c": 2}'),
        ('{"c": 2, "a": 1}', ("a",), '{"c": 2, "a": 5}'),
        ('{"a": 1}', ("b",), '{"a": 1,\n  "b": 5}'),
        ('{"x": { }}', ("x", "a"), '{"x": {\n    "a": 5\n  }}'),
        ('\n{"s": "}{,", "x": {"k": "\\""}}', ("x", "k"), '\n{"s": "}{,", "x": {"k": 5}}'),
    ],
)
def test_setting_a_member_keeps_every_other_byte(
    text: str, path: tuple[str, ...], expected: str
) -> None:
    assert set_member(text, path, 5) == expected


def outcome(record: Record | None) -> Outcome:
    return Outcome.of_error("gptq/W4A16-g64/math", "toy", ValueError("x"), record)


def test_record_file_keeps_every_finished_cell_of_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    file = OutcomeFile(path)
    file.append(outcome(make_record()))
    file.append(outcome(None))
    file.append(outcome(make_record(counts=(1, 1, 1, 1))))
    whole = path.read_text()
    path.write_text(whole[:-20])  # killed while the last line was written
    assert read_records(path) == [make_record()]
    path.write_text(whole)
    assert read_records(path)[1] == make_record(counts=(1, 1, 1, 1))


def test_record_file_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        OutcomeFile(tmp_path / "records.jsonl").append(outcome(make_record()))
    assert len(read_records(tmp_path / "records.jsonl")) == 1


def test_broken_line_of_a_record_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"record": null}\n{"reco\n')
    with pytest.raises(QBenchError, match=r"r\.jsonl:2: not JSON"):
        read_records(tmp_path / "r.jsonl")


def test_odd_answers_survive_the_record_file(tmp_path: Path) -> None:
    odd = ("line\nbreak\u2028\u0085", "lone \ud800", "", "\x00")
    record = replace(make_record([True] * 4, [True] * 4), quantized_answers=odd)
    OutcomeFile(tmp_path / "r.jsonl").append(outcome(record))
    assert read_records(tmp_path / "r.jsonl")[0].quantized_answers == odd
