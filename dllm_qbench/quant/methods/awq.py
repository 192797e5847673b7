"""AWQ: weights that read large activations are scaled up before rounding, and back down after it.

Source: Lin et al., "AWQ" (arXiv 2306.00978), equations 4 and 5, and the authors' code for clipping:

    s* = argmin_s L(s),   L(s) = || Q(W diag(s)) (diag(s)^-1 X) - W X ||,   s = s_X^ratio

with s_X the mean magnitude of an input channel, 20 ratios 0, 0.05 .. 0.95, and s normalised by
sqrt(max s * min s) (a common factor changes no rounding, it keeps numbers in range). Division by s
is folded into whatever writes the channel, so the function is unchanged before rounding:

    norm -> q, k, v        v -> o        norm -> gate, up        up -> down

Then each weight group may clip: its grid is that of the weights clamped to a share 1, 0.975 .. 0.5 of
their largest magnitude, whichever makes the group's own part of the output err least. q and k do
not clip: their errors multiply each other. So do those of gate and up, and ``unclipped`` may name
them too (on one embedded model at W3, 400 items of math: 11 points fewer with clips there than
without any); by default they clip, as in the authors' code.

What is inspected: for q, k, v the output of the attention, for gate and up that of the MLP, by the
block's own modules, looking both ways; for o and down their own output, which is the same place.
Inputs are the full-precision model's over all real tokens, masked ones included.

What a masked diffusion model changes, and what published code leaves open, settled here:
- **errors are relative to the token's residual stream** h behind the inspected half, as the next norm
  will see them: L = mean over tokens of ||e||^2 / (||h||^2 + D eps). Summed plainly, the few tokens
  with massive activations outweigh all others a million to one, and the search serves them alone:
  with up -> down scaled that way math at W4 lost 33 points in a trial;
- **only the part of e across h counts** at q, k, v and gate, up: the part along h is a change of
  length, which the norm takes out. On a massive token it is most of the error there: gate and up of the
  neurons that fire, rounded, scale one direction that the stream consists of anyway. With it, clips
  at gate and up were turned down in the first layers of the embedded LLaDA (math at W3, 500
  items: a drop of 31 % with that part, 25 % without). At o and down, where rounding errs in no
  direction of its own, the part along h is one in D and is left in;
- **magnitudes at o and down** are taken in the same unit, for the same reason; behind a norm all
  tokens have about the same size, and s_X is the plain mean;
- **never worse than RTN**, by the L above and in each of the four places: ratio 0 is RTN, a tie goes
  to the smaller ratio, and clips stay only where the inspected output agrees;
- **a search by elimination** at q, k, v and gate, up, where L takes a forward pass: all ratios on every
  4th sequence, the best 8 on the second quarter, the best 4 on the rest, RTN always. On the embedded
  models (32 searches) it gives the same weights, bit by bit, as all ratios on all sequences, in 0.6 of
  the time;
- **v -> o** with grouped heads: query heads of a group read the same channel of v, so they share one
  s, from the mean over the group;
- **quiet channels** (dead ones too) count as no less than 1e-4 of the loudest: s stays within two
  orders of magnitude of 1, and a channel that wakes up later is not lost;
- **16-bit weights** have no error to search by; ratio 0.5 is folded, so that comparing logits tests
  the folding. Activation bits play no part in the search.

Shapes: N tokens of a chunk, D hidden, I inputs, O outputs, G groups of g weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_qbench.errors import NonFiniteError
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner, Inputs, wide_dtype
from dllm_qbench.quant.grid import Grid, find_grid, within
from dllm_qbench.quant.layers import BLOCK_GROUPS, QuantLinear, put, target_names
from dllm_qbench.quant.offload import visited
from dllm_qbench.quant.scheme import Scheme

NAME = "awq"
_QUIETEST = 1e-4  # of the loudest channel's magnitude
_UNSEARCHED = 0.5  # the ratio at 16 bits
# What writes the channels that each group of linears reads.
_WRITERS = dict(
    zip(
        BLOCK_GROUPS,
        ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"),
        strict=True,
    )
)

# From so many calibration sequences on, the search behind a norm goes over them in as many parts as there
# are numbers here, every 4th sequence first; after each part RTN and so many other ratios are left.
_SPLIT_FROM = 64
_LEFT = (8, 4, 4, 4)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the search settled on for linears that read the same input.

    Attributes:
        s: float64 ``[I]``; the linears read their input divided by it.
        shares: for each linear, the share of a group's largest weight that its grid covers,
            float64 ``[O, G]``, or ``None``: all of it.
        error: L with these; ``rtn_error``: L without scaling and clipping.
    """

    s: Tensor
    shares: tuple[Tensor | None, ...]
    error: float = 0.0
    rtn_error: float = 0.0


