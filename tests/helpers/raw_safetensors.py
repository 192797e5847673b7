"""A checkpoint's tensors read from the bytes of its files: nothing of the package, nothing of safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of every shard that the index names, by official name.

    A file is: 8 bytes, the length of the header; the header, JSON, name -> dtype, shape and where its bytes
    begin and end; the bytes, little endian.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text())["weight_map"]
    else:
        weight_map = {"": "model.safetensors"}
    found: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        content = (folder / file).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = (start + at for at in entry["data_offsets"])
                flat = torch.frombuffer(
                    bytearray(content[begin:end]), dtype=_DTYPES[entry["dtype"]]
                )
                found[name] = flat.reshape(entry["shape"])
    return found
