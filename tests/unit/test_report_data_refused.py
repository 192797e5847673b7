"""What the report's data refuses: values of another kind than they should be, with the cell and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.report.data import build
from dllm_qbench.summary_files import read_outcomes
from dllm_qbench.verdict.judge import judge
from tests.helpers.records import LOCAL, make_record
from tests.helpers.report_runs import built, told


def _with(name: str, value: Any) -> Mapping[str, Any]:
    record = make_record().to_dict()
    *path, last = name.split(".")
    inner = record
    for part in path:
        inner = inner[part]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("fidelity.kl", [], r"fidelity\.kl is \[\], expected an object"),
        ("fidelity.kl", {"huge": {}}, r"fidelity\.kl has a bin 'huge', expected low, middle, high"),
        (
            "fidelity.kl.high.q50",
            -1.0,
            r"fidelity\.kl\.high\.q50 is -1, expected nats, zero or more",
        ),
        ("fidelity.kl.high.q25", "x", r"fidelity\.kl\.high\.q25 is 'x', expected a finite number"),
        ("fidelity.kl.high.tokens", 1.5, r"kl\.high\.tokens is 1\.5, expected a whole number"),
        ("fidelity.logit_sqnr", [1, True], r"fidelity\.logit_sqnr\[1\] is True, expected a finite"),
        ("fidelity.logit_sqnr", 3.0, r"fidelity\.logit_sqnr is 3\.0, expected a list"),
        ("fidelity.agreement", 1.5, r"fidelity\.agreement is 1\.5, expected a share from 0 to 1"),
        ("fidelity.masked_tokens", None, r"fidelity\.masked_tokens is None, expected a whole"),
        ("fidelity.canvases", 2**53, r"fidelity\.canvases is 9007199254740992, expected a whole"),
        ("trajectory.commit_flips", [0.5, 2], r"commit_flips\[1\] is 2, expected a share"),
        ("trajectory.first_divergence", [10**9], r"first_divergence\[0\] is 1000000000, expected"),
        ("trajectory.first_divergence", {}, r"first_divergence is \{\}, expected a list"),
        ("trajectory.sequence_match", [1], r"sequence_match\[0\] is 1, expected true or false"),
        ("layer_sqnr", {"a": 10**400}, r"record: layer_sqnr\['a'\] is 1000"),
        ("seconds", "long", r"seconds is 'long', expected a finite number"),
        (
            "item_ids",
            ["a"],
            r"record: record gptq/W4A16-g64/math: field 'reference_correct' has 100",
        ),
        ("model", "other", r"its record is about gptq/W4A16-g64/math on other"),
    ],
)
def test_a_record_s_value_of_another_kind_is_an_error(field: str, value: Any, said: str) -> None:
    outcome = replace(told(make_record()), record=_with(field, value))
    with pytest.raises(QBenchError, match=rf"^gptq/W4A16-g64/math on toy: .*{said}"):
        build([outcome])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("local_sqnr", {"a": 10**400}, r"record: local_sqnr\['a'\] is 1000"),
        ("seed", "0", "record: record: field 'seed' is '0', expected an integer"),
        ("task", "code", "its record is about gptq/W4A16-g64/code on toy"),
    ],
)
def test_errors_in_the_run_that_is_compared_with_say_so(field: str, value: Any, said: str) -> None:
    outcome = replace(told(make_record()), record=_with(field, value))
    with pytest.raises(QBenchError, match=rf"^main: gptq/W4A16-g64/math on toy: .*{said}"):
        build([], base=[outcome], base_name="main")


TESTS = {"p_values": {"answers": 0.5}, "lost": 4, "gained": 1, "common": 100, "margin": 0.0}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"drop": "x"}, "verdict: field 'drop' is 'x', expected a number or null"),
        ({"drop": 10**400}, "verdict: field 'drop' is 1000"),
        ({"drop": float("nan")}, r"verdict\['drop'\] is nan, expected a finite number"),
        ({"interval": [1.0, None]}, r"verdict: field 'interval' is \[1.0, None\], expected two"),
        ({"place": "there"}, "verdict: field 'place' is 'there', expected an object or null"),
        ({"place": {"first": 3}}, "verdict: field 'place.first' is 3, expected text or null"),
        ({"place": {"contributors": 1}}, r"verdict.place.contributors is 1, expected a list"),
        ({"place": {"contributors": [{}]}}, r"contributors\[0\].module is None, expected text"),
        ({"place": {"by": []}}, r"verdict.place.by is \[\], expected text"),
        ({"findings": [{"text": "x", "check": 1}]}, r"findings\[0\].check is 1, expected text"),
        ({"findings": {}}, "verdict: field 'findings' is no list of objects with a text each"),
        (
            {**TESTS, "lost": "4"},
            "verdict: field 'lost' is '4', expected a number of the 100 items",
        ),
        ({**TESTS, "lost": 100}, "'lost' and 'gained' are 100 and 1, more than the 100 items"),
        ({**TESTS, "common": 101}, "verdict: field 'common' is 101, expected a number of the 100"),
        ({**TESTS, "margin": -1}, "verdict: field 'margin' is -1, expected a number of items"),
        ({**TESTS, "p_values": {"answers": 2}}, "verdict: its tests cannot be read: ValueError"),
        ({"p_values": {}}, "verdict: its tests cannot be read: KeyError"),
    ],
)
def test_a_verdict_s_value_of_another_kind_is_an_error(verdict: dict[str, Any], said: str) -> None:
    outcome = told(make_record(), verdict=verdict)
    with pytest.raises(QBenchError, match=f"^gptq/W4A16-g64/math on toy: .*{said}"):
        build([outcome])


def _places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside one; of a list's entries only the first two."""
    found = [before] if before else []
    entries = list(value.items()) if isinstance(value, dict) else []
    entries += list(enumerate(value[:2])) if isinstance(value, list) else []
    for name, inner in entries:
        found += _places(inner, (*before, name))
    return found


def _judged() -> dict[str, Any]:
    record = make_record()
    stored = replace(record, local_sqnr={**LOCAL, "layers.0.down_proj": 23.0})
    verdict = judge(record, CellBaseline.from_record(stored))
    line: dict[str, Any] = json.loads(Outcome.of_verdict(record, verdict, True).to_json())
    return line


JUDGED = _judged()
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    7,
    0.5,
    1e308,
    10**400,
    "",
    "x",
    [],
    [None],
    {},
    {"first": [1]},
    [["x"]],
)


@settings(max_examples=150)
@given(place=st.sampled_from(_places(JUDGED)), value=st.sampled_from(ODD))
def test_one_odd_value_gives_a_page_s_data_or_an_error_that_names_the_line_or_the_cell(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    line = json.loads(json.dumps(JUDGED))
    inner = line
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    path.write_text(f"{json.dumps(line)}\n", encoding="utf-8")
    try:
        outcomes = read_outcomes(path)
        built(*outcomes, base=outcomes)
    except QBenchError as error:
        said = str(error)
    else:
        return
    assert said.startswith((f"{path}:1: ", f"{line['cell']} on {line['model']}: "))


@pytest.mark.parametrize("items", [99, 10**400, -1])
def test_other_items_than_the_record_s_are_an_error(items: int) -> None:
    outcome = replace(told(make_record()), items=items)
    with pytest.raises(QBenchError, match=r"^gptq/W4A16-g64/math on toy: field 'items' is "):
        build([outcome])


def test_a_number_of_items_to_list_is_not_negative() -> None:
    with pytest.raises(QBenchError, match="discordant is -1, expected a number of items"):
        build([], discordant=-1)
