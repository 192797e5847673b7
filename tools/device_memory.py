"""How much memory quantizing an 8B model takes on the device that computes: counted, without a device.

``quantize(lm, ..., device="meta")`` runs the very code that a card would run, on tensors that have
shapes and no values. Every storage that is made on the device counts from its making until Python
lets go of it. Numbers that the code asks back for are made up (see :class:`Counted`), and wherever one
decides between two ways the one that takes more memory is taken.

Not counted: the allocator's rounding and fragments, the workspaces of BLAS and of LAPACK-like solvers,
the CUDA context (together 1 to 2 GiB as a rule). Counted although a card mostly does without: attention
in its plain form, which holds all scores.

Run: ``python -m tools.device_memory`` (all methods at the shapes of LLaDA-8B and Dream-7B, sequences of
2,048 tokens; some minutes, 8 GiB of CPU memory). 24 sequences are 6 chunks and too many to keep; more
add a few vectors, one number a token.
"""

from __future__ import annotations

import argparse
import json
import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dllm_qbench.models import dream, llada
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.quantize import quantize

GIB = 2**30
CASES = (
    ("rtn", "W4A16-g128"),
    ("gptq", "W4A16-g128"),
    ("awq", "W4A16-g128"),
    ("smoothquant", "W4A4"),
    ("quarot", "W4A4"),
    ("duquant", "W4A4"),
)
SHAPES: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
        "mlp_hidden_size": 12288, "vocab_size": 126464, "mask_token_id": 126336,
        "eos_token_id": 126081, "pad_token_id": 126081, "max_sequence_length": 4096,
    },
    "dream-7b": {
        "model_type": "Dream", "hidden_size": 3584, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
        "mask_token_id": 151666, "eos_token_id": 151643, "pad_token_id": 151643,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip
# Repetitions that take time and no more memory.
FEWER: dict[str, dict[str, Any]] = {
    "awq": {"ratios": 2, "clip_steps": 2},
    "duquant": {"steps": 1},
}
# What a device tensor's number is taken to be: conditions hold, no solver failed, sums are positive.
_MADE_UP = {torch.bool: True, torch.int32: 0, torch.int64: 1}


class Counted(TorchDispatchMode):
    """Counts the bytes that are alive on the meta device, and stands in for what meta cannot do.

    Masks admit everything; copies to the CPU are zeros.

    Attributes:
        alive, peak: bytes now, and at most so far.
        at_peak: bytes at the peak by shape, data type and line of this package that made them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self._known: dict[int, tuple[Any, int, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and count what it made."""
        kwargs = kwargs or {}
        aten = torch.ops.aten
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func is aten._local_scalar_dense.default and first is not None and first.is_meta:
            return _MADE_UP.get(first.dtype, 1.0)
        if func is aten._to_copy.default and first is not None and first.is_meta:
            place = kwargs.get("device")
            if place is not None and torch.device(place).type == "cpu":
                return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if func is aten.copy_.default and not first.is_meta and args[1].is_meta:
            return first.zero_()
        if func is aten.index.Tensor and first is not None and first.is_meta:
            mask = args[1][0]
            if mask is not None and mask.dtype == torch.bool:
                out = first.new_empty(mask.numel(), *first.shape[mask.dim() :])
                self._see(out)
                return out
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        watch = weakref.ref(storage, lambda _gone: self._drop(key))
        self._known[key] = watch, size, _label(tensor) if size > GIB // 16 else "small"
        self.alive += size
        if self.alive > self.peak:
            grown = self.alive > 1.01 * self.peak
            self.peak = self.alive
            if grown:
                self.at_peak = Counter()
                for _, bytes_, label in self._known.values():
                    self.at_peak[label] += bytes_

    def _drop(self, key: int) -> None:
        self.alive -= self._known.pop(key)[1]


def _label(tensor: Tensor) -> str:
    frames = [f for f in traceback.extract_stack() if "dllm_qbench" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {where}"


def bare_model(raw: dict[str, Any], dtype: torch.dtype) -> DiffusionLM:
    """Return a model of zeros in CPU memory: pages that nobody touches take none."""
    kind = dream.DreamForMaskedDiffusion if raw["model_type"] == "Dream" else None
    config = (dream.DreamConfig if kind else llada.LladaConfig).from_official(raw)
    with torch.device("meta"):
        model = (kind or llada.LladaForMaskedDiffusion)(config)
    model.to(dtype)
    model = model.to_empty(device="cpu").train(False).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = torch.zeros(parameter.shape, dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return DiffusionLM(model, None, int(config.mask_token_id), "bare")


def count(
    shape: dict[str, Any], method: str, scheme: str, sequences: int, length: int,
    dtype: torch.dtype = torch.bfloat16, **parameters: Any,
) -> Counted:  # fmt: skip
    """Quantize a model of this shape on the meta device and return what was counted."""
    lm = bare_model(shape, dtype)
    ids = torch.full((sequences, length), 5)
    with Counted() as counted:
        made = quantize(
            lm, method, scheme, Calibration(ids, torch.ones_like(ids), {"source": "fives"}),
            device="meta", **parameters,
        )  # fmt: skip
    left = {p.device.type for p in made.model.parameters()}
    if left != {"cpu"}:
        raise RuntimeError(f"the result lives on {left}, expected the CPU, as its model does")
    return counted


def main() -> None:
    """Print a table of peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), action="append")
    parser.add_argument("--method", choices=[method for method, _ in CASES], action="append")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=1, help="all blocks are alike")
    parser.add_argument("--json", type=Path, help="write the peaks there too")
    args = parser.parse_args()
    peaks: dict[str, float] = {}
    for model in args.model or SHAPES:
        raw = SHAPES[model]
        shape = raw | {
            "num_hidden_layers" if raw["model_type"] == "Dream" else "n_layers": args.layers
        }
        for method, scheme in CASES:
            if args.method and method not in args.method:
                continue
            found = count(
                shape, method, scheme, args.sequences, args.length, **FEWER.get(method, {})
            )
            peaks[f"{model} {method} {scheme}"] = round(found.peak / GIB, 2)
            print(f"{model} {method} {scheme}: {found.peak / GIB:.2f} GiB", flush=True)
            for label, size in found.at_peak.most_common(12):
                print(f"    {size / GIB:6.2f}  {label}")
    if args.json is not None:
        args.json.write_text(json.dumps(peaks, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
