"""The store: whole or not there, the same or an error, and nothing that a kill leaves is ever read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.engine import store as module
from dllm_qbench.engine import store_format
from dllm_qbench.engine.store import Store, code_version
from dllm_qbench.engine.store_format import VOLATILE, first_difference
from dllm_qbench.errors import NonFiniteError, QBenchError
from tests.helpers.records import make_record

ROOT = Path(__file__).parents[2]
KEY = {"model": "toy", "items": [0, 50], "code": "1"}
VALUE = {"answers": ["a", "b"], "correct": [True, False]}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
KEYS = st.dictionaries(st.text(), JSON, min_size=1, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def only_file(store: Store, kind: str = "answers") -> Path:
    (path,) = (store.folder / kind).glob("??/*.json")
    return path


def text(value: Any) -> str:
    """Spell a value so that 1, 1.0 and True, and other orders of members, are told apart."""
    return json.dumps(value)


@given(key=KEYS, value=JSON.filter(lambda value: value is not None))
def test_what_is_put_is_what_is_got_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, key: dict[str, Any], value: Any
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder)
    assert store.get("answers", key) is None
    store.put("answers", key, value)
    again = Store(folder)
    assert text(again.get("answers", key)) == text(value)
    assert again.get("drafts", key) is None
    ((kept_key, kept),) = again.entries("answers")
    assert (kept_key, text(kept)) == (key, text(value))


def test_place_of_a_value_depends_on_what_the_key_says_alone(store: Store) -> None:
    store.put("answers", {"a": 1, "b": {"x": (1, 2), "y": 0.5}}, VALUE)
    assert store.get("answers", {"b": {"y": 0.5, "x": [1, 2]}, "a": 1}) == VALUE
    for other in ({"a": 2}, {"a": 1, "b": {"x": [2, 1], "y": 0.5}}, {"a": True, "b": {}}):
        assert store.get("answers", other) is None
    path = only_file(store)
    digest = path.stem
    assert (len(digest), path.parent.name, path.parents[1].name) == (64, digest[:2], "answers")
    assert json.loads(path.read_text())["key"] == {"a": 1, "b": {"x": [1, 2], "y": 0.5}}


def test_putting_the_same_again_changes_nothing(store: Store) -> None:
    store.put("answers", KEY, VALUE)
    before = only_file(store).stat()
    store.put("answers", KEY, dict(VALUE))
    after = only_file(store).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("new", "place"),
    [
        ({"answers": ["a", "c"], "correct": [True, False]}, r"answers\[1\]: 'b', 'c'"),
        ({"answers": ["a", "b"], "correct": [True, 0]}, r"correct\[1\]: False, 0"),
        ({"answers": ["a"], "correct": [True, False]}, r"answers: \['a', 'b'\], \['a'\]"),
        ({"answers": ["a", "b"]}, r"members: \['answers', 'correct'\], \['answers'\]"),
        ([1], r"value: \{.*\}, \[1\]"),
    ],
)
def test_another_result_of_the_same_key_is_an_error_that_says_where(
    store: Store, new: Any, place: str
) -> None:
    store.put("answers", KEY, VALUE)
    with pytest.raises(QBenchError, match=f"another result of the same key: {place}") as caught:
        store.put("answers", KEY, new)
    assert only_file(store).name in str(caught.value)
    assert store.get("answers", KEY) == VALUE


def test_when_and_how_long_may_differ_and_the_first_stays(store: Store) -> None:
    first = make_record()
    again = replace(
        first, seconds=99.0, provenance={**first.provenance, "date": "later", "commit": "def"}
    )
    store.put("records", KEY, first.to_dict())
    store.put("records", KEY, again.to_dict())
    assert list(store.records()) == [first]
    other = replace(first, provenance={**first.provenance, "threads": 7})
    with pytest.raises(QBenchError, match=r"provenance\.threads: 1, 7"):
        store.put("records", KEY, other.to_dict())


@given(value=JSON, name=st.sampled_from(sorted(VOLATILE)), one=JSON, other=JSON)
def test_volatile_members_never_count(value: Any, name: str, one: Any, other: Any) -> None:
    left, right = {"a": [value, {name: one}]}, {"a": [value, {name: other}]}
    assert first_difference(left, right) is None
    assert first_difference(left, {"a": [value, {}]}) is None


def test_order_of_members_says_nothing_and_that_of_entries_does() -> None:
    assert first_difference({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}) is None
    assert first_difference({"b": [1, 2], "a": 1}, {"a": 2, "b": [2, 1]}) == "b[0]: 1, 2"


def damage(content: bytes, how: str) -> bytes:
    match how:
        case "flip":
            return content.replace(b'"answers": ["a"', b'"answers": ["c"')
        case "cut":
            return content[: len(content) // 2]
        case "empty":
            return b""
        case "bytes":
            return content.replace(b'"a"', b'"\xff"')
        case "members":
            return json.dumps({"store_version": 1, "value": 1}).encode()
        case "list":
            return b"[]"
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "bytes", "members", "list"])
def test_damaged_file_is_named_with_what_to_do(store: Store, how: str) -> None:
    store.put("answers", KEY, VALUE)
    path = only_file(store)
    path.write_bytes(damage(path.read_bytes(), how))
    for read in (
        lambda: store.get("answers", KEY),
        lambda: store.put("answers", KEY, VALUE),
        lambda: list(store.entries("answers")),
    ):
        with pytest.raises(QBenchError, match=r"is damaged: .*delete it, and a new run") as caught:
            read()
        assert str(path) in str(caught.value)
    path.unlink()
    store.put("answers", KEY, VALUE)
    assert store.get("answers", KEY) == VALUE


def test_every_changed_byte_is_noticed(store: Store) -> None:
    store.put("answers", KEY, VALUE)
    path = only_file(store)
    content = path.read_bytes()
    for n in range(0, len(content) - 1, 3):  # all but the newline at the end
        path.write_bytes(content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :])
        with pytest.raises(QBenchError):
            store.get("answers", KEY)


def test_file_in_the_place_of_another_is_noticed(store: Store) -> None:
    store.put("answers", KEY, VALUE)
    path = only_file(store)
    store.put("answers", {"other": 1}, [1])
    (other,) = set((store.folder / "answers").glob("??/*.json")) - {path}
    other.write_bytes(path.read_bytes())
    with pytest.raises(QBenchError, match="holds the result of another key"):
        store.get("answers", {"other": 1})


def test_store_of_another_version_is_told_from_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_format, "STORE_VERSION", 9)
    store.put("answers", KEY, VALUE)
    monkeypatch.undo()
    with pytest.raises(
        QBenchError, match="store_version is 9, this version of dllm_qbench reads 1"
    ):
        store.get("answers", KEY)


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("answers", {}, 1, "expected a mapping with members"),
        ("answers", {1: 2}, 1, "the name 1 is no text"),
        ("answers", {"a": object()}, 1, "not expressible as JSON"),
        ("answers", {"a": float("nan")}, 1, "not expressible as JSON"),
        ("answers", KEY, None, "the value is None"),
        ("answers", KEY, {"x": {1}}, "not expressible as JSON"),
        ("answers", KEY, {1: 0, "1": 0}, "key '1' occurs twice"),
        ("../up", KEY, 1, "expected a lower-case word"),
        ("tmp", KEY, 1, "expected a lower-case word"),
    ],
)
def test_what_cannot_be_kept_is_an_error_and_leaves_nothing(
    store: Store, kind: str, key: Any, value: Any, message: str
) -> None:
    with pytest.raises(QBenchError, match=message):
        store.put(kind, key, value)
    assert not list(store.folder.rglob("*.json"))


def test_non_finite_value_is_named(store: Store) -> None:
    with pytest.raises(NonFiniteError, match=r"answers\['x'\]\[1\] is nan"):
        store.put("answers", KEY, {"x": [0.0, float("nan")]})


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QBenchError, match="is a file, expected a folder"):
        Store(tmp_path / "file")


def test_failed_write_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        store.put("answers", KEY, VALUE)
    monkeypatch.undo()
    assert not [path for path in store.folder.rglob("*") if path.is_file()]
    store.put("answers", KEY, VALUE)


def test_writers_at_once_keep_one_value(store: Store) -> None:
    values = [{"answers": [n % 2]} for n in range(16)]
    start = threading.Barrier(len(values))
    told: list[str] = []

    def put(value: Any) -> None:
        start.wait()
        try:
            store.put("answers", KEY, value)
        except QBenchError:
            told.append("differs")
        else:
            told.append("kept")

    threads = [threading.Thread(target=put, args=[value]) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["differs"] * 8 + ["kept"] * 8
    assert not list((store.folder / "tmp").iterdir())


def test_litter_of_the_dead_is_removed_and_that_of_the_living_is_not(store: Store) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from dllm_qbench.engine.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "store._temporary('half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    store.put("answers", KEY, VALUE)
    subprocess.run([sys.executable, "-c", code, str(store.folder)], cwd=ROOT, check=False)
    (dead,) = (store.folder / "tmp").iterdir()
    living = store._temporary("half")
    far_new, far_old = dead.with_name("elsewhere-1-2-3"), dead.with_name("elsewhere-4-5-6")
    for path, age in ((far_new, 3000.0), (far_old, 4000.0)):
        path.write_text("half")
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    assert list(Store(store.folder).entries("answers")) == [(KEY, VALUE)]
    assert set((store.folder / "tmp").iterdir()) == {living, far_new}


def test_folder_of_a_key_is_in_place_to_be_renamed_to(store: Store) -> None:
    place = store.folder_for("quantized", KEY)
    assert place == store.folder_for("quantized", dict(reversed(KEY.items())))
    assert place.parent.is_dir()
    assert not place.exists()
    made = place.with_name("made")
    made.mkdir()
    made.rename(place)
    assert list(store.entries("quantized")) == []
    assert store.kinds() == ["quantized"]


def test_kinds_are_told_without_what_the_store_needs_itself(store: Store) -> None:
    assert store.kinds() == []
    store.put("answers", KEY, 1)
    store.put("records", KEY, 1)
    with store.lease("drafts", KEY):
        assert store.kinds() == ["answers", "records"]


def test_any_change_of_a_source_is_another_code_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "engine" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "engine" / "store.py"))

    def version() -> str:
        code_version.cache_clear()
        return code_version()

    seen = [version()]
    try:
        for name, content in (
            ("a.py", "1"), ("a.py", "2"), ("task.yaml", ""), ("engine/schema.json", "{}"),
        ):  # fmt: skip
            (package / name).write_text(content)
            seen.append(version())
        assert len({*seen}) == len(seen)
        for name in ("notes.md", "engine/__pycache__/b.py"):
            (package / name).write_text("x")
            assert version() == seen[-1]
        (package / "a.py").rename(package / "b.py")
        assert version() not in seen
    finally:
        monkeypatch.undo()
        code_version.cache_clear()
    assert version().startswith(f"{module.__version__}+")
