"""GPTQ and AWQ checkpoints written from scratch: an oracle that shares no code with what reads them.

Codes become bits one by one, in numpy, and bits become words; nothing is shifted. Weights are drawn as
codes, scales and zero points, so that what they stand for is known without any quantizer.

Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import ARCHITECTURES
from dllm_qbench.quant.layers import target_names

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs has the i-th place of a word


def words_of(codes_NC: Tensor, bits: int) -> Tensor:
    """Write each row's codes end to end, the lowest bit first, into int32 words ``[N, W]``."""
    rows = []
    for row in codes_NC.tolist():
        text = "".join(f"{code:0{bits}b}"[::-1] for code in row)
        text += "0" * (-len(text) % 32)
        stream = np.array([int(bit) for bit in text], dtype=np.uint8)
        rows.append(np.packbits(stream, bitorder="little").view("<i4"))
    return torch.from_numpy(np.stack(rows).astype(np.int32))


@dataclass
class Drawn:
    """A weight drawn as codes: what it stands for is ``weight [O, I]``, rounded to half precision."""

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    groups_I: Tensor

    @property
    def weight(self) -> Tensor:
        steps_OI = self.codes_OI - self.zero_OG[:, self.groups_I]
        return (steps_OI.half() * self.scale_OG.half()[:, self.groups_I]).float()


@dataclass
class Written:
    """A checkpoint to write.

    Attributes:
        lm: full precision, for all that is not quantized.
        drawn: each linear's weight.
        tensors: of the linears, by native name.
        stated: the quantization's configuration.
    """

    lm: DiffusionLM
    drawn: dict[str, Drawn]
    tensors: dict[str, Tensor]
    stated: dict[str, Any]
    left: set[str] = field(default_factory=set)

    def expected(self) -> DiffusionLM:
        """The full-precision model with the weights that the codes stand for."""
        lm = self.lm.clone()
        for name, drawn in self.drawn.items():
            linear: Any = lm.model.get_submodule(name)
            if name not in self.left:
                linear.weight.data.copy_(drawn.weight)
        return lm

    def leave(self, name: str) -> None:
        """Write a linear at 16 bits."""
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            self.tensors.pop(f"{name}.{part}", None)
        self.left.add(name)

    def write(
        self, folder: Path, official: bool = True, shards: int = 1, stated_in: str = "config.json"
    ) -> Path:
        """Write all, in the official spelling of names or in transformers'."""
        config = self.lm.config.to_official()
        own = dict(self.lm.model.named_parameters())
        quantized = set(self.drawn) - self.left
        spelling = {
            ours.rpartition(".")[0]: theirs.rpartition(".")[0]
            for theirs, ours in ARCHITECTURES[config["model_type"]].names(self.lm.config).items()
        }
        tensors = dict(self.tensors)
        for name, parameter in own.items():
            module, _, part = name.rpartition(".")
            if module not in quantized or part == "bias":
                tensors[name] = parameter.detach().clone()
        if official:
            tensors = {
                f"{spelling[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
                for name, tensor in tensors.items()
            }
        folder.mkdir(parents=True, exist_ok=True)
        if stated_in == "config.json":
            config["quantization_config"] = self.stated
        else:
            (folder / stated_in).write_text(json.dumps(self.stated))
        (folder / "config.json").write_text(json.dumps(config))
        _save(tensors, folder, shards)
        return folder


def _save(tensors: Mapping[str, Tensor], folder: Path, shards: int) -> None:
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    names, weight_map = sorted(tensors), {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def draw(
    shape: tuple[int, int], bits: int, group: int, symmetric: bool, shuffled: bool, seed: int
) -> Drawn:
    """Draw a weight; all codes of its range occur in it. Sizes are those of a trained layer's."""
    O, I = shape  # noqa: E741 (the legend's names)
    generator = torch.Generator().manual_seed(seed)
    count = -(-I // group)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    middle = torch.full((O, count), 2 ** (bits - 1))
    drawn_zero = torch.randint(1, 2**bits, (O, count), generator=generator)
    scale = (0.2 + torch.rand(O, count, generator=generator)) / 2 ** (bits - 1) / I**0.5
    groups = torch.arange(I) // group
    if shuffled:
        groups = groups[torch.randperm(I, generator=generator)]
    return Drawn(codes, scale.half(), middle if symmetric else drawn_zero, groups)


def gptq(
    lm: DiffusionLM,
    bits: int = 4,
    group: int = 16,
    symmetric: bool = False,
    version: str | None = None,
    act_order: bool = False,
) -> Written:
    """A GPTQ checkpoint; zero points are stored less one unless the version is ``gptq_v2``."""
    stated: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": act_order,
    }
    if version is not None:
        stated["checkpoint_format"] = version
    less = 0 if version == "gptq_v2" else 1

    def tensors(drawn: Drawn) -> dict[str, Tensor]:
        return {
            "qweight": words_of(drawn.codes_OI, bits).T.contiguous(),
            "qzeros": words_of((drawn.zero_OG - less).T % 2**bits, bits),
            "scales": drawn.scale_OG.T.contiguous(),
            "g_idx": drawn.groups_I.to(torch.int32),
        }

    return _written(lm, bits, group, symmetric, act_order, stated, tensors)


def awq(lm: DiffusionLM, group: int = 16, symmetric: bool = False) -> Written:
    """An AWQ checkpoint in the gemm layout."""
    stated = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": not symmetric,
        "version": "gemm",
    }

    def interleaved(codes_NO: Tensor) -> Tensor:
        return words_of(codes_NO.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1), 4)

    def tensors(drawn: Drawn) -> dict[str, Tensor]:
        return {
            "qweight": interleaved(drawn.codes_OI.T),
            "qzeros": interleaved(drawn.zero_OG.T),
            "scales": drawn.scale_OG.T.contiguous(),
        }

    return _written(lm, 4, group, symmetric, False, stated, tensors)


def _written(
    lm: DiffusionLM,
    bits: int,
    group: int,
    symmetric: bool,
    shuffled: bool,
    stated: dict[str, Any],
    tensors_of: Callable[[Drawn], dict[str, Tensor]],
) -> Written:
    drawn, tensors = {}, {}
    for index, name in enumerate(target_names(lm.model)):
        linear: Any = lm.model.get_submodule(name)
        made = draw(tuple(linear.weight.shape), bits, group, symmetric, shuffled, index)
        drawn[name] = made
        tensors |= {f"{name}.{part}": tensor for part, tensor in tensors_of(made).items()}
    return Written(lm, drawn, tensors, stated)
