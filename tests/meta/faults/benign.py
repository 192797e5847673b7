"""Changes that are right: other draws, other orders of summation, other ways to compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench.models import lm
from dllm_qbench.quant import capture, grid, layers
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner
from dllm_qbench.quant.grid import Grid, code_range, round_half_away
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.methods import gptq
from dllm_qbench.quant.rotation import hadamard_matrix
from dllm_qbench.quant.scheme import UNTOUCHED
from tests.meta.faults.fault import DREAM, Fault, Plant, nothing
from tests.meta.faults.patches import replaced, wrapped


def last_chunk_first(sound: Any, inputs: Sequence[Tensor], *rest: Any) -> Tensor:
    found: Tensor = sound([x_NI.flip(0) for x_NI in reversed(inputs)], *rest)
    return found


def few_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_CHUNK_TOKENS", 1000)


def lazy_columns(columns: int) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(gptq, "LAZY_COLUMNS", columns)


def factor_of_the_inverse(
    hessian_II: Tensor, damp: float, order: Tensor | None = None, *_: Any
) -> Tensor:
    """The paper's own order: invert, then factorize."""
    H_II = (hessian_II + hessian_II.T) / 2
    H_II = H_II if order is None else H_II[order][:, order]
    diagonal = H_II.diagonal()
    live = diagonal > 0
    mean = diagonal[live].mean() if bool(live.any()) else torch.ones(()).double()
    diagonal[~live] = mean
    diagonal += damp * mean
    factor: Tensor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(H_II)), upper=True
    )
    return factor


def in_two_halves(self: QuantLinear, x: Tensor) -> Tensor:
    x = self.turned(x)
    if self.scheme.act_bits != UNTOUCHED:
        x = layers.quantize_tokens(x, self.scheme.act_bits, self.act_clip)
    half = self.in_features // 2
    left = F.linear(x[..., :half], self.weight[:, :half], self.bias)
    return left + F.linear(x[..., half:], self.weight[:, half:])


def by_reciprocal(x: Tensor, bits: int, clip: float = 1.0) -> Tensor:
    last = 2 ** (bits - 1) - 1
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = (wide.abs().amax(-1, keepdim=True) * clip / last).clamp(
        min=torch.finfo(wide.dtype).tiny
    )
    return ((wide * (1 / scale)).round().clamp(-last, last) * scale).to(x.dtype)


