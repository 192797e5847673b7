"""Run a model block by block and hand out the inputs of its linears.

Notable:
- blocks attend in both directions however they were built: the mask that they get is always written
  out (transformers' blocks, called one by one without a mask, attend causally and say nothing);
- each linear sees what the linears before it put out *as they are by then*, in one pass;
- padding is neither attended to nor handed out;
- sequences run in chunks of a fixed number of tokens, so the result does not depend on a batch size;
- a device holds one block and one chunk of activations: hidden states wait where the model lives, and
  inputs that are too many to keep are computed anew each time somebody goes through them.

Shapes: B sequences of a chunk, T tokens, D hidden, N real tokens of a chunk, I inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.lm import tokens_at_once
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.layers import BLOCK_GROUPS
from dllm_qbench.quant.offload import home_of, visited

_CHUNK_TOKENS = 8192
# Inputs of up to so many bytes are kept between two looks at them. Those of the embedded models are
# some 25 MB; the inputs of down_proj in an 8B model, at 128 sequences of 2,048 tokens, are 6 GB.
_KEPT_BYTES = 2**29


class Streamed:
    """Inputs ``[N, I]`` chunk by chunk, computed anew for everyone who goes through them."""

    def __init__(self, compute: Callable[[], Iterator[Tensor]], chunks: int) -> None:
        self._compute, self._chunks = compute, chunks

    def __iter__(self) -> Iterator[Tensor]:
        return self._compute()

    def __len__(self) -> int:
        return self._chunks


Inputs = list[Tensor] | Streamed
"""What a stage hands out: iterate as often as you like, while the stage lasts."""


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the inputs with ``change`` applied to every chunk; kept if they were."""
    if isinstance(inputs, Streamed):
        return Streamed(lambda: map(change, inputs), len(inputs))
    return [change(x_NI) for x_NI in inputs]


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

    def __init__(
        self, model: nn.Module, data: Calibration, device: torch.device | None = None
    ) -> None:
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
        self.home = home_of(model)
        self.device = self.home if device is None else device
        self._positions = data.ids.numel()
        self._chunks = [
            _enter(model, ids_BT, mask_BT, self.device)
            for ids_BT, mask_BT in zip(
                data.ids.split(rows), data.attention_mask.split(rows), strict=True
            )
        ]

    def stages(self, block: Any) -> Iterator[tuple[tuple[str, ...], Inputs]]:
        """Yield the linears that share an input, and that input's real tokens ``[N, I]`` by chunk.

        The block is on the runner's device, and the pre-norm residual one of transformers' Llama
        classes, whose two halves end with a linear::

            h = h + o_proj(attention(norm(h)));    h = h + down_proj(gated(norm(h)))
        """
        yield from self._stages_of_half(block, *BLOCK_GROUPS[:2])
        yield from self._stages_of_half(block, *BLOCK_GROUPS[2:])

    def _stages_of_half(
        self, block: Any, entering: tuple[str, ...], leaving: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], Inputs]]:
        norm, body = _half(block, entering)
        last = _leaf(leaving)

        def enter(chunk: _Chunk) -> Tensor:
            x_BTD: Tensor = norm(chunk.hidden_BTD.to(self.device))
            return x_BTD

        def reach(chunk: _Chunk) -> Tensor:
            return _input_of(body, last, enter(chunk), _extra(block, body, chunk))

        inner: list[Tensor] | None = None
        if self._keeps(body, last):
            normed = [enter(chunk) for chunk in self._chunks]
            yield entering, self._real(normed)
            inner = [
                _input_of(body, last, x_BTD, _extra(block, body, chunk))
                for chunk, x_BTD in zip(self._chunks, normed, strict=True)
            ]
            yield leaving, self._real(inner)
        else:
            yield entering, self._streamed(enter)
            yield leaving, self._streamed(reach)
        for place, chunk in enumerate(self._chunks):
            x_BTI = reach(chunk) if inner is None else inner[place]
            hidden_BTD = chunk.hidden_BTD.to(self.device) + body.get_submodule(last)(x_BTI)
            chunk.hidden_BTD = hidden_BTD.to(self.home)

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
            entering_BTD, real_BT = chunk.hidden_BTD[rows].to(self.device), chunk.real_BT[rows]
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

    def tokens(self) -> int:
        """Return how many real tokens there are."""
        return sum(int(chunk.real_BT.sum()) for chunk in self._chunks)

    def _real(self, parts: list[Tensor]) -> list[Tensor]:
        return [x[chunk.real_BT] for chunk, x in zip(self._chunks, parts, strict=True)]

    def _streamed(self, compute: Callable[[_Chunk], Tensor]) -> Streamed:
        return Streamed(
            lambda: (compute(chunk)[chunk.real_BT] for chunk in self._chunks), len(self._chunks)
        )

    def _keeps(self, body: nn.Module, last: str) -> bool:
        """Say whether what enters and what leaves a half fits into memory for all sequences."""
        leaving: Any = body.get_submodule(last)
        hidden_BTD = self._chunks[0].hidden_BTD
        widths = hidden_BTD.shape[-1] + int(leaving.in_features)
        return self._positions * widths * hidden_BTD.element_size() <= _KEPT_BYTES


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


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what sums over tokens are added up in: float32 for half precisions, else float64."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else torch.float64


