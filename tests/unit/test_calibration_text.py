"""Running text for calibration: read from a folder, packed without gaps, refused with reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.embedded.corpus import calibration_texts as embedded_texts
from dllm_qbench.tasks.calibration_text import calibration_status, calibration_texts, packed
from tests.helpers.tiny import tiny_llada
from tests.helpers.worded import worded_llada

TEXTS = [text.replace("\n", " ") for text in embedded_texts(3, 0)]


def test_texts_come_from_json_lines_or_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "calibration.txt").write_text("one\nline\n\n\n\ntwo\n\n", encoding="utf-8")
    texts, source = calibration_texts(tmp_path)
    assert [text.strip() for text in texts] == ["one\nline", "two"]
    assert source.startswith("calibration.txt ")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "calibration.jsonl").write_text(lines, encoding="utf-8")
    found, other = calibration_texts(tmp_path)
    assert found == TEXTS
    assert other.startswith("calibration.jsonl ")
    (tmp_path / "calibration.jsonl").write_text(lines.replace("a", "b"), encoding="utf-8")
    assert calibration_texts(tmp_path)[1] != other


def test_missing_or_broken_text_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"neither calibration\.jsonl .* is there"):
        calibration_texts(tmp_path)
    path = tmp_path / "calibration.jsonl"
    path.write_text('{"text": "a"}\n{"words": "b"}\n', encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"calibration\.jsonl:2: field 'text' must be"):
        calibration_texts(tmp_path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match="holds no text"):
        calibration_texts(tmp_path)


def test_status_says_where_text_is_or_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, detail = calibration_status(tmp_path)
    assert (there, str(tmp_path) in detail) == (False, True)
    (tmp_path / "calibration.txt").write_text("text", encoding="utf-8")
    assert calibration_status(tmp_path) == (True, str(tmp_path / "calibration.txt"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert not calibration_status(None)[0]
    (tmp_path / "datasets" / "Salesforce___wikitext").mkdir(parents=True)
    assert calibration_status(None)[0]


def test_without_a_folder_the_error_has_the_command_that_fills_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(CalibrationError, match=r"not in the local cache; fill it with: python -c"):
        calibration_texts(None)


def test_packed_sequences_hold_the_texts_one_after_another() -> None:
    lm = worded_llada()
    assert lm.tokenizer is not None
    head = [] if lm.bos_id is None else [lm.bos_id]
    stream = [t for text in TEXTS for t in lm.tokenizer(text, add_special_tokens=False).input_ids]
    body = 4 - len(head)
    count = len(stream) // body
    rows = packed(lm, TEXTS, count, 4)
    assert [len(row) for row in rows] == [4] * count
    assert [t for row in rows for t in row[len(head) :]] == stream[: count * body]
    with pytest.raises(CalibrationError, match=rf"take {(count + 1) * body} tokens .* are \d+"):
        packed(lm, TEXTS, count + 1, 4)
    with pytest.raises(CalibrationError, match="tiny has no tokenizer files"):
        packed(tiny_llada(), TEXTS, 1, 4)
