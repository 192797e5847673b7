"""Where the weights of a model lie on this machine. Nothing is downloaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.released import MODELS, PAPER_MODELS, ModelSpec, find_model

__all__ = [
    "EMBEDDED",
    "MODELS",
    "PAPER_MODELS",
    "MissingWeights",
    "ModelSpec",
    "download_command",
    "find_model",
    "locate",
    "missing_files",
]

_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED = {"llada-embedded": _FOLDER / "llada", "dream-embedded": _FOLDER / "dream"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class MissingWeights(CheckpointError):
    """A released model whose weights are not, or not completely, on this machine.

    Attributes:
        looked: where they were looked for, and what was wrong there.
    """

    looked: tuple[str, ...] = ()


def locate(name_or_folder: str | Path, models_dir: Path | None = None) -> Path:
    """Return the folder that holds a model's checkpoint.

    An embedded model's name and a folder are taken as they are. A released model, by name or hub id,
    is looked for in ``models_dir`` (under its name, the last part of its hub id, the whole hub id),
    then in the working folder under the words given, then at the pinned revision in the Hugging Face
    cache. A folder may hold a stand-in of any size, of the same architecture:
    :meth:`ModelSpec.is_real` tells. What the cache holds must be the released model.

    Raises:
        MissingWeights: a released model that is not there or incomplete; says where it was looked
            for, what is missing, and the command that downloads it.
        CheckpointError: neither a known name nor a folder, or another model in a released one's place.
    """
    name = str(name_or_folder)
    if name in EMBEDDED:
        return EMBEDDED[name]
    spec = find_model(name)
    if spec is None:
        if Path(name).is_dir():
            return Path(name)
        raise CheckpointError(
            f"{name}: no such checkpoint folder; give a folder with config.json and *.safetensors, one of the"
            f" embedded models: {', '.join(EMBEDDED)}, or a released one: {', '.join(MODELS)}"
        )
    looked: list[str] = []
    for folder in [*_candidates(spec, models_dir), Path(name)]:
        absent = missing_files(folder) if folder.is_dir() else None
        if absent == []:
            return _checked(spec, folder)
        looked.append(
            f"{folder} (no such folder)"
            if absent is None
            else f"{folder} (incomplete: {_some(absent)})"
        )
    cached, why = _cached(spec)
    if cached is not None:
        different = spec.differences(read_json(cached / "config.json"))
        if different:
            raise CheckpointError(f"{cached}: this is not {spec.hub_id}: {'; '.join(different)}")
        return cached
    looked.append(why)
    error = MissingWeights(
        f"{spec.name}: the weights of {spec.hub_id} are not on this machine. Looked for in:"
        f" {'; '.join(looked)}. Download them ({spec.bytes / 1e9:.1f} GB) with:"
        f" {download_command(spec, models_dir)}"
    )
    error.looked = tuple(looked)
    raise error


def download_command(spec: ModelSpec, models_dir: Path | None = None) -> str:
    """Return the command line that fetches a model to where :func:`locate` finds it."""
    command = f"hf download {spec.hub_id} --revision {spec.revision}"
    if models_dir is not None:
        command += f" --local-dir {shlex.quote(str(models_dir / spec.hub_id.split('/')[-1]))}"
    return command


def missing_files(folder: Path) -> list[str]:
    """Return which files a checkpoint folder lacks; an index is believed about its shards."""
    absent = [] if (folder / "config.json").is_file() else ["config.json"]
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted({str(file) for file in shards.values()}) if isinstance(shards, dict) else []
        return absent + [file for file in names if not (folder / file).is_file()]
    return absent if (folder / SINGLE).is_file() else [*absent, f"{SINGLE} or {INDEX}"]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing; an official checkpoint folder holds it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _candidates(spec: ModelSpec, models_dir: Path | None) -> list[Path]:
    if models_dir is None:
        return []
    return [
        models_dir / spec.name,
        models_dir / spec.hub_id.split("/")[-1],
        models_dir / spec.hub_id,
    ]


def _checked(spec: ModelSpec, folder: Path) -> Path:
    kind = read_json(folder / "config.json").get("model_type")
    if kind != spec.architecture:
        raise CheckpointError(
            f"{folder}: this is not {spec.hub_id}: model_type {kind!r}, expected {spec.architecture!r}"
        )
    return folder


def _cached(spec: ModelSpec) -> tuple[Path | None, str]:
    """Return the snapshot in the Hugging Face cache, or ``None`` and why not."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{spec.hub_id.replace('/', '--')}" / "snapshots"
    snapshot = cache / spec.revision
    if not snapshot.is_dir():
        others = sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []
        also = f"; it holds other revisions ({_some(others)}), give the folder to use one" * bool(
            others
        )
        return None, f"the Hugging Face cache ({snapshot}: no such folder{also})"
    absent = missing_files(snapshot)
    if absent:
        return None, f"the Hugging Face cache ({snapshot}: incomplete: {_some(absent)})"
    return snapshot, ""


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
