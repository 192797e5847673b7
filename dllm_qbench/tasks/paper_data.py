"""The paper's data sets on this machine: where they are looked for, read, and checked. Nothing is downloaded.

A data folder has a folder for each task. In it, either JSON lines by hand or the files of the hub repository:

    winogrande/validation.jsonl                 allenai/winogrande, winogrande_xl
    piqa/validation.jsonl                       baber/piqa
    arc_easy/test.jsonl                         allenai/ai2_arc, ARC-Easy
    arc_challenge/test.jsonl                    allenai/ai2_arc, ARC-Challenge
    hellaswag/validation.jsonl                  Rowan/hellaswag
    mmlu/<subject>/{dev,test}.jsonl             cais/mmlu, 57 subjects
    gsm8k/{train,test}.jsonl                    openai/gsm8k, main
    minerva_math/<subject>/test.jsonl           EleutherAI/hendrycks_math, 7 subjects
    humaneval/test.jsonl                        openai/openai_humaneval
    mbpp/test.jsonl                             google-research-datasets/mbpp, full

``<split>.jsonl`` may also be ``<split>.parquet`` or the hub's ``<split>-00000-of-00001.parquet``, and may lie
in a folder named for the configuration (``gsm8k/main/test-00000-of-00001.parquet``) or in ``data/``, as
``hf download <repository> --repo-type dataset --local-dir <data folder>/<task>`` leaves it. Without a data
folder, the Hugging Face caches are searched: what ``hf download`` and ``datasets.load_dataset`` left there.

No lm-eval and no pandas before something is read: ``qbench doctor`` only asks which files are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.errors import TaskError
from dllm_qbench.tasks.paper_schemas import IDS, checked

_ENDS = (".jsonl", ".json", ".parquet", ".arrow")


class MissingData(TaskError):
    """A task whose data are not on this machine."""


@dataclass(frozen=True)
class Source:
    """Where one subtask's data come from.

    Attributes:
        task: the paper's task; its folder in a data folder.
        repository: on the hub.
        config: the data set's configuration on the hub; ``None`` where there is one only.
        divided: whether the task has a folder for each configuration.
        splits: those that are needed, the one that is asked first.
    """

    task: str
    repository: str
    config: str | None
    divided: bool
    splits: tuple[str, ...]

    def folders(self, data_dir: Path | None) -> list[Path]:
        """Return where files may lie, best first."""
        if data_dir is None:
            roots = [*_hub_snapshots(self.repository), *_prepared(self.repository, self.config)]
        else:
            roots = [data_dir / self.task]
        named = [root / self.config for root in roots if self.config]
        if self.divided and data_dir is not None:
            return named
        return [*named, *(root / "data" for root in roots), *roots]


def command(source: Source, data_dir: Path | None) -> str:
    """Return the command line that fetches a task's data to where :func:`find` looks."""
    words = ["hf", "download", source.repository, "--repo-type", "dataset"]
    if source.config is not None and not source.divided:
        words += ["--include", f"{source.config}/*"]
    if source.repository == "cais/mmlu":  # its folders "all" and "auxiliary_train" are not used
        words += ["--exclude", "a[lu]*/*"]
    if data_dir is not None:
        words += ["--local-dir", str(data_dir / source.task)]
    return shlex.join(words)


def find(source: Source, split: str, data_dir: Path | None) -> list[Path]:
    """Return the files of a split: one, or the hub's shards in order; empty where there are none."""
    for folder in source.folders(data_dir):
        for end in _ENDS:
            if (folder / f"{split}{end}").is_file():
                return [folder / f"{split}{end}"]
        for pattern in (f"{split}-*.parquet", f"*-{split}.arrow", f"*-{split}-*.arrow"):
            if shards := sorted(folder.glob(pattern)):
                return shards
    return []


