"""DuQuant: rotate outlier channels into their block, deal channels over blocks, rotate again.

Source: Lin et al., "DuQuant" (arXiv 2406.01721), section 3. For each linear, with x [I] its input:

    y = x W^T = (x A P B) (W A P B)^T

A, B block-diagonal orthogonal, found greedily on calibration inputs (section 3.2: the channel that
holds the largest value is swapped to the front and spread over its block, again and again); P the
zigzag permutation that evens out the blocks' sums (section 3.3). The map acts online on the input,
its inverse is folded into the weight.

What published code leaves open, settled here:
- **smoothing** (SmoothQuant's, alpha 0.5) comes first: norm -> q, k, v; v -> o; norm -> gate, up.
  *Not* up -> down: the massive values there would go into the columns of down, which pay for it at 4
  bits. That input is rotated only;
- **blocks** have 128 channels, or the largest divisor of I below that;
- **outlier channels** are columns (swapping by row index is a known bug), and the rotation with the
  smallest maximum along the greedy path is kept, so a rotation never raises the largest value on
  the calibration tokens that it was found on;
- **steps**: 32 a block where the released code takes 256: the maximum falls in the first few (16 and 64
  steps differ by 0.1 dB of logits on a small trained model at W4A4);
- the greedy search looks at ``tokens`` calibration tokens: half those with the largest values, half
  evenly spaced over the others. The permutation ranks channels by their maximum over all tokens;
- linears that read the same input share one rotation, and each is found on what the layers before
  it put out *as already quantized*;
- **weights** are rounded to nearest, symmetric per output channel, clipped at ``weight_clip`` times
  the channel's largest magnitude; **activations** symmetric per token, clipped at ``act_clip`` times
  the token's. The clips act at up to ``clip_bits`` = 4 bits, where steps are coarse enough to gain
  from them, and are off above: at 8 bits clipping alone is a larger error than rounding (logits of
  a small trained model at W8A8: 39.9 dB without clips, 24.7 with them). ``clip_bits=8`` clips there
  too; at 16 bits nothing is ever clipped.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner, Inputs, Streamed, mapped
from dllm_qbench.quant.grid import Grid, find_grid
from dllm_qbench.quant.layers import BlockRotation, QuantLinear, put, target_names
from dllm_qbench.quant.methods.smoothquant import WRITERS, smooth
from dllm_qbench.quant.offload import visited
from dllm_qbench.quant.rotation import greedy_block_rotation, zigzag_permutation
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.seeding import derive

NAME = "duquant"
SMOOTHED = tuple(writer for writer in WRITERS if writer != "mlp.up_proj")


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return True


def quantize_model(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    device: torch.device | None = None,
    *,
    alpha: float = 0.5,
    block_size: int = 128,
    steps: int = 32,
    tokens: int = 256,
    act_clip: float = 0.9,
    weight_clip: float = 0.8,
    clip_bits: int = 4,
    seed: int = 0,
) -> None:
    """Smooth and rotate ``model`` and replace every targeted linear, in place.

    Raises:
        ValueError: alpha outside 0..1, a clip outside (0, 1], or a count below 1.
    """
    _check(alpha, {"act_clip": act_clip, "weight_clip": weight_clip},
           {"block_size": block_size, "steps": steps, "tokens": tokens})  # fmt: skip
    act_clip = act_clip if scheme.act_bits <= clip_bits else 1.0
    weight_clip = weight_clip if scheme.weight_bits <= clip_bits else 1.0
    target_names(model)  # refuses a model with linears that no group covers
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    factors = smooth(model, calibration, alpha, SMOOTHED, device)
    runner = BlockRunner(model, calibration, device)
    for index, block in visited(model, device):
        for names, inputs in runner.stages(block):
            where = f"model.layers.{index}.{names[0]}"
            rotation = find_rotation(inputs, block_size, steps, tokens, derive(seed, NAME, where))
            for name in names:
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                turned = rotation(linear.weight.double()).to(linear.weight.dtype)
                weight, grid = _round(turned, scheme, symmetric, weight_clip)
                layer = QuantLinear(weight, linear.bias, grid, scheme, NAME)
                layer.transform, layer.act_clip = rotation, act_clip
                own = factors.get(f"model.layers.{index}.{name}", {})
                for side, factor in own.items():
                    setattr(layer, f"{side}_scale", factor.to(weight.dtype))
                put(block, name, layer)


def find_rotation(
    inputs: Inputs, block_size: int, steps: int, tokens: int, seed: int
) -> BlockRotation:
    """Find A, P and B for the inputs ``[N, I]`` of a linear, chunk by chunk.

    Args:
        inputs: calibration inputs, smoothed.
        block_size: at most this many channels a block; the largest divisor of I is taken.
        steps: greedy steps a block.
        tokens: how many tokens the greedy search looks at.
        seed: of the random part of the greedy rotations.
    """
    # What fits into memory is turned in one piece.
    parts = inputs if isinstance(inputs, Streamed) else [torch.cat(inputs)]
    some_NI = next(iter(parts))
    I = some_NI.shape[1]  # noqa: E741 (the legend's name for the number of inputs)
    size = max(b for b in range(1, min(block_size, I) + 1) if I % b == 0)
    dtype = torch.promote_types(some_NI.dtype, torch.float32)
    identity = torch.eye(size, dtype=dtype, device=some_NI.device).expand(I // size, size, size)
    straight = torch.arange(I, device=some_NI.device)
    del some_NI
    found = BlockRotation(identity, straight, identity)
    found.first = _greedy(mapped(parts, found), size, steps, tokens, derive(seed, "first"))
    channel_I = torch.stack([x_NI.abs().amax(0) for x_NI in mapped(parts, found)]).amax(0)
    found.order = zigzag_permutation(channel_I, I // size)
    found.second = _greedy(mapped(parts, found), size, steps, tokens, derive(seed, "second"))
    return found


def _greedy(inputs: Inputs, size: int, steps: int, tokens: int, seed: int) -> Tensor:
    """Return greedy rotations found on some of the tokens, in float32 at least."""
    largest_N = torch.cat([x_NI.abs().amax(1) for x_NI in inputs])
    chosen = torch.arange(len(largest_N), device=largest_N.device)
    if len(largest_N) > tokens:
        ranked = torch.argsort(largest_N, descending=True, stable=True)
        top = (tokens + 1) // 2
        rest = ranked[top:].sort().values
        spaced = torch.linspace(0, len(rest) - 1, tokens - top, device=rest.device).long()
        chosen = torch.cat((ranked[:top], rest[spaced]))
    x_NI = _rows(inputs, chosen)
    made = greedy_block_rotation(x_NI.cpu(), size, steps, seed)
    return made.to(x_NI.device, torch.promote_types(x_NI.dtype, torch.float32))


def _rows(inputs: Iterable[Tensor], chosen: Tensor) -> Tensor:
    """Return the rows of these numbers, counted through all chunks."""
    found, start = [], 0
    for x_NI in inputs:
        inside = (chosen >= start) & (chosen < start + len(x_NI))
        found.append(x_NI[chosen[inside] - start])
        start += len(x_NI)
    # A chunk at a time, each in the order of ``chosen``: the search looks at maxima of all rows.
    return torch.cat(found)


def _round(
    weight: Tensor, scheme: Scheme, symmetric: bool, clip: float
) -> tuple[Tensor, Grid | None]:
    """Round to nearest on a grid whose range is ``clip`` times the group's; untouched at 16 bits."""
    if not scheme.quantizes_weights:
        return weight, None
    grid = find_grid(weight.double() * clip, scheme.weight_bits, symmetric, scheme.group)
    return grid.nearest(weight), grid


def _check(alpha: float, clips: dict[str, float], counts: dict[str, int]) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"duquant: alpha must lie in 0..1, found {alpha}")
    for name, clip in clips.items():
        if not 0 < clip <= 1:
            raise ValueError(f"duquant: {name} must lie in (0, 1], found {clip}")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"duquant: {name} must be at least 1, found {count}")
