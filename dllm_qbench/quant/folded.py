"""What a method moved between layers before it rounded them, found again from norms and weights.

AWQ and SmoothQuant divide a channel by s where it is written and multiply it by s where it is read. The
model computes the same, and a checkpoint does not say that it was done; but a layer's own error can be
compared with full precision's only in full precision's terms.

- **Norms**: s is full precision's gain over the checkpoint's.
- **v -> o and up -> down**: s stretches the rows of one weight and shrinks the columns of the other.
  Least squares against full precision's weights gives s twice, with the noise of rounding; both must say
  the same of most channels, else nothing was moved. What is left of the noise after hundreds of weights
  a channel is far below what rounding itself does: layers' own SQNR came out within 0.6 dB of what it is
  with the s that our AWQ (3 and 4 bits) and SmoothQuant used, on both embedded models, where without it
  would have been up to 58 dB off. GPTQ and rounding to nearest, down to 2 bits, show nothing moved.

Shapes: O outputs, I inputs, C channels between two layers; values of C kv channels are read by heads in
groups, R readers each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_qbench.quant.layers import QuantLinear, blocks

_NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_PAIRS = (("self_attn.v_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj"))
_HALF = 2.0**-7  # a gain that was rounded to bfloat16 is within this of the one it was
# Over channels: how far both estimates of log s must agree, and how wide they must spread. Where
# nothing was moved they are two independent noises, of 0.02 or less at 3 bits.
_AGREE = 0.6
_SPREAD = 0.02


@torch.no_grad()
def follow_folding(model: nn.Module, reference: nn.Module) -> None:
    """Set ``input_scale`` and ``output_scale`` of the layers that a method rescaled channels of."""
    for found, expected in zip(blocks(model), blocks(reference), strict=True):
        for norm, readers in _NORMS.items():
            _follow_norm(found, expected, norm, readers)
        for writer, reader in _PAIRS:
            _follow_pair(found, expected, writer, reader, _head_width(found))


def _head_width(block: Any) -> int:
    return int(block.self_attn.head_dim)


def _follow_norm(
    found: nn.Module, expected: nn.Module, norm: str, readers: tuple[str, ...]
) -> None:
    before: Any = expected.get_submodule(norm)
    after: Any = found.get_submodule(norm)
    gain, own = before.weight.float(), after.weight.to(before.weight.device).float()
    if bool((own == 0).any()) or bool((gain == 0).any()):
        return
    scale = gain / own
    if bool(((scale - 1).abs() <= _HALF).all()):
        return
    for reader in readers:
        layer = found.get_submodule(reader)
        if isinstance(layer, QuantLinear):
            layer.input_scale = scale.to(layer.weight.device)


def _follow_pair(
    found: nn.Module, expected: nn.Module, writer: str, reader: str, width: int
) -> None:
    first, second = found.get_submodule(writer), found.get_submodule(reader)
    if not isinstance(first, QuantLinear) or not isinstance(second, QuantLinear):
        return
    rows_OI, columns_OI = plain_weight(first), plain_weight(second)
    before: Any = expected.get_submodule(writer)
    after: Any = expected.get_submodule(reader)
    device = rows_OI.device
    # of each channel: how much smaller it is written, how much larger it is read
    written_C = -_log_ratio(rows_OI, before.weight.to(device).float(), 1)
    read_I = _log_ratio(columns_OI, after.weight.to(device).float(), 0)
    readers = second.in_features // first.out_features
    read_C = read_I
    if readers > 1:  # grouped values: R heads in a row read the same ones
        read_C = read_I.unflatten(0, (-1, readers, width)).mean(1).flatten()
    if not _agree(written_C, read_C):
        return
    scale_C = ((written_C + read_C) / 2).exp()
    scale_I = scale_C
    if readers > 1:
        scale_I = scale_C.unflatten(0, (-1, 1, width)).expand(-1, readers, -1).flatten()
    first.output_scale, second.input_scale = scale_C, scale_I.clone()


def plain_weight(layer: QuantLinear) -> Tensor:
    """Return a layer's weight for inputs in their own order, as the norm before it leaves them in full
    precision.
    """
    weight = layer.weight.float()
    if layer.transform is not None:
        weight = layer.transform.inverse(weight)
    return weight if layer.input_scale is None else weight / layer.input_scale.to(weight)


def _log_ratio(found_OI: Tensor, expected_OI: Tensor, dim: int) -> Tensor:
    """Return log of the factor that takes full precision's rows (or columns) to those found, ``[C]``."""
    ratio = (found_OI * expected_OI).sum(dim) / expected_OI.square().sum(dim)
    return ratio.clamp(min=1e-6).nan_to_num(1.0).log()


def _agree(one_C: Tensor, other_C: Tensor) -> bool:
    one, other = one_C - one_C.mean(), other_C - other_C.mean()
    spread = one.std() * other.std()
    if not float(spread) > _SPREAD**2:
        return False
    return float((one * other).mean() / spread) > _AGREE
