"""Watch how a quantizer calls attention: in which direction, in which data type.

Every block's first attention call is repeated on a copy of the module with its later tokens changed.
If no earlier token's output moves, the call was causal, whatever mask or flag made it so.

Shapes: B sequences, T tokens, D hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.layers import blocks

_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class AttentionCall:
    """One call of a block's attention.

    Attributes:
        module: full name of the attention module.
        dtype: of the hidden states that it was given.
        looks_ahead: whether an earlier token's output depends on later tokens.
    """

    module: str
    dtype: torch.dtype
    looks_ahead: bool


@contextmanager
def watch_attention(model: nn.Module) -> Iterator[list[AttentionCall]]:
    """Collect the first attention call of every block, of ``model`` and of its deep copies."""
    calls: list[AttentionCall] = []
    seen: set[str] = set()

    def watch(name: str) -> _Hook:
        # A plain function: deep copies of the model share it, and with it the list.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_BTD = args[0] if args else kwargs.get("hidden_states")
            if name in seen or not isinstance(hidden_BTD, Tensor) or hidden_BTD.shape[-2] < 2:
                return
            seen.add(name)
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            ahead = looks_ahead(module, hidden_BTD, args[1:], rest)
            calls.append(AttentionCall(name, hidden_BTD.dtype, ahead))

        return hook

    handles = [
        block.get_submodule("self_attn").register_forward_pre_hook(
            watch(f"model.layers.{index}.self_attn"), with_kwargs=True
        )
        for index, block in enumerate(blocks(model))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def looks_ahead(
    attention: nn.Module,
    hidden_BTD: Tensor,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> bool:
    """Say whether the first half of the tokens reads anything of the second half."""
    twin = copy.deepcopy(attention)
    for module in twin.modules():  # a calibrator's hooks record, or stop, what they see
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    half = hidden_BTD.shape[-2] // 2
    edited_BTD = hidden_BTD.clone()
    edited_BTD[..., half:, :] = -edited_BTD[..., half:, :].flip(-1)
    with torch.no_grad():
        before, after = (twin(x, *args, **(kwargs or {})) for x in (hidden_BTD, edited_BTD))
    first, second = (y[0] if isinstance(y, tuple) else y for y in (before, after))
    return not torch.equal(first[..., :half, :], second[..., :half, :])