def require(
    sources: Sequence[Source], data_dir: Path | None
) -> dict[tuple[Source, str], list[Path]]:
    """Return the files of every split of every source.

    Raises:
        MissingData: names the task, what is missing, where it was looked for, the command.
    """
    files = {(s, split): find(s, split, data_dir) for s in sources for split in s.splits}
    absent = [key for key, found in files.items() if not found]
    if absent:
        source, split = absent[0]
        what = f"split {split!r}" + (f" of {source.config!r}" if source.config else "")
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        looked = source.folders(data_dir) or _caches()
        raise MissingData(
            f"task {source.task}: {what}{more} of {source.repository} is not on this machine. Looked for"
            f" {split}.jsonl, .parquet and {split}-*.parquet in: {', '.join(map(str, looked))}."
            f" Download it with: {command(source, data_dir)}"
            + ("" if data_dir else ", or name a folder that holds it with --qbench-data-dir")
        )
    return files


def read(source: Source, split: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a split's records: the fields that the task uses, and ``id`` and ``number``.

    ``id`` is the data set's own where it has one, else the record's number; repeated ones get the
    number too.

    Raises:
        TaskError: a file that cannot be read, no record, or a record that is not as it should be:
            names file, record (from 0) and field.
    """
    records: list[dict[str, Any]] = []
    for path in files:
        for number, raw in enumerate(_rows(path)):
            records.append(checked(source.task, raw, f"{path}: record {number}"))
    if not records:
        raise TaskError(f"{files[0]}: no records; task {source.task} needs at least one")
    own = IDS.get(source.task)
    names = [str(n if own is None else record[own]) for n, record in enumerate(records)]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    ids = [f"{name}#{n}" if name in repeated else name for n, name in enumerate(names)]
    prefix = f"{source.config}/" if source.divided else ""
    return [
        {**record, "id": prefix + name, "number": number}
        for number, (record, name) in enumerate(zip(records, ids, strict=True))
    ]


def digest(files: Mapping[tuple[Source, str], Sequence[Path]]) -> str:
    """Sha256 over the bytes of all files, in order, with what each one is."""
    found = hashlib.sha256()
    for (source, split), paths in sorted(
        files.items(), key=lambda entry: (entry[0][0].config or "", entry[0][1])
    ):
        for path in paths:
            found.update(f"{source.config}|{split}|{path.suffix}|{path.stat().st_size}|".encode())
            with path.open("rb") as stream:
                while block := stream.read(2**20):
                    found.update(block)
    return found.hexdigest()


def _rows(path: Path) -> list[Any]:
    try:
        match path.suffix:
            case ".jsonl":
                lines = path.read_text(encoding="utf-8").split("\n")
                return [json.loads(line) for line in lines if line.strip()]
            case ".json":
                found = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(found, list):
                    raise TaskError(
                        f"{path}: expected a list of records, found {type(found).__name__}"
                    )
                return found
            case ".arrow":
                from datasets import Dataset

                return list(Dataset.from_file(str(path)))
        import pandas

        return [_plain(row) for row in pandas.read_parquet(path).to_dict("records")]
    except TaskError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise TaskError(
            f"{path}: cannot be read ({str(error)[:200]}); download it again"
        ) from error


def _plain(value: Any) -> Any:
    """Return parquet's arrays and numpy's scalars as lists and Python's own."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", default)).expanduser()


def _caches() -> list[Path]:
    """Return the hub's cache and that of ``datasets``."""
    return [
        Path(os.environ.get("HF_HUB_CACHE", _home() / "hub")).expanduser(),
        Path(os.environ.get("HF_DATASETS_CACHE", _home() / "datasets")).expanduser(),
    ]


def _hub_snapshots(repository: str) -> list[Path]:
    """Return the snapshots that ``hf download`` left, newest first."""
    folder = _caches()[0] / f"datasets--{repository.replace('/', '--')}" / "snapshots"
    return sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)


def _prepared(repository: str, config: str | None) -> list[Path]:
    """Return the folders that ``datasets.load_dataset`` left for a configuration, newest first."""
    folder = _caches()[1] / repository.replace("/", "___")
    found = folder.glob(f"{config or 'default'}/*/*")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
