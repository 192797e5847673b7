"""The tensors of a checkpoint folder, by the native names of the modules that they belong to.

Notable:
- safetensors only; a folder with nothing but pickled weights is an error;
- both spellings of LLaDA's names are read, the official one and transformers', since libraries write
  either; ``ff_out`` is told apart by its full name (a block's down projection, or the head);
- tensors are read one by one when asked for, each copied, so that a model never depends on its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import INDEX, SINGLE, read_json

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass
class TensorFiles:
    """The tensors of a folder.

    Attributes:
        folder: where they are.
        modules: native name of a module -> the last part of a tensor's name -> file and full name.
        spelled: native name of a module -> how the files spell it.
    """

    folder: Path
    modules: dict[str, dict[str, tuple[Path, str]]] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, native: Mapping[str, str]) -> TensorFiles:
        """Read the headers of all files.

        Args:
            folder: the checkpoint.
            native: official name of a parameter -> the native one.

        Raises:
            CheckpointError: no files, unreadable ones, or two tensors for one place.
        """
        names = {
            official.rpartition(".")[0]: ours.rpartition(".")[0]
            for official, ours in native.items()
        }
        made = cls(folder)
        paths, promised = _paths(folder)
        held: dict[str, str] = {}
        for path in paths:
            with _opened(path) as handle:
                for full in handle.keys():  # noqa: SIM118 (a safetensors handle is not a dict)
                    made._add(path, full, names)
                    held[full] = path.name
        for full, name in promised.items():
            if held.get(full) != name:
                raise CheckpointError(
                    f"{folder / INDEX}: says that {full} is in {name}, but it is not there"
                )
        return made

    def _add(self, path: Path, full: str, names: Mapping[str, str]) -> None:
        spelled, _, part = full.rpartition(".")
        module = names.get(spelled, spelled)
        known = self.modules.setdefault(module, {})
        if part in known:
            other, name = known[part]
            raise CheckpointError(
                f"{path}: tensor {full} is also in {other.name}, as {name}: expected one of them"
            )
        known[part] = (path, full)
        self.spelled[module] = spelled

    def has(self, module: str, part: str) -> bool:
        """Whether there is such a tensor."""
        return part in self.modules.get(module, {})

    def place(self, module: str, part: str) -> str:
        """Name file and tensor, for messages."""
        found = self.modules.get(module, {}).get(part)
        if found is None:
            return f"{self.folder}: tensor {self.spelled.get(module, module)}.{part}"
        return f"{found[0]}: tensor {found[1]}"

    def get(
        self,
        module: str,
        part: str,
        shape: tuple[int, ...] | None = None,
        kinds: tuple[torch.dtype, ...] | None = None,
    ) -> Tensor:
        """Return a tensor on the CPU.

        Raises:
            CheckpointError: it is missing, unreadable, or of another shape or data type.
        """
        if not self.has(module, part):
            raise CheckpointError(
                f"{self.place(module, part)} is missing; the layer's other tensors are"
                f" {', '.join(sorted(self.modules.get(module, {}))) or 'missing too'}"
            )
        path, full = self.modules[module][part]
        try:
            with _opened(path) as handle:
                tensor: Tensor = handle.get_tensor(full).clone()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {full} cannot be read ({error})") from error
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {full} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if kinds is not None and tensor.dtype not in kinds:
            raise CheckpointError(
                f"{path}: tensor {full} holds {tensor.dtype}, expected"
                f" {' or '.join(map(str, kinds))}"
            )
        return tensor


def _paths(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files that hold the checkpoint, of an index, the usual one, or all that there are, and
    what an index says of which tensor is where.
    """
    promised: dict[str, str] = {}
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{folder / INDEX}: field 'weight_map' is missing or empty")
        if any(not isinstance(f, str) or Path(f).name != f for f in shards.values()):
            raise CheckpointError(
                f"{folder / INDEX}: field 'weight_map' must name files inside the folder"
            )
        promised = shards
        paths = [folder / name for name in sorted(set(shards.values()))]
    elif (folder / SINGLE).is_file():
        paths = [folder / SINGLE]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: file is missing; the checkpoint is incomplete")
    if not paths:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        raise CheckpointError(
            f"{folder}: no *.safetensors file"
            + (f"; {pickled[0]} is pickled, which is never loaded: convert it" if pickled else "")
        )
    return paths, promised


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); it is truncated or corrupt"
        ) from error
