"""Reading is strict and names the place; writing changes one cell and no other byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.baselines import (
    CellBaseline,
    baseline_path,
    preview_cell,
    read_baselines,
    write_cell,
)
from dllm_qbench.bitsets import pack_bits, unpack_bits
from dllm_qbench.errors import BaselineError
from dllm_qbench.noise import DRAWS, PLATFORM
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.judge import judge
from tests.helpers.records import PROVENANCE, make_record

CELL = "gptq/W4A16-g64/math"
Data = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three cells."""
    path = tmp_path / "toy.json"
    for cell in (CELL, "rtn/W4A4/general", "gptq/W3A16-g64/code"):
        write_cell(path, make_record(cell=cell))
    return path


def test_what_was_written_reads_back(path: Path) -> None:
    baselines = read_baselines(path)
    record = make_record()
    stored = baselines.cell(CELL)
    assert sorted(baselines.cells) == list(baselines.cells)
    assert stored.reference_correct == record.reference_correct
    assert stored.quantized_correct == record.quantized_correct
    assert list(stored.layer_sqnr.items()) == list(record.layer_sqnr.items())
    assert list(stored.local_sqnr.items()) == list(record.local_sqnr.items())
    assert stored.fidelity == record.fidelity
    assert list(stored.sequence_match) == record.trajectory["sequence_match"]
    assert list(stored.commit_flips) == record.trajectory["commit_flips"]
    assert stored.first_divergence == {"never": 5, "1": 1, "2": 2}
    assert (stored.platform, stored.draws) == (PLATFORM, DRAWS)
    assert replace(stored, source="baseline") == CellBaseline.from_record(record)
    assert stored.provenance == record.provenance
    assert judge(record, path).status == "equivalent"


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_round_trip(values: list[bool]) -> None:
    assert unpack_bits(pack_bits(values), len(values)) == tuple(values)


def test_bits_are_most_significant_first() -> None:
    assert base64.b64decode(
        pack_bits([True, False, False, False, False, False, False, True, True])
    )[:2] == bytes([0x81, 0x80])


def edit_cell(change: Callable[[Data], object]) -> Callable[[Data], object]:
    return lambda data: change(data["cells"][CELL])


def edit_provenance(change: Callable[[Data], object]) -> Callable[[Data], object]:
    return lambda data: change(data["cells"][CELL]["provenance"])