def _error(choice: Choice) -> float:
    return math.inf if math.isnan(choice.error) else choice.error


def symmetric_by_default(scheme: Scheme) -> bool:
    """Return the weight grid's symmetry that this method takes when the scheme leaves it open."""
    return False


def scaling_factors(magnitude: Tensor, ratio: float) -> Tensor:
    """Return s = s_X^ratio of equation 5, normalised, float64 ``[I]``; 1 if nothing is active."""
    x = magnitude.double()
    loudest = x.amax()
    if float(loudest) == 0.0:
        return torch.ones_like(x)
    s = (x / loudest).clamp(min=_QUIETEST).pow(ratio)
    return s / (s.amax() * s.amin()).sqrt()


def round_clipped(
    weight: Tensor, scheme: Scheme, symmetric: bool, shares: Tensor | float | None
) -> tuple[Tensor, Grid | None]:
    """Round ``weight [O, I]`` on the grids of its clamped groups; float64 values and the grid.

    ``shares`` (``[O, G]`` or a number) of a group's largest magnitude is what its grid covers.
    """
    wide = weight.double()
    if not scheme.quantizes_weights:
        return wide, None
    size = wide.shape[1]
    group = size if scheme.group is None else min(scheme.group, size)
    if shares is not None:
        limit_OG = _grouped(wide, group).abs().amax(-1) * shares
        limit_OI = limit_OG.repeat_interleave(group, -1)[:, :size]
        wide = wide.clamp(-limit_OI, limit_OI)
    grid = find_grid(wide, scheme.weight_bits, symmetric, group)
    return grid.nearest(wide), grid


def clip_shares(
    weight: Tensor, s: Tensor, hessian: Tensor, scheme: Scheme, symmetric: bool, steps: int
) -> Tensor:
    """Return the best share ``[O, G]`` for every group of ``weight [O, I]`` scaled by ``s [I]``.

    Best by the error of the group's own part of the output, from ``hessian [I, I]``, the second
    moment of the unscaled inputs. A tie goes to the larger share.
    """
    W_OI = weight.double()
    size = W_OI.shape[1]
    group = size if scheme.group is None else min(scheme.group, size)
    spare = -size % group
    count = (size + spare) // group
    H_Ggg = W_OI.new_zeros(count, group, group)
    for index in range(count):
        own_gg = hessian[index * group : (index + 1) * group, index * group : (index + 1) * group]
        H_Ggg[index, : len(own_gg), : len(own_gg)] = own_gg
    best_OG = torch.full((len(W_OI), count), math.inf, dtype=W_OI.dtype, device=W_OI.device)
    shares_OG = torch.ones_like(best_OG)
    for step in range(steps + 1):
        share = 1 - 0.5 * step / steps
        values_OI, _ = round_clipped(W_OI * s, scheme, symmetric, share)
        delta_GOg = _grouped(values_OI / s - W_OI, group).transpose(0, 1)
        del values_OI
        error_OG = ((delta_GOg @ H_Ggg) * delta_GOg).sum(-1).T
        better = error_OG < best_OG
        best_OG = torch.where(better, error_OG, best_OG)
        shares_OG = torch.where(better, share, shares_OG)
    return shares_OG


