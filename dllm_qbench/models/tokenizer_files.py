"""Tokenizers of official checkpoints, read natively: no remote code.

LLaDA's folders hold a ``tokenizer.json``. Dream's hold ``vocab.json`` and ``merges.txt`` beside a
Python file that is Qwen2's tokenizer under another name; that file is never run, Qwen2's own class
reads the same data. Chat templates come along from ``tokenizer_config.json`` or
``chat_template.jinja``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import read_json


def load_tokenizer(folder: Path) -> Any:
    """Return a checkpoint's tokenizer, or ``None`` where it has no tokenizer files.

    Raises:
        CheckpointError: files that cannot be read, or added tokens that do not get the ids that
            ``tokenizer_config.json`` gives them.
    """
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if (folder / "tokenizer.json").is_file():
        return _read(PreTrainedTokenizerFast, folder, "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _read(Qwen2Tokenizer, folder, "vocab.json and merges.txt")
        _require_added_ids(tokenizer, folder)
        return tokenizer
    return None


def _read(kind: Any, folder: Path, files: str) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a bad file
        raise CheckpointError(f"{folder}: {files} cannot be read ({error})") from error


def _require_added_ids(tokenizer: Any, folder: Path) -> None:
    """A mask token under another id would be a canvas of the wrong tokens, without an error."""
    path = folder / "tokenizer_config.json"
    added = read_json(path).get("added_tokens_decoder", {}) if path.is_file() else {}
    for number, token in added.items():
        text = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.convert_tokens_to_ids(text)
        if found != int(number):
            raise CheckpointError(
                f"{path}: token {text!r} should have id {number}, but reads as {found}:"
                " vocab.json, merges.txt and tokenizer_config.json do not belong together"
            )