HERE = f"cells['{CELL}']"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        *(
            (edit_cell(lambda c, name=name: c.pop(name)), f"field {HERE}.{name} is missing")
            for name in (
                "band items items_seed item_checks reference_accuracy quantized_accuracy "
                "drop_percent drop_interval reference_bits quantized_bits reference_checks "
                "layer_sqnr local_sqnr fidelity trajectory noise recipe recipe_hash provenance"
            ).split()
        ),
        (lambda d: d.pop("model"), "field model is missing"),
        (lambda d: d.update(schema_version=1), "field schema_version: 2 was expected"),
        (lambda d: d.update(extra=2), "field at the top: "),
        (lambda d: d["cells"].update(nonsense=1), "field cells"),
        (edit_cell(lambda c: c["band"].update(kind="sharp")), f"field {HERE}.band.kind: 'sharp'"),
        (
            edit_cell(lambda c: c.update(band={"kind": "collapse"})),
            f"{HERE}.band: min_drop is miss",
        ),
        (edit_cell(lambda c: c.update(quantized_accuracy=1.5)), f"field {HERE}.quantized_accuracy"),
        (edit_cell(lambda c: c.update(quantized_accuracy=0.5)), "contradicts the bits"),
        (edit_cell(lambda c: c.update(drop_percent=1.0)), f"{HERE}.drop_percent: 1.0 contradicts"),
        (edit_cell(lambda c: c.update(drop_interval=[50, 60])), f"{HERE}.drop_interval: "),
        (edit_cell(lambda c: c.update(items=99)), f"{HERE}.item_checks: 100 bytes in base64"),
        (edit_cell(lambda c: c.update(reference_bits="AAAA")), f"{HERE}.reference_bits: 3 bytes"),
        (
            edit_cell(lambda c: c.update(reference_checks="AAAA")),
            f"{HERE}.reference_checks: 3 byte",
        ),
        (edit_cell(lambda c: c.update(local_sqnr={"q": None})), f"{HERE}.local_sqnr.q: None"),
        (
            edit_cell(lambda c: c["trajectory"].update(items=99)),
            f"{HERE}.trajectory.sequence_match: 1 bytes",
        ),
        (
            edit_cell(lambda c: c["trajectory"].update(commit_flips=[1.5])),
            f"field {HERE}.trajectory.commit_flips",
        ),
        (
            edit_cell(lambda c: c["fidelity"].update(perplexity=3.0)),
            f"field {HERE}.fidelity: Additional properties",
        ),
        (
            edit_cell(lambda c: c["fidelity"].update(logit_sqnr=[1.0, "x"])),
            f"field {HERE}.fidelity.logit_sqnr",
        ),
        (
            edit_cell(lambda c: c["noise"]["draws"].pop("nll")),
            f"field {HERE}.noise.draws.nll is missing",
        ),
        (
            edit_cell(lambda c: c["noise"]["platform"].update(flips=-0.1)),
            f"field {HERE}.noise.platform.flips",
        ),
        (edit_cell(lambda c: c["noise"].pop("platform")), f"{HERE}.noise.platform is missing"),
        (edit_cell(lambda c: c.update(quantized_bits="A!==")), f"field {HERE}.quantized_bits"),
        (edit_cell(lambda c: c.update(quantized_bits="A" * 20)), f"{HERE}.quantized_bits: "),
        (edit_cell(lambda c: c.update(layer_sqnr={"q": "x"})), f"{HERE}.layer_sqnr.q: 'x'"),
        (edit_provenance(lambda p: p.pop("threads")), f"{HERE}.provenance.threads is missing"),
        (edit_provenance(lambda p: p.update(source="paper")), f"{HERE}.provenance.source"),
    ],
)
def test_error_names_file_and_field(
    edit: Callable[[Data], object], message: str, path: Path
) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BaselineError) as caught:
        read_baselines(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_score_that_is_not_finite_is_named(value: str, path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('"quantized_accuracy": 0.82', f'"quantized_accuracy": {value}', 1))
    with pytest.raises(
        BaselineError, match=r"'quantized_accuracy'\] is -?(nan|inf), expected a fin"
    ):
        read_baselines(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated_file_is_an_error_at_any_length(share: float, path: Path) -> None:
    text = path.read_text().rstrip()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(BaselineError, match=r"toy\.json: not JSON at line \d+, column \d+"):
        read_baselines(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", "field at the top: .* is not of type 'object'"),
        (b'{"model": "a", "model": "b"}', "key 'model' occurs twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b"null", "None is not of type 'object'"),
    ],
)
def test_file_that_is_no_baseline_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(BaselineError, match=message):
        read_baselines(tmp_path / "bad.json")


def test_missing_file_and_missing_cell_say_how_to_record(path: Path) -> None:
    with pytest.raises(BaselineError, match=r"no such file; .* pytest --qbench-update"):
        read_baselines(path.with_name("none.json"))
    with pytest.raises(BaselineError, match="pytest --qbench-update -k toy-rtn-W8A8-math"):
        judge(make_record(cell="rtn/W8A8/math"), path)
    with pytest.raises(BaselineError, match="cannot be read"):
        read_baselines(path.parent)


def without(text: str, cell: str) -> Data:
    data: Data = json.loads(text)
    data["cells"].pop(cell, None)
    return data


@pytest.mark.parametrize("cell", [CELL, "aaa/W8A8/math", "rtn/W4A4/code", "zzz/W8A8/math"])
def test_update_leaves_every_other_byte_alone(cell: str, path: Path) -> None:
    # A person's formatting, spelling of numbers and key order in other cells must survive.
    text = path.read_text().replace(
        '"quantized_accuracy": 0.82,', '"quantized_accuracy" : 8.20E-1,'
    )
    path.write_text(text)
    write_cell(path, make_record(cell=cell, counts=(70, 20, 2, 8)))
    new = path.read_text()
    assert without(new, cell) == without(text, cell)
    start = next(n for n, (a, b) in enumerate(zip(text, new, strict=False)) if a != b)
    tail = next(n for n, (a, b) in enumerate(zip(text[::-1], new[::-1], strict=False)) if a != b)
    untouched = text[:start].count("8.20E-1") + text[len(text) - tail :].count("8.20E-1")
    assert untouched == (2 if cell == CELL else 3)
    assert read_baselines(path).cell(cell).quantized_correct.count(True) == 72


def test_line_ends_of_other_cells_survive_an_update(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    before = path.read_bytes().count(b"\r\n")
    write_cell(path, make_record(cell="zzz/W8A8/math"))
    assert path.read_bytes().count(b"\r\n") == before


def test_update_of_an_unsorted_file_replaces_its_cell(path: Path) -> None:
    data = json.loads(path.read_text())
    data["cells"] = dict(reversed(data["cells"].items()))
    path.write_text(json.dumps(data))
    write_cell(path, make_record(counts=(70, 20, 2, 8)))
    assert list(read_baselines(path).cells) == list(data["cells"])


def test_update_keeps_band_and_noise_floors(path: Path) -> None:
    data = json.loads(path.read_text())
    data["cells"][CELL]["band"] = {"kind": "graceful", "min_drop": 1, "max_drop": 50}
    measured = {"runs": 3, "what": "threads", "flips": 0.25, "layer_sqnr": 1.75}
    data["cells"][CELL]["noise"]["platform"].update(measured)
    data["cells"][CELL]["noise"]["draws"]["net_loss"] = 0.125
    path.write_text(json.dumps(data, indent=2))
    stored = write_cell(path, make_record(counts=(70, 20, 2, 8)))
    assert stored is not None
    assert stored.band == Band("graceful", 1, 50)
    assert (stored.platform.runs, stored.platform.flips, stored.platform.layer_sqnr) == (
        3,
        0.25,
        1.75,
    )
    assert stored.draws == replace(DRAWS, net_loss=0.125)
    assert read_baselines(path).cell(CELL) == stored


def test_update_with_the_same_measurement_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    later = {**PROVENANCE, "date": "2027-01-01T00:00:00+00:00", "commit": "later"}
    again = make_record(provenance=later, recipe={"method": "gptq", "scheme": "W4A16-g64"})
    assert preview_cell(path, again) is None
    assert write_cell(path, again) is None
    assert path.read_bytes() == before


def test_update_from_another_checkpoint_says_so_in_the_file(path: Path) -> None:
    sha = "f" * 64
    write_cell(path, make_record(provenance={**PROVENANCE, "checkpoint_sha256": sha}))
    baselines = read_baselines(path)
    assert baselines.checkpoint_sha256 == sha
    assert baselines.cell(CELL).provenance["checkpoint_sha256"] == sha
    assert baselines.cell("rtn/W4A4/general").provenance["checkpoint_sha256"] != sha


def test_preview_writes_nothing(tmp_path: Path) -> None:
    assert preview_cell(tmp_path / "toy.json", make_record()) is not None
    assert list(tmp_path.iterdir()) == []


def test_update_refuses_fewer_items_another_model_and_a_broken_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(BaselineError, match="--qbench-items=100"):
        write_cell(path, make_record(counts=(8, 1, 0, 1)))
    with pytest.raises(BaselineError, match="model is 'toy', the record's is 'else'"):
        write_cell(path, make_record(model="else"))
    assert path.read_bytes() == before
    path.write_bytes(before[:-10])
    with pytest.raises(BaselineError, match="not JSON"):
        write_cell(path, make_record())
    assert path.read_bytes() == before[:-10]


def test_record_that_makes_no_baseline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    with pytest.raises(BaselineError, match="none of 4 items correctly"):
        write_cell(path, make_record([False] * 4, [True] * 4))
    poor = {key: value for key, value in PROVENANCE.items() if key != "threads"}
    with pytest.raises(BaselineError, match=r"provenance\.threads is missing"):
        write_cell(path, make_record(provenance=poor))
    assert not path.exists()


def test_model_names_become_file_names() -> None:
    assert baseline_path("b", "llada-embedded") == Path("b/llada-embedded.json")
    assert baseline_path("b", "GSAI-ML/LLaDA-8B-Base") == Path("b/GSAI-ML--LLaDA-8B-Base.json")
    assert baseline_path("b", "../up").parent == Path("b")


def test_cell_that_measured_nothing_but_answers_can_be_stored(tmp_path: Path) -> None:
    record = make_record(layer_sqnr={}, local_sqnr={}, fidelity={}, trajectory={})
    write_cell(tmp_path / "toy.json", record)
    assert judge(record, tmp_path).status == "equivalent"
    assert read_baselines(tmp_path / "toy.json").cell(CELL).sequence_match == ()


def test_checks_of_full_precision_stop_at_500_answers_and_take_any_text(tmp_path: Path) -> None:
    answers = ("lone \ud800", "", *(["same"] * 698))
    record = replace(make_record(counts=(500, 100, 20, 80)), reference_answers=answers)
    stored = write_cell(tmp_path / "toy.json", record)
    assert stored is not None
    assert len(stored.reference_checks) == 500
    assert judge(record, tmp_path).status == "equivalent"


def test_stored_fidelity_keeps_three_digits_and_small_numbers_three_figures(tmp_path: Path) -> None:
    kl = {"high": {"tokens": 7, "q25": 1.23456e-6, "q50": 0.0098765, "q75": 2.34567}}
    record = make_record(fidelity={"kl": kl, "logit_sqnr": [14.00049, -0.5]})
    stored = write_cell(tmp_path / "toy.json", record)
    assert stored is not None
    assert read_baselines(tmp_path / "toy.json").cell(CELL).fidelity == {
        "kl": {"high": {"tokens": 7, "q25": 1.23e-6, "q50": 0.00988, "q75": 2.346}},
        "logit_sqnr": [14.0, -0.5],
    }


def test_stored_sqnr_is_rounded_and_still_within_any_tolerance(tmp_path: Path) -> None:
    record = replace(make_record(), layer_sqnr={"q": 20.00049})
    write_cell(tmp_path / "toy.json", record)
    assert judge(record, tmp_path).status == "equivalent"
