"""Run a model block by block and hand out the inputs of its linears.

Notable:
- blocks attend in both directions however they were built: the mask that they get is always written
  out (transformers' blocks, called one by one without a mask, attend causally and say nothing);
- each linear sees what the linears before it put out *as they are by then*, in one pass;
- padding is neither attended to nor handed out;
- sequences run in chunks of a fixed number of tokens, so memory does not grow with the calibration
  set and the result does not depend on a batch size.

Shapes: B sequences of a chunk, T tokens, D hidden, N real tokens of a chunk, I inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.lm import tokens_at_once
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import BLOCK_GROUPS, blocks

_CHUNK_TOKENS = 8192


@dataclass
class _Chunk:
    hidden_BTD: Tensor
    real_BT: Tensor
    attention_inputs: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass that has served its purpose."""


class BlockRunner:
    """The hidden states of all calibration sequences, moved through the model block by block.

    ::

        runner = BlockRunner(model, calibration)
        for block in blocks(model):
            for names, inputs in runner.stages(block):
                ...  # look at the inputs, replace the linears called names

    Every block runs once: what a stage computed is continued from, with whatever linears are in
    place by then. So the inputs of each stage come from all that was replaced before it.
    """

    def __init__(self, model: nn.Module, data: Calibration) -> None:
        if data.ids.dim() != 2 or data.ids.shape != data.attention_mask.shape or not len(data.ids):
            raise CalibrationError(
                f"calibration: ids and attention_mask must share a shape [N, T] with N > 0, found"
                f" {list(data.ids.shape)} and {list(data.attention_mask.shape)}"
            )
        if not bool(data.attention_mask.bool().any(1).all()):
            raise CalibrationError(
                "calibration: a sequence is all padding; every one needs a token"
            )
        rows = max(1, _CHUNK_TOKENS // data.ids.shape[1])
        self._chunks = [
            _enter(model, ids_BT, mask_BT)
            for ids_BT, mask_BT in zip(
                data.ids.split(rows), data.attention_mask.split(rows), strict=True
            )
        ]

    def stages(self, block: Any) -> Iterator[tuple[tuple[str, ...], list[Tensor]]]:
        """Yield the linears that share an input, and that input's real tokens ``[N, I]`` by chunk.

        The block is the pre-norm residual one of transformers' Llama classes, whose two halves end
        with a linear::

            h = h + o_proj(attention(norm(h)));    h = h + down_proj(gated(norm(h)))
        """
        for entering, leaving in (BLOCK_GROUPS[:2], BLOCK_GROUPS[2:]):
            norm, body = _half(block, entering)
            normed = [norm(chunk.hidden_BTD) for chunk in self._chunks]
            yield entering, self._real(normed)
            inner = []
            for chunk, x_BTD in zip(self._chunks, normed, strict=True):
                inner.append(_input_of(body, _leaf(leaving), x_BTD, _extra(block, body, chunk)))
            yield leaving, self._real(inner)
            for chunk, x_BTI in zip(self._chunks, inner, strict=True):
                chunk.hidden_BTD = chunk.hidden_BTD + body.get_submodule(_leaf(leaving))(x_BTI)

    def halves(
        self, block: Any, names: tuple[str, ...], rows: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the half of ``block`` that the linears ``names`` belong to; while `stages` is there.

        Yields, chunk by chunk, the hidden states that enter the half and what it adds to them, both
        of real tokens only, ``[N, D]``. The block's own modules compute it, as they are by then.
        ``rows`` picks sequences of each chunk; one without any is left out.
        """
        norm, body = _half(block, names)
        for chunk in self._chunks:
            entering_BTD, real_BT = chunk.hidden_BTD[rows], chunk.real_BT[rows]
            if not len(entering_BTD):
                continue
            y_BTD = _by_passes(body, norm(entering_BTD), _extra(block, body, chunk, rows))
            yield entering_BTD[real_BT], y_BTD[real_BT]

    def sequences(self) -> int:
        """Return how many sequences there are."""
        return sum(len(chunk.hidden_BTD) for chunk in self._chunks)

    def hidden(self) -> list[Tensor]:
        """Return the hidden states ``[B, T, D]`` of every chunk as they are now."""
        return [chunk.hidden_BTD for chunk in self._chunks]

    def _real(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [x[chunk.real_BT] for chunk, x in zip(self._chunks, parts, strict=True)]


def _half(block: Any, names: tuple[str, ...]) -> tuple[nn.Module, nn.Module]:
    """Return the norm and the body of the half of a block that holds the linears ``names``."""
    if names in BLOCK_GROUPS[:2]:
        return block.input_layernorm, block.self_attn
    return block.post_attention_layernorm, block.mlp


def _extra(
    block: Any, body: nn.Module, chunk: _Chunk, rows: slice = slice(None)
) -> Mapping[str, Any]:
    """Return what ``body`` wants beside the hidden states of some of a chunk's sequences."""
    if body is not block.self_attn:
        return {}
    given = chunk.attention_inputs
    return {**given, "attention_mask": given["attention_mask"][rows]}


def _leaf(names: tuple[str, ...]) -> str:
    """Return the last linear's name within its half: ``self_attn.o_proj`` -> ``o_proj``."""
    return names[-1].rpartition(".")[2]


def second_moment(inputs: Sequence[Tensor], token_cap: float | None = None) -> Tensor:
    """Return ``X^T X`` in float64 ``[I, I]`` over chunks of inputs ``[N, I]``: GPTQ's H.

    With a ``token_cap``, a token longer than so many times the median token's norm is scaled down
    to that length first; without such tokens the result is the plain one, bit by bit.
    """
    I = inputs[0].shape[1]  # noqa: E741 (the legend's name for the number of inputs)
    H_II = torch.zeros(I, I, dtype=torch.float64, device=inputs[0].device)
    most = torch.inf
    if token_cap is not None:
        usual = float(torch.cat([x_NI.double().norm(dim=1) for x_NI in inputs]).median())
        most = token_cap * usual if usual > 0 else torch.inf
    for x_NI in inputs:
        wide = x_NI.double()
        length_N = wide.norm(dim=1)
        massive = length_N > most
        if bool(massive.any()):
            wide = wide * (most / length_N).clamp(max=1.0)[:, None]
        H_II.addmm_(wide.T, wide)
    return H_II


def channel_maxima(model: nn.Module, data: Calibration) -> list[dict[str, Tensor]]:
    """Return, for each block, the largest magnitude ``[I]`` of every input channel of each linear.

    The model runs as it is: full-precision statistics when it is not quantized yet.
    """
    runner = BlockRunner(model, data)
    return [
        {
            name: torch.stack([x_NI.abs().amax(0) for x_NI in inputs]).amax(0)
            for names, inputs in runner.stages(block)
            for name in names
        }
        for block in blocks(model)
    ]


def _enter(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> _Chunk:
    """Embed a chunk and prepare what transformers' attention wants beside hidden states."""
    inner = model.model
    device = inner.embed_tokens.weight.device
    hidden_BTD = inner.embed_tokens(ids_BT.to(device))
    real_BT = mask_BT.to(device).bool()
    T = ids_BT.shape[1]
    positions_1T = torch.arange(T, device=device)[None]
    return _Chunk(
        hidden_BTD,
        real_BT,
        {
            # True: may be attended to. Padded tokens see the real ones too: nobody reads their
            # rows, but a row that sees nothing would be NaN.
            "attention_mask": real_BT[:, None, None, :].expand(-1, 1, T, T),
            "position_ids": positions_1T,
            "position_embeddings": inner.rotary_emb(hidden_BTD, position_ids=positions_1T),
        },
    )


def _by_passes(body: nn.Module, x_BTD: Tensor, extra: Mapping[str, Any]) -> Tensor:
    """Return what ``body`` makes of ``x_BTD``, run over a few sequences at a time.

    A row's bits do not depend on the others; less than a chunk at a time stays in a CPU's cache.
    """
    rows = max(1, tokens_at_once(x_BTD.device) // x_BTD.shape[1])
    parts = []
    for start in range(0, len(x_BTD), rows):
        few = slice(start, start + rows)
        mask = extra.get("attention_mask")
        its = extra if mask is None else {**extra, "attention_mask": mask[few]}
        added = body(x_BTD[few], **its)
        parts.append(added[0] if isinstance(added, tuple) else added)
    return torch.cat(parts)


def _input_of(body: nn.Module, name: str, x_BTD: Tensor, extra: Mapping[str, Any]) -> Tensor:
    """Run ``body`` up to the linear called ``name`` and return what would enter it."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Stop

    hook = body.get_submodule(name).register_forward_pre_hook(stop)
    try:
        body(x_BTD, **extra)
    except _Stop:
        pass
    finally:
        hook.remove()
    return seen[0]