def width_first(x_Rg: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales from (max - min), in one, and zero points from there."""
    low = x_Rg.amin(-1).double().clamp(max=0.0)
    high = x_Rg.amax(-1).double().clamp(min=0.0)
    first, last = code_range(bits, symmetric)
    width = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = width / (last - first)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, torch.zeros_like(scale) if symmetric else round_half_away(-low / scale)


def group_by_group(self: Grid, x: Tensor) -> Tensor:
    low, high = code_range(self.bits, self.symmetric)
    parts = []
    for index, part in enumerate(x.double().split(self.group, dim=-1)):
        scale, zero = self.scale[..., index, None], self.zero[..., index, None]
        parts.append((round_half_away(part / scale) + zero).clamp(low, high))
    return torch.cat(parts, dim=-1).to(torch.int32)


def by_matrix(x: Tensor) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide @ hadamard_matrix(x.shape[-1]).to(wide).T).to(x.dtype)


def sequences_reversed(sound: Any, self: Any, model: Any, data: Calibration, *rest: Any) -> None:
    flipped = Calibration(data.ids.flip(0), data.attention_mask.flip(0), data.recipe)
    sound(self, model, flipped, *rest)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "_CPU_TOKENS", 600)


class _Threads:
    """torch's number of threads as an attribute, so that a MonkeyPatch can take it back."""

    @property
    def number(self) -> int:
        return torch.get_num_threads()

    @number.setter
    def number(self, threads: int) -> None:
        torch.set_num_threads(threads)


THREADS = _Threads()


def other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(THREADS, "number", 1 if torch.get_num_threads() > 1 else 2)


def _change(
    name: str, method: str, scheme: str, task: str, plant: Plant, what: str, **more: Any
) -> Fault:
    return Fault(f"benign-{name}", "benign", method, scheme, task, plant, what, **more)


def _draw(seed: int, method: str, scheme: str, task: str, **more: Any) -> Fault:
    return _change(
        f"calibration-draw-{seed}-{method}",
        method,
        scheme,
        task,
        nothing,
        f"Calibration is drawn from seed {seed} instead of 0.",
        calibration_seed=seed,
        **more,
    )


FAULTS = (
    _draw(11, "gptq", "W4A16-g64", "math"),
    _draw(12, "gptq", "W3A16-g64", "general", model=DREAM),
    _draw(13, "awq", "W4A16-g64", "math", model=DREAM),
    _draw(14, "smoothquant", "W8A8", "math"),
    _draw(15, "quarot", "W4A4", "general", model=DREAM),
    _draw(16, "duquant", "W8A8", "code"),
    _change(
        "quarot-rotation-seed",
        "quarot",
        "W8A8",
        "math",
        nothing,
        "QuaRot's random signs come from another seed.",
        parameters={"seed": 5},
    ),
    _change(
        "duquant-rotation-seed",
        "duquant",
        "W4A4",
        "general",
        nothing,
        "DuQuant's random rotations come from another seed.",
        parameters={"seed": 5},
    ),
    _change(
        "hessian-summed-backwards",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(gptq, "second_moment", last_chunk_first),
        "The Hessian is summed over tokens from the last to the first.",
    ),
    _change(
        "calibration-in-small-chunks",
        "quarot",
        "W4A4",
        "math",
        few_tokens_at_once,
        "Calibration runs 1,000 tokens at once instead of 8,192.",
    ),
    _change(
        "calibration-sequences-reversed",
        "gptq",
        "W4A16-g64",
        "code",
        wrapped(BlockRunner, "__init__", sequences_reversed),
        "The same calibration sequences run in the opposite order.",
        model=DREAM,
    ),
    _change(
        "gptq-lazy-columns-32",
        "gptq",
        "W3A16-g64",
        "math",
        lazy_columns(32),
        "Later columns are updated after every group instead of every second one.",
    ),
    _change(
        "gptq-lazy-columns-1024",
        "gptq",
        "W4A16-g64",
        "general",
        lazy_columns(1024),
        "Every column is updated at once: one lazy block.",
    ),
    _change(
        "gptq-inverse-then-factor",
        "gptq",
        "W3A16-g64",
        "code",
        replaced((gptq, "inverse_factor"), by=factor_of_the_inverse),
        "The factor of H^-1 is computed as in the paper: invert, then factorize.",
        model=DREAM,
    ),
    _change(
        "matmul-in-two-halves",
        "rtn",
        "W4A4",
        "general",
        replaced((QuantLinear, "forward"), by=in_two_halves),
        "Products of layers are summed in two halves.",
    ),
    _change(
        "activations-times-reciprocal",
        "smoothquant",
        "W8A8",
        "math",
        replaced((layers, "quantize_tokens"), by=by_reciprocal),
        "Activations are multiplied by 1 / scale instead of divided by the scale.",
        model=DREAM,
    ),
    _change(
        "grid-in-another-association",
        "rtn",
        "W3A16-g64",
        "math",
        replaced((grid, "scale_and_zero"), by=width_first),
        "The scale is (max - min) / 15 instead of max / 15 - min / 15.",
    ),
    _change(
        "grid-group-by-group",
        "rtn",
        "W4A16-g64",
        "code",
        replaced((Grid, "codes"), by=group_by_group),
        "Codes are found in a loop over groups.",
        model=DREAM,
    ),
    _change(
        "ties-to-even",
        "rtn",
        "W4A16-g64",
        "general",
        replaced((grid, "round_half_away"), (gptq, "round_half_away"), by=torch.round),
        "Weights exactly between two levels go to the even one.",
    ),
    _change(
        "hadamard-by-matrix",
        "quarot",
        "W8A8",
        "code",
        replaced((layers, "hadamard_transform"), by=by_matrix),
        "Hadamard transforms are products with the matrix instead of butterflies.",
    ),
    _change(
        "small-batches",
        "duquant",
        "W4A4",
        "math",
        small_batches,
        "Evaluation runs 600 tokens at once instead of 4,096.",
        model=DREAM,
        in_evaluation=True,
    ),
    _change(
        "number-of-threads",
        "smoothquant",
        "W4A4",
        "general",
        other_threads,
        "torch runs on another number of threads.",
    ),
)
