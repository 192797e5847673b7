"""Where the paper's data are looked for, how they are read, and what is said where something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

from dllm_qbench.errors import TaskError
from dllm_qbench.tasks.paper import PAPER_TASKS, MissingData, data_status, sources
from dllm_qbench.tasks.paper_data import Source, command, digest, find, read, require
from dllm_qbench.tasks.paper_schemas import FIELDS
from dllm_qbench.tasks.paper_settings import SETTINGS
from tests.helpers.paper_data import record, write_jsonl, write_paper_data

GSM8K, PIQA, MMLU = (sources(SETTINGS[name]) for name in ("gsm8k", "piqa", "mmlu"))


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches of whoever runs the tests play no part."""
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def test_looking_for_files_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom dllm_qbench.tasks.paper import PAPER_TASKS, data_status\n"
        f"[data_status(task, Path({str(tmp_path)!r})) for task in PAPER_TASKS]\n"
        "print([m for m in ('torch', 'lm_eval', 'datasets', 'pandas', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_what_each_task_needs() -> None:
    """Repository, configuration, splits, as lm-eval's definitions have them and the shots ask for."""
    found = {name: sources(SETTINGS[name])[0] for name in PAPER_TASKS}
    assert {name: (s.repository, s.config, s.splits) for name, s in found.items()} == {
        "winogrande": ("allenai/winogrande", "winogrande_xl", ("validation",)),
        "piqa": ("baber/piqa", None, ("validation",)),
        "arc_easy": ("allenai/ai2_arc", "ARC-Easy", ("test",)),
        "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", ("test",)),
        "hellaswag": ("Rowan/hellaswag", None, ("validation",)),
        "mmlu": ("cais/mmlu", "abstract_algebra", ("test", "dev")),
        "gsm8k": ("openai/gsm8k", "main", ("test", "train")),
        "minerva_math": ("EleutherAI/hendrycks_math", "algebra", ("test",)),
        "humaneval": ("openai/openai_humaneval", None, ("test",)),
        "mbpp": ("google-research-datasets/mbpp", "full", ("test",)),
    }
    assert len(MMLU) == 57


def test_a_whole_folder_is_complete(tmp_path: Path) -> None:
    write_paper_data(tmp_path, records=2)
    assert all(data_status(task, tmp_path)[0] for task in PAPER_TASKS)
    assert data_status("mmlu", tmp_path)[1].startswith("114 file(s), such as ")
    for task in PAPER_TASKS:
        for (source, split), files in require(sources(SETTINGS[task]), tmp_path).items():
            assert read(source, split, files)


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_missing_data_say_what_where_and_how_to_get_them(task: str, tmp_path: Path) -> None:
    there, detail = data_status(task, tmp_path)
    assert not there
    source = sources(SETTINGS[task])[0]
    for part in (
        f"task {task}: ",
        source.repository,
        str(tmp_path / task),
        f"hf download {source.repository} --repo-type dataset",
        f"--local-dir {tmp_path / task}",
    ):
        assert part in detail
    with pytest.raises(MissingData, match=f"task {task}"):
        require(sources(SETTINGS[task]), tmp_path)


def test_without_a_folder_the_caches_are_named(tmp_path: Path) -> None:
    there, detail = data_status("piqa", None)
    assert not there
    assert str(tmp_path / "cache/hub") in detail
    assert "--qbench-data-dir" in detail
    assert command(PIQA[0], None) == "hf download baber/piqa --repo-type dataset"


def test_commands_fetch_what_is_used() -> None:
    assert command(GSM8K[0], Path("/d")) == (
        "hf download openai/gsm8k --repo-type dataset --include 'main/*' --local-dir /d/gsm8k"
    )
    assert command(MMLU[0], Path("/d")) == (
        "hf download cais/mmlu --repo-type dataset --exclude 'a[lu]*/*' --local-dir /d/mmlu"
    )


def test_a_missing_subject_is_missing_data(tmp_path: Path) -> None:
    write_paper_data(tmp_path, records=1)
    shutil.rmtree(tmp_path / "mmlu/virology")
    there, detail = data_status("mmlu", tmp_path)
    assert not there
    assert "split 'test' of 'virology' (and 1 more) of cais/mmlu" in detail


def rows() -> list[dict[str, Any]]:
    return [record("gsm8k", n) for n in range(3)]


def as_jsonl(path: Path) -> None:
    write_jsonl(path, rows())


def as_json(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows()))


def as_parquet(path: Path) -> None:
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows()).to_parquet(path)


@pytest.mark.parametrize(
    ("place", "write"),
    [
        ("gsm8k/test.jsonl", as_jsonl),
        ("gsm8k/main/test.jsonl", as_jsonl),
        ("gsm8k/test.json", as_json),
        ("gsm8k/test.parquet", as_parquet),
        ("gsm8k/main/test-00000-of-00001.parquet", as_parquet),
        ("gsm8k/data/test-00000-of-00001.parquet", as_parquet),
    ],
)
def test_every_layout_gives_the_same_records(place: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / place)
    found = find(GSM8K[0], "test", tmp_path)
    assert found == [tmp_path / place]
    assert read(GSM8K[0], "test", found) == [
        {**entry, "id": str(n), "number": n} for n, entry in enumerate(rows())
    ]


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_parquet_keeps_lists_and_objects(task: str, tmp_path: Path) -> None:
    source = sources(SETTINGS[task])[0]
    made = [record(task, n) for n in range(3)]
    plain = read(source, "test", [write_jsonl(tmp_path / "a.jsonl", made)])
    pd.DataFrame(made).to_parquet(tmp_path / "a.parquet")
    assert read(source, "test", [tmp_path / "a.parquet"]) == plain


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        path = tmp_path / f"gsm8k/main/test-0000{shard}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows()[shard : shard + 1]).to_parquet(path)
    records = read(GSM8K[0], "test", find(GSM8K[0], "test", tmp_path))
    assert [entry["question"] for entry in records] == [entry["question"] for entry in rows()[:2]]


