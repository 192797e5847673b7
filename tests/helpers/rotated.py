"""What the tests of both rotation methods share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dllm_qbench.models.embedded import outliers as surgery
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.layers import QuantLinear
from tests.helpers.tiny import tiny_dream, tiny_llada

VARIANTS: dict[str, Callable[..., DiffusionLM]] = {
    "plain": tiny_llada,
    "grouped": partial(tiny_llada, n_kv_heads=2),
    "tied": partial(tiny_llada, weight_tying=True),
    "grouped and tied": partial(tiny_llada, n_kv_heads=1, weight_tying=True),
    "no powers of two": partial(
        tiny_llada, d_model=24, n_heads=2, n_kv_heads=2, mlp_hidden_size=44
    ),
    "biases on q, k and v": tiny_dream,
    "the same, tied": partial(tiny_dream, tie_word_embeddings=True),
}
# What the function may move by at 16 bits, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_MARK = 2  # the token that massive activations sit on

IDS = torch.randint(4, 64, (4, 12), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = _MARK


def data(lm: DiffusionLM) -> Calibration:
    """Return calibration sequences that start with the marked token, as a text with its ``<bos>``."""
    ids = torch.randint(4, 64, (8, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = _MARK
    return calibration(lm, sequences=8, ids=ids, mask_ratios=(0.0, 0.25))


def massive_llada() -> DiffusionLM:
    """Return a tiny model whose marked token has massive activations at each down_proj."""
    lm = tiny_llada()
    strength = surgery.Outliers(massive=2000.0, low_variance=4, channels=2)
    surgery.insert(lm.model, IDS.repeat(8, 1), [_MARK], strength, seed=0)  # type: ignore[arg-type]
    return lm


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    assert expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())


def logit_sqnr(reference: DiffusionLM, quantized: DiffusionLM) -> float:
    """Return the SQNR of the logits in dB."""
    y, q = reference.logits(IDS).double(), quantized.logits(IDS).double()
    return float(10 * torch.log10(y.square().sum() / (y - q).square().sum()))


def max_to_rms(lm: DiffusionLM, name: str) -> float:
    """Return, for what is rounded at the linear ``name``, the largest of the tokens' max / RMS."""
    seen: list[Tensor] = []
    module = lm.model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    lm.logits(IDS)
    hook.remove()
    x = module.turned(seen[0]) if isinstance(module, QuantLinear) else seen[0]
    return float((x.abs().amax(-1) / x.square().mean(-1).sqrt()).max())