def second_moment(inputs: Inputs, token_cap: float | None = None) -> Tensor:
    """Return ``X^T X`` ``[I, I]`` over chunks of inputs ``[N, I]``: GPTQ's H.

    In float64, or in float32 where the inputs are of half precision: at 18,944 inputs the one is
    2.7 GiB, and what it has more of digits is lost on inputs of 8 or 11 bits.

    With a ``token_cap``, a token longer than so many times the median token's norm is scaled down
    to that length first; without such tokens the result is the plain one, bit by bit.
    """
    most = torch.inf
    if token_cap is not None:
        lengths = torch.cat([x_NI.to(wide_dtype(x_NI.dtype)).norm(dim=1) for x_NI in inputs])
        usual = float(lengths.median())
        most = token_cap * usual if usual > 0 else torch.inf
    H_II: Tensor | None = None
    for x_NI in inputs:
        wide = x_NI.to(wide_dtype(x_NI.dtype))
        if H_II is None:
            I = wide.shape[1]  # noqa: E741 (the legend's name for the number of inputs)
            H_II = torch.zeros(I, I, dtype=wide.dtype, device=wide.device)
        length_N = wide.norm(dim=1)
        massive = length_N > most
        if bool(massive.any()):
            wide = wide * (most / length_N).clamp(max=1.0)[:, None]
        H_II.addmm_(wide.T, wide)
    if H_II is None:
        raise CalibrationError("calibration: no chunk of inputs to take a second moment of")
    return H_II


def channel_maxima(
    model: nn.Module, data: Calibration, device: torch.device | None = None
) -> list[dict[str, Tensor]]:
    """Return, for each block, the largest magnitude ``[I]`` of every input channel of each linear.

    The model runs as it is: full-precision statistics when it is not quantized yet.
    """
    runner = BlockRunner(model, data, device)
    maxima = []
    for _, block in visited(model, device):
        found: dict[str, Tensor] = {}
        for names, inputs in runner.stages(block):
            largest_I = torch.stack([x_NI.abs().amax(0) for x_NI in inputs]).amax(0)
            found |= dict.fromkeys(names, largest_I)
        maxima.append(found)
    return maxima


def _enter(model: Any, ids_BT: Tensor, mask_BT: Tensor, device: torch.device) -> _Chunk:
    """Embed a chunk at home and prepare what transformers' attention wants beside hidden states."""
    inner = model.model
    home = inner.embed_tokens.weight.device
    hidden_BTD = inner.embed_tokens(ids_BT.to(home))
    real_BT = mask_BT.to(device).bool()
    T = ids_BT.shape[1]
    positions_1T = torch.arange(T, device=home)[None]
    turns = inner.rotary_emb(hidden_BTD, position_ids=positions_1T)
    return _Chunk(
        hidden_BTD,
        real_BT,
        {
            # True: may be attended to. Padded tokens see the real ones too: nobody reads their
            # rows, but a row that sees nothing would be NaN.
            "attention_mask": real_BT[:, None, None, :].expand(-1, 1, T, T),
            "position_ids": positions_1T.to(device),
            "position_embeddings": tuple(turn.to(device) for turn in turns),
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