def test_the_hub_cache_is_searched(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache/hub/datasets--openai--gsm8k/snapshots/abc"
    as_parquet(snapshot / "main/test-00000-of-00001.parquet")
    assert find(GSM8K[0], "test", None) == [snapshot / "main/test-00000-of-00001.parquet"]


def test_what_datasets_prepared_is_searched(tmp_path: Path) -> None:
    home = tmp_path / "cache/datasets/openai___gsm8k/main/0.0.0/abc"
    Dataset.from_list(rows()).save_to_disk(str(tmp_path / "saved"))
    home.mkdir(parents=True)
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    shutil.copy(arrow, home / "gsm8k-test.arrow")
    found = find(GSM8K[0], "test", None)
    assert found == [home / "gsm8k-test.arrow"]
    assert [entry["answer"] for entry in read(GSM8K[0], "test", found)] == [
        entry["answer"] for entry in rows()
    ]


def test_ids_are_the_data_sets_own_and_unique(tmp_path: Path) -> None:
    arc = sources(SETTINGS["arc_easy"])[0]
    made = [{**record("arc_easy", n), "id": name} for n, name in enumerate(("x", "y", "x"))]
    found = read(arc, "test", [write_jsonl(tmp_path / "a.jsonl", made)])
    assert [entry["id"] for entry in found] == ["x#0", "y", "x#2"]
    ids = [entry["id"] for entry in read(MMLU[0], "test", [mmlu_file(tmp_path)])]
    assert ids == ["abstract_algebra/0", "abstract_algebra/1"]


def mmlu_file(folder: Path) -> Path:
    return write_jsonl(folder / "m.jsonl", [record("mmlu", n) for n in range(2)])


FIELDS_USED = [(task, field) for task, fields in FIELDS.items() for field in fields]


@pytest.mark.parametrize(("task", "field"), FIELDS_USED)
def test_a_missing_field_names_file_record_and_field(task: str, field: str, tmp_path: Path) -> None:
    broken = record(task, 1)
    broken[f"old_{field}"] = broken.pop(field)
    path = write_jsonl(tmp_path / "a.jsonl", [record(task, 0), broken])
    with pytest.raises(TaskError, match=rf"a\.jsonl: record 1: field '{field}' is missing.*old_"):
        read(sources(SETTINGS[task])[0], "test", [path])


@pytest.mark.parametrize(("task", "field"), FIELDS_USED)
def test_a_field_of_another_kind_names_what_was_expected(
    task: str, field: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**record(task, 0), field: None}])
    with pytest.raises(TaskError, match=rf"record 0: field '{field}': expected .*, found None"):
        read(sources(SETTINGS[task])[0], "test", [path])


@pytest.mark.parametrize(
    ("task", "change", "expected"),
    [
        ("winogrande", {"sentence": "no blank"}, "the blank '_'"),
        ("winogrande", {"answer": ""}, "'1' or '2', found ''"),  # the unlabelled test split
        ("arc_easy", {"answerKey": "E"}, "one of the labels"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["A", "B"]}}, "as many 'text' as"),
        ("hellaswag", {"label": ""}, "the place of an ending"),
        ("hellaswag", {"label": "4"}, "the place of an ending"),
        ("mmlu", {"choices": ["a", "b", "c"]}, "a list of 4 strings"),
        ("mmlu", {"answer": "A"}, "a number from 0 to 3"),
        ("piqa", {"label": -1}, "0 or 1, found -1"),
        ("gsm8k", {"answer": "12"}, "after '####'"),
        ("minerva_math", {"solution": "It is 4."}, "in .boxed"),
        ("humaneval", {"test": "assert f(1)"}, "defines check"),
        ("humaneval", {"entry_point": "f()"}, "a function's name"),
        ("mbpp", {"test_list": ["assert f(1)"]}, "three or more strings"),
    ],
)
def test_values_that_cannot_be_scored(
    task: str, change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**record(task, 0), **change}])
    with pytest.raises(TaskError, match=expected):
        read(sources(SETTINGS[task])[0], "test", [path])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", r"a\.jsonl: no records; task gsm8k needs at least one"),
        ("a.jsonl", "{", r"a\.jsonl: cannot be read .*download it again"),
        ("a.jsonl", "[1]\n", r"record 0: expected an object, found list"),
        ("a.json", "{}", r"a\.json: expected a list of records, found dict"),
        ("a.parquet", "version https://git-lfs", r"a\.parquet: cannot be read"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=expected):
        read(GSM8K[0], "test", [tmp_path / name])


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    def of(folder: str, count: int) -> str:
        made = [record("gsm8k", n) for n in range(count)]
        key: tuple[Source, str] = (GSM8K[0], "test")
        return digest({key: [write_jsonl(tmp_path / folder / "test.jsonl", made)]})

    assert of("a", 3) == of("b", 3) != of("c", 2)