def quantize_model(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    device: torch.device | None = None,
    *,
    ratios: int = 20,
    clip_steps: int = 20,
    unclipped: str = "q_proj k_proj",
) -> None:
    """Scale, clip and replace every targeted linear of ``model``, in place.

    ``ratios=1`` leaves scaling out, ``clip_steps=0`` clipping; without both this is RTN.
    ``unclipped`` lists the linears that never clip, by the last part of their names.
    """
    known = {name.rpartition(".")[2] for names in BLOCK_GROUPS for name in names}
    if not set(unclipped.split()) <= known:
        raise ValueError(
            f"awq: unclipped must list linears of a block ({', '.join(sorted(known))}), separated by"
            f" spaces; found {unclipped!r}"
        )
    if ratios < 1 or clip_steps < 0:
        raise ValueError(
            f"awq: ratios must be at least 1 and clip_steps at least 0, found {ratios} and"
            f" {clip_steps}"
        )
    target_names(model)  # refuses a model with linears that no group covers
    symmetric = scheme.is_symmetric(symmetric_by_default(scheme))
    runner = BlockRunner(model, calibration, device)
    for index, block in visited(model, device):
        choices = {}
        # Nothing is replaced before the block is through: every search sees full precision.
        for names, inputs in runner.stages(block):
            place = _Place(runner, block, names, inputs)
            choice = place.search(scheme, symmetric, ratios, clip_steps, unclipped.split())
            if not math.isfinite(choice.rtn_error):
                raise NonFiniteError(
                    f"awq: model.layers.{index}.{names[0]}: the block's output is NaN or infinite"
                    f" on the calibration data, or is once this linear is rounded"
                )
            choices[names] = choice
            del place, inputs
        _replace(block, f"model.layers.{index}", choices, scheme, symmetric)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the calibration sequences, and what full precision has there, chunk by chunk.

    It is kept where the model lives: at 8B and 128 sequences of 2,048 tokens it is 6 GiB.

    Attributes:
        rows: which sequences of each chunk.
        expected: what the half adds to the residual stream, ``[N, D]``.
        along: the unit vector of the stream behind it, ``[N, D]``.
        per_token: what a token's squared error counts in L, ``[N]``.
    """

    rows: slice
    expected: list[Tensor] = field(default_factory=list)
    along: list[Tensor] = field(default_factory=list)
    per_token: list[Tensor] = field(default_factory=list)


Loss = Callable[[Sequence[Tensor], Sequence[_Part]], float]


class _Place:
    """One of the four places of a block: linears that read the same input, and L over them."""

    def __init__(
        self, runner: BlockRunner, block: Any, names: tuple[str, ...], inputs: Inputs
    ) -> None:
        self._runner, self._block, self._names = runner, block, names
        self._linears: list[Any] = [block.get_submodule(name) for name in names]
        self._weights = [linear.weight.double() for linear in self._linears]
        normed = _WRITERS[names].endswith("layernorm")
        self._eps = float(block.post_attention_layernorm.variance_epsilon)
        self._tokens = runner.tokens()
        self._wide = wide_dtype(block.get_submodule(names[0]).weight.dtype)
        split = len(_LEFT) if normed and runner.sequences() >= _SPLIT_FROM else 1
        self._parts = [self._part(slice(first, None, split)) for first in range(split)]
        # Behind a norm all tokens count alike for s_X and for clips, elsewhere as in L.
        magnitude_I = torch.zeros_like(self._weights[0][0])
        self._H_II = torch.zeros_like(magnitude_I, dtype=self._wide).diag()
        for place, x_NI in enumerate(inputs):
            wide_NI = x_NI.to(self._wide)
            if not normed:
                per_token_N = self._parts[0].per_token[place].to(wide_NI)
                wide_NI = wide_NI * per_token_N.sqrt()[:, None]
            magnitude_I += wide_NI.abs().sum(0)
            self._H_II += wide_NI.T @ wide_NI
        if names == BLOCK_GROUPS[1]:
            magnitude_I = _share_heads(block, magnitude_I)
        self._magnitude_I = magnitude_I
        self._normed = normed  # not the loss itself: a cycle would hold the device's memory

    def _part(self, rows: slice) -> _Part:
        """Return what full precision has on some of the sequences."""
        part, home = _Part(rows), self._runner.home
        for h_ND, y_ND in self._runner.halves(self._block, self._names, rows):
            stream_ND = h_ND.to(self._wide) + y_ND.to(self._wide)
            stream_N = stream_ND.square().mean(-1) + self._eps
            along_ND = stream_ND / (stream_N * y_ND.shape[1]).sqrt()[:, None]
            part.expected.append(y_ND.to(home))
            part.along.append(along_ND.to(home))
            part.per_token.append((1 / (stream_N * y_ND.shape[1] * self._tokens)).to(home))
        return part

    def search(
        self,
        scheme: Scheme,
        symmetric: bool,
        ratios: int,
        clip_steps: int,
        unclipped: Sequence[str],
    ) -> Choice:
        """Return the best of all ratios, with clips if they make it better still."""
        whole = (None,) * len(self._names)
        loss: Loss = self._loss_of_half if self._normed else self._loss_of_output
        if not scheme.quantizes_weights:
            s_I = scaling_factors(self._magnitude_I, _UNSEARCHED if ratios > 1 else 0.0)
            return Choice(s_I, whole)

        def rated(choice: Choice, parts: Sequence[_Part]) -> Choice:
            """Add the loss on some of the sequences to a choice's error."""
            rounded = [
                round_clipped(W_OI * choice.s, scheme, symmetric, shares)[0] / choice.s
                for W_OI, shares in zip(self._weights, choice.shares, strict=True)
            ]
            return replace(choice, error=choice.error + loss(rounded, parts))

        left = [
            Choice(scaling_factors(self._magnitude_I, step / ratios), whole)
            for step in range(ratios)
        ]
        for part, most in zip(self._parts, _LEFT, strict=False):
            left = [rated(choice, [part]) for choice in left]
            rtn, others = left[0], left[1:]
            promising = sorted(others, key=_error)[:most]
            left = [rtn, *(choice for choice in others if choice in promising)]
        best = min(left, key=_error)
        if clip_steps:
            shares = tuple(
                None
                if name.rpartition(".")[2] in unclipped
                else clip_shares(W_OI, best.s, self._H_II, scheme, symmetric, clip_steps)
                for name, W_OI in zip(self._names, self._weights, strict=True)
            )
            clipped = rated(replace(best, shares=shares, error=0.0), self._parts)
            best = min(best, clipped, key=_error)
        return replace(best, rtn_error=left[0].error)

    def _loss_of_half(self, weights: Sequence[Tensor], parts: Sequence[_Part]) -> float:
        """Return L at the output of the attention or the MLP, computed by the block's modules."""
        kept = [linear.weight.data for linear in self._linears]
        try:
            for linear, weight in zip(self._linears, weights, strict=True):
                linear.weight.data = weight.to(linear.weight.dtype)
            total = 0.0
            for part in parts:
                found = self._runner.halves(self._block, self._names, part.rows)
                for y_ND, along_ND, count_N, (_, q_ND) in zip(
                    part.expected, part.along, part.per_token, found, strict=True
                ):
                    e_ND = (q_ND - y_ND.to(q_ND.device)).to(self._wide)
                    seen_N = e_ND.square().sum(-1) - (e_ND * along_ND.to(e_ND)).sum(-1).square()
                    total += float(seen_N @ count_N.to(seen_N))
            return total
        finally:
            for linear, weight in zip(self._linears, kept, strict=True):
                linear.weight.data = weight

    def _loss_of_output(self, weights: Sequence[Tensor], parts: Sequence[_Part]) -> float:
        """Return L at the output of the half's last linear: a quadratic form of its inputs.

        It covers all sequences at once: there is one part.
        """
        delta_OI = weights[0] - self._weights[0]
        return float(((delta_OI @ self._H_II.to(delta_OI)) * delta_OI).sum())


