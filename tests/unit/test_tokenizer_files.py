"""Tokenizers read from official files, Dream's without a tokenizer.json and without its Python file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.small_tokenizer import write_tokenizer
from dllm_qbench.models.tokenizer_files import load_tokenizer

# Bytes that the texts below need, then two merges. In the byte-level alphabet G with a dot is the space, C
# with a dot the line feed.
VOCABULARY = ["a", "b", "c", "1", "2", "Ġ", "Ċ", "Ã", "©", "ab", "Ġab"]
MERGES = ["a b", "Ġ ab"]
ADDED = {"<|endoftext|>": 11, "<|im_start|>": 12, "<|beginoftext|>": 14, "<|mask|>": 13}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dream's files by hand: vocabulary, merges, and a config that names Python code."""
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCABULARY)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    (tmp_path / "tokenization_dream.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nraise RuntimeError('remote code ran')\n"
    )
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "added_tokens_decoder": {
            str(number): {"content": text, "special": True} for text, number in ADDED.items()
        },
        "chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ab", [9]),
        ("ab ab", [9, 10]),
        ("aabb", [0, 9, 1]),
        ("12", [3, 4]),  # Qwen2 reads digits one by one
        ("ab12ab", [9, 3, 4, 9]),
        ("a\nb", [0, 6, 1]),
        ("é", [7, 8]),  # two bytes
        ("ab<|mask|>ab", [9, 13, 9]),
        ("<|beginoftext|>ab<|endoftext|>", [14, 9, 11]),
        ("", []),
    ],
)
def test_dream_s_files_read_as_worked_by_hand(folder: Path, text: str, ids: list[int]) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text


def test_special_tokens_and_template_come_from_the_config(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_token_id == 14
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 11
    assert tokenizer.mask_token_id == 13
    assert tokenizer.decode([14, 9, 13, 11], skip_special_tokens=True) == "ab"
    turns = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|im_start|>ab"


def test_python_files_of_a_checkpoint_are_never_run(folder: Path) -> None:
    load_tokenizer(folder)
    assert not (folder / "executed").exists()


def test_added_tokens_under_other_ids_are_an_error(folder: Path) -> None:
    # vocab.json of another model: it ends later, so that the added tokens land elsewhere
    longer = {t: i for i, t in enumerate([*VOCABULARY, "d", "e"])}
    (folder / "vocab.json").write_text(json.dumps(longer))
    with pytest.raises(
        CheckpointError, match=r"token '<\|.*\|>' should have id 1\d, but reads as 1\d"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [("vocab.json", "{"), ("vocab.json", "[]"), ("merges.txt", "a b c\n"), ("merges.txt", "a x\n")],
)
def test_files_that_cannot_be_read_are_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=r"vocab\.json and merges\.txt cannot be read"):
        load_tokenizer(folder)


def test_a_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_half_of_the_files_is_no_tokenizer(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    assert load_tokenizer(folder) is None


def test_tokenizer_json_comes_first(folder: Path) -> None:
    ids = write_tokenizer(folder, "llada")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids("<|mdm_mask|>") == ids["mask"]


@pytest.mark.parametrize("architecture", ["llada", "Dream"])
def test_a_template_in_a_file_of_its_own_is_read(tmp_path: Path, architecture: str) -> None:
    write_tokenizer(tmp_path, architecture, chat=False)
    assert load_tokenizer(tmp_path).chat_template is None
    template = "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    turns = [{"role": "user", "content": "hi"}]
    found = load_tokenizer(tmp_path).apply_chat_template(turns, tokenize=False)
    assert found == "[user: hi]"


# LLaDA's and Dream's turns, as their releases' templates lay them out.
@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (
            "llada",
            "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("Dream", "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_chat_templates_put_the_turns_into_special_tokens(
    tmp_path: Path, architecture: str, expected: str
) -> None:
    write_tokenizer(tmp_path, architecture, chat=True)
    tokenizer = load_tokenizer(tmp_path)
    turns = [{"role": "user", "content": "What?"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == expected
    ids = tokenizer(text)["input_ids"]
    special = [i for i in ids if i in tokenizer.all_special_ids or i >= 256]
    assert [tokenizer.decode([i]) for i in special] == [
        part
        for part in expected.replace("<|", "\0<|").replace("|>", "|>\0").split("\0")
        if "<|" in part
    ]
