"""Running text for calibrating real models, from a local file or from the local Hugging Face cache.

``data_dir/calibration.jsonl`` (field ``text``) or ``data_dir/calibration.txt`` (paragraphs); without
``data_dir``, the training split of WikiText-2 (raw) as the cache of ``datasets`` holds it. Nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.errors import CalibrationError, QBenchError
from dllm_qbench.jsonfiles import parse_json

if TYPE_CHECKING:
    from dllm_qbench.models.lm import DiffusionLM

HUB_ID: Final = "Salesforce/wikitext"
HUB_CONFIG: Final = "wikitext-2-raw-v1"
COMMAND: Final = f"python -c \"import datasets; datasets.load_dataset('{HUB_ID}', '{HUB_CONFIG}')\""


def calibration_texts(data_dir: Path | None) -> tuple[list[str], str]:
    """Return texts in their order, and what a recipe calls their source.

    Raises:
        CalibrationError: there are none, or a record has no text; names file and record, and says how
            to get them.
    """
    if data_dir is None:
        return _from_cache()
    for name, read in (("calibration.jsonl", _json_lines), ("calibration.txt", _paragraphs)):
        path = data_dir / name
        if path.is_file():
            content = path.read_bytes()
            texts = read(path, content.decode("utf-8", "replace"))
            if not texts:
                raise CalibrationError(f"{path}: holds no text")
            return texts, f"{name} {hashlib.sha256(content).hexdigest()[:12]}"
    raise CalibrationError(
        f"{data_dir}: neither calibration.jsonl (field 'text') nor calibration.txt is there; methods"
        " calibrate real models on running text: put a file of some 300,000 words there, or leave"
        f" --qbench-data-dir out and fill the cache with: {COMMAND}"
    )


def calibration_status(data_dir: Path | None) -> tuple[bool, str]:
    """Say whether there is text to calibrate on, and where or how to get it; nothing is read."""
    if data_dir is not None:
        for name in ("calibration.jsonl", "calibration.txt"):
            if (data_dir / name).is_file():
                return True, str(data_dir / name)
        return False, f"neither calibration.jsonl nor calibration.txt in {data_dir}"
    from huggingface_hub import constants

    home = Path(constants.HF_HOME)
    for place in (
        Path(constants.HF_HUB_CACHE) / f"datasets--{HUB_ID.replace('/', '--')}",
        Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / HUB_ID.replace("/", "___"),
    ):
        if place.is_dir():
            return True, str(place)
    return False, f"{HUB_ID} ({HUB_CONFIG}) is not in the local cache"


def packed(lm: DiffusionLM, texts: Sequence[str], count: int, length: int) -> list[list[int]]:
    """Return ``count`` sequences of ``length`` tokens: the texts one after another, cut to pieces.

    A piece starts with the begin-of-text token where the tokenizer has one.

    Raises:
        CalibrationError: no tokenizer, or too little text; says how much there is.
    """
    if lm.tokenizer is None:
        raise CalibrationError(
            f"{lm.name} has no tokenizer files, so it cannot be calibrated on text: put them beside the"
            " checkpoint"
        )
    head = [] if lm.bos_id is None else [lm.bos_id]
    body = length - len(head)
    tokens: list[int] = []
    for text in texts:
        tokens += lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) >= count * body:
            break
    if len(tokens) < count * body:
        raise CalibrationError(
            f"calibration: {count} sequences of {length} tokens take {count * body} tokens of text,"
            f" there are {len(tokens)}; give more text"
        )
    return [head + tokens[n * body : (n + 1) * body] for n in range(count)]


def _json_lines(path: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        value = parse_json(line, f"{path}:{number}")
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise CalibrationError(f"{path}:{number}: field 'text' must be a string")
        texts.append(value["text"])
    return texts


def _paragraphs(_path: Path, content: str) -> list[str]:
    return [part for part in content.split("\n\n") if part.strip()]


def _from_cache() -> tuple[list[str], str]:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        split: Any = datasets.load_dataset(HUB_ID, HUB_CONFIG, split="train")
    except QBenchError:
        raise
    except Exception as error:  # datasets raises many kinds where a cache lacks something
        raise CalibrationError(
            f"calibration text is missing: {HUB_ID} ({HUB_CONFIG}) is not in the local cache; fill it"
            f" with: {COMMAND}; or give --qbench-data-dir with calibration.jsonl or calibration.txt"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    texts = [str(text) for text in split["text"] if str(text).strip()]
    return texts, f"{HUB_ID} {HUB_CONFIG} {split._fingerprint}"