def _replace(
    block: Any,
    where: str,
    choices: dict[tuple[str, ...], Choice],
    scheme: Scheme,
    symmetric: bool,
) -> None:
    """Fold all divisions into their writers and put the quantized linears in place.

    ``where`` is the block's name, for errors.
    """
    written: dict[str, Tensor] = {}
    for names, choice in choices.items():
        writer, s = _WRITERS[names], choice.s
        if writer == "self_attn.v_proj":
            groups, width = int(block.self_attn.num_key_value_groups), int(block.self_attn.head_dim)
            s = s.view(-1, groups, width)[:, 0].reshape(-1)
        if writer.endswith("layernorm"):
            gain = block.get_submodule(writer).weight.data
            gain.copy_(gain.double() / s)
        else:
            written[writer] = s
    for names, choice in choices.items():
        for name, shares in zip(names, choice.shares, strict=True):
            linear = block.get_submodule(name)
            weight, bias, out = linear.weight.double() * choice.s, linear.bias, written.get(name)
            if out is not None:  # scaling a row scales its grid: what was found stays the best
                weight = weight / out[:, None]
                bias = None if bias is None else (bias.double() / out).to(bias.dtype)
            dtype = linear.weight.dtype
            largest = float(weight.abs().amax())
            if largest > torch.finfo(dtype).max:
                raise NonFiniteError(
                    f"awq: {where}.{name}: a weight is {largest:.3g} once its channel is scaled,"
                    f" beyond {dtype}; load the model in a wider dtype"
                )
            values, grid = round_clipped(weight, scheme, symmetric, shares)
            layer = QuantLinear(within(values, dtype), bias, grid, scheme, NAME)
            layer.input_scale = choice.s.to(dtype)
            layer.output_scale = None if out is None else out.to(dtype)
            put(block, name, layer)


def _share_heads(block: Any, magnitude: Tensor) -> Tensor:
    """Give query heads that read the same value head their mean magnitude, ``[H * E]``."""
    groups, width = int(block.self_attn.num_key_value_groups), int(block.self_attn.head_dim)
    heads = magnitude.view(-1, groups, width)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _grouped(x_OI: Tensor, group: int) -> Tensor:
    """Return ``[O, G, g]``, the last group filled with zeros."""
    groups_OGg: Tensor = F.pad(x_OI, (0, -x_OI.shape[1] % group)).unflatten(-1, (-1, group))
    return groups_OGg
