"""Outlier statistics of the inputs of every linear, by mask ratio.

The vocabulary is the paper's (arXiv 2508.14896, section 3): *normal* outliers are channels that
are large over all tokens, *massive* ones are extreme values on few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import torch

from dllm_qbench.models.llada import linear_layers
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.seeding import derive

if TYPE_CHECKING:
    import pandas as pd

NAMED_BY: Final = {
    "q_proj": "qkv",
    "gate_proj": "gate_up",
    "o_proj": "o_proj",
    "down_proj": "down_proj",
}
"""The linear that each input is read at, and what the input is called."""


def outliers(
    lm: DiffusionLM,
    ids: torch.Tensor | None = None,
    mask_ratios: tuple[float, ...] = (0.0, 0.5, 1.0),
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the activations that enter each linear (q/k/v share an input, and so do gate/up).

    Where a quantized layer turns its input online (QuaRot, DuQuant), the turned one is measured: it
    is what the layer rounds.

    Args:
        lm: any model, quantized or not.
        ids: canvases ``[B, T]`` without masks; by default 96 calibration texts of the embedded
            models.
        mask_ratios: share of the tokens after the prompt (or of all, with given ``ids``) replaced
            by ``[MASK]``.
        seed: of the texts and of the masks.

    Returns:
        One row per mask ratio, layer and input. Over absolute values: ``max``, ``max_over_rms``
        (what a rotation brings down), ``max_over_median``, ``max_over_p9999``; ``kurtosis`` of the
        values (3 for a normal distribution); ``token_ratio``, the largest token maximum over the
        median token maximum (massive outliers sit on few tokens when it is large);
        ``channel_ratio``, the same over channels' median magnitude (normal outliers);
        ``token_share`` and ``channel_share``, the share of tokens and of channels that hold the
        top 0.1 % values.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for ratio in mask_ratios:
        batches = canvases(lm, ids, ratio, seed)
        for name, x_ND in _inputs(lm, batches).items():
            layer, leaf = name.split(".")[2], name.rpartition(".")[2]
            rows.append(
                {
                    "mask_ratio": ratio,
                    "layer": int(layer),
                    "input": NAMED_BY[leaf],
                    **statistics(x_ND),
                }
            )
    return pd.DataFrame(rows)


def canvases(
    lm: DiffusionLM, ids: torch.Tensor | None, ratio: float, seed: int
) -> list[torch.Tensor]:
    """Hide a share of the tokens of given canvases ``[B, T]``, or of 96 calibration texts.

    Raises:
        ValueError: no canvases are given, and the model has no tokenizer to read texts with.
    """
    if ids is not None:
        rows = [(lm.as_ids(row), 0) for row in ids]
    else:
        if lm.tokenizer is None:
            raise ValueError("outliers: this model has no tokenizer; give canvases as ids")
        from dllm_qbench.models.embedded.corpus import calibration_texts

        rows = []
        question = int(lm.tokenizer.convert_tokens_to_ids("?"))  # type: ignore[arg-type]
        for text in calibration_texts(96, seed):
            row = lm.as_ids(lm.tokenizer(text).input_ids)
            marks = (row == question).nonzero()
            # A vocabulary of byte pairs may have no token that is the question mark alone.
            asked = text[: text.index("?") + 1]
            end = int(marks[0]) + 1 if len(marks) else len(lm.tokenizer(asked).input_ids)
            rows.append((row, end))
    made = []
    for index, (row, start) in enumerate(rows):
        generator = torch.Generator().manual_seed(derive(seed, "outliers", index))
        hidden = torch.rand(row.shape, generator=generator) < ratio
        hidden[: max(start, lm.first_maskable)] = False
        made.append(row.masked_fill(hidden.to(row.device), lm.mask_id))
    return made


def each_input(
    lm: DiffusionLM,
    canvases: Collection[torch.Tensor],
    take: Callable[[str, torch.Tensor], None],
    names: Collection[str] | None = None,
) -> None:
    """Run canvases; hand over what linears read, as they would round it: ``take(name, x [N, D])``.

    Args:
        lm: any model, quantized or not.
        canvases: run one after the other.
        take: called once a canvas and linear, with a tensor on the model's device.
        names: full names of linears; by default one for every input, see :data:`NAMED_BY`.
    """
    hooks = []
    for name, module in linear_layers(lm.model).items():
        if name in names if names is not None else name.rpartition(".")[2] in NAMED_BY:

            def keep(m: Any, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                x = m.turned(args[0]) if isinstance(m, QuantLinear) else args[0]
                take(name, x.detach().flatten(0, -2).float())

            hooks.append(module.register_forward_pre_hook(keep))
    try:
        for canvas in canvases:
            lm.logits(canvas)
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(lm: DiffusionLM, canvases: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: dict[str, list[torch.Tensor]] = {}
    each_input(lm, canvases, lambda name, x_ND: seen.setdefault(name, []).append(x_ND.cpu()))
    return {name: torch.cat(parts) for name, parts in seen.items()}


def statistics(x_ND: torch.Tensor) -> dict[str, float]:
    """Return the figures of one input ``[N, D]`` that :func:`outliers` tells."""
    size_ND = x_ND.abs().double()
    token_ratio, channel_ratio = ratios(size_ND)
    top = size_ND >= size_ND.flatten().kthvalue(max(1, int(0.999 * size_ND.numel()))).values
    centred = x_ND.double() - x_ND.double().mean()
    median = float(size_ND.median())
    return {
        "max": float(size_ND.max()),
        "max_over_rms": float(size_ND.max() / size_ND.square().mean().sqrt().clamp(min=1e-12)),
        "max_over_median": float(size_ND.max()) / max(median, 1e-12),
        "max_over_p9999": float(size_ND.max()) / float(size_ND.flatten().quantile(0.9999))
        if size_ND.numel() < 16_000_000
        else float("nan"),
        "kurtosis": float((centred**4).mean() / (centred**2).mean() ** 2),
        "token_ratio": token_ratio,
        "channel_ratio": channel_ratio,
        "token_share": float(top.any(dim=1).double().mean()),
        "channel_share": float(top.any(dim=0).double().mean()),
    }


def ratios(size_ND: torch.Tensor) -> tuple[float, float]:
    """Return the token ratio and the channel ratio of magnitudes ``[N, D]``, see :func:`outliers`."""
    token_N = size_ND.amax(dim=1)
    channel_D = size_ND.median(dim=0).values
    return (
        float(token_N.max() / token_N.median()),
        float(channel_D.max() / channel_D.median()),
    )
