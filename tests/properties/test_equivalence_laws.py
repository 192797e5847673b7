"""Laws of equivalence: with nothing rounded (W16A16), no method changes what a model computes.

Models of both architectures are drawn: head and MLP widths with and without powers of two, grouped
heads, tied embeddings, biases (Dream's), norm channels that are loud, faint or dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layers import (
    BLOCK_GROUPS,
    BlockRotation,
    HadamardRotation,
    QuantLinear,
    Rotation,
    blocks,
    put,
    target_names,
)
from dllm_qbench.quant.methods import duquant, quarot, smoothquant
from dllm_qbench.quant.rotation import random_orthogonal, random_signs
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.rotated import IDS, TOLERANCE, data, relative
from tests.helpers.tiny import tiny_dream, tiny_llada

UNROUNDED = Scheme.parse("W16A16")
BEHIND_A_NORM = (*BLOCK_GROUPS[0], *BLOCK_GROUPS[2])
METHODS = ("smoothquant", "awq", "quarot", "duquant")
seeds = st.integers(0, 2**31 - 1)
alphas = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
block_sizes = st.sampled_from([1, 4, 5, 8, 12, 128])
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@dataclass(frozen=True)
class Drawn:
    """How to make a tiny model in any precision.

    ``gains`` multiply the first channels of every norm inside the blocks. Whoever reads a channel
    makes up for its gain, as in real checkpoints; a channel of gain 0 is dead.
    """

    dream: bool
    heads: int
    grouped: int
    head_width: int
    mlp_width: int
    tied: bool
    seed: int
    gains: tuple[float, ...]

    def build(self, dtype: torch.dtype) -> DiffusionLM:
        values = self.heads // self.grouped
        width = self.heads * self.head_width
        if self.dream:
            lm = tiny_dream(
                self.seed,
                dtype,
                hidden_size=width,
                num_attention_heads=self.heads,
                num_key_value_heads=values,
                intermediate_size=self.mlp_width,
                num_hidden_layers=1,
                tie_word_embeddings=self.tied,
            )
        else:
            lm = tiny_llada(
                self.seed,
                dtype,
                d_model=width,
                n_heads=self.heads,
                n_kv_heads=values,
                mlp_hidden_size=self.mlp_width,
                n_layers=1,
                weight_tying=self.tied,
            )
        for block in blocks(lm.model):
            norms = ("input_layernorm", "post_attention_layernorm")
            for norm, readers in zip(norms, BLOCK_GROUPS[::2], strict=True):
                for channel, gain in enumerate(self.gains):
                    block.get_submodule(norm).weight[channel] *= gain  # type: ignore[operator]
                    for name in readers if gain else ():
                        block.get_submodule(name).weight[:, channel] /= gain  # type: ignore[operator]
        return lm


@st.composite
def models(draw: st.DrawFn) -> Drawn:
    heads, grouped = draw(
        st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4), (6, 2)])
    )
    widths = [even for even in (4, 6, 8, 10, 12, 16) if heads * even <= 64]
    return Drawn(
        dream=draw(st.booleans()),
        heads=heads,
        grouped=grouped,
        head_width=draw(st.sampled_from(widths)),
        mlp_width=draw(st.sampled_from([7, 16, 20, 33, 44, 48, 64])),
        tied=draw(st.booleans()),
        seed=draw(seeds),
        gains=tuple(draw(st.lists(st.sampled_from([1e-3, 0.0, 30.0, 1e3]), max_size=3))),
    )


@each_dtype
@given(models(), alphas)
def test_smoothing_leaves_logits_unchanged(dtype: torch.dtype, drawn: Drawn, alpha: float) -> None:
    lm = drawn.build(dtype)
    smoothed = qb.quantize(lm, "smoothquant", UNROUNDED, data(lm), alpha=alpha)
    assert relative(smoothed.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    for name in target_names(lm.model):  # it did smooth, everywhere
        s = layer(smoothed, name).input_scale
        assert s is not None
        assert float(s.max()) > float(s.min()), name


@each_dtype
@given(models(), alphas, st.sets(st.sampled_from(smoothquant.WRITERS)))
def test_every_choice_of_places_to_smooth_leaves_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn, alpha: float, writers: set[str]
) -> None:
    lm = drawn.build(dtype)
    smoothed = lm.clone()
    smoothquant.smooth(smoothed.model, data(lm), alpha, writers)
    assert relative(smoothed.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    changed = {name for name, now in parameters(smoothed) if not torch.equal(now, at(lm, name))}
    assert changed >= {f"model.layers.0.{writer}.weight" for writer in writers}
    assert bool(changed) == bool(writers)


@each_dtype
@given(models())
def test_folded_scales_leave_logits_unchanged(dtype: torch.dtype, drawn: Drawn) -> None:
    lm = drawn.build(dtype)
    folded = qb.quantize(lm, "awq", UNROUNDED, data(lm))
    assert relative(folded.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    for name in target_names(lm.model):
        s = layer(folded, name).input_scale
        assert s is not None
        assert float(s.max()) > float(s.min()), name


@each_dtype
@given(models())
def test_folding_norm_gains_leaves_logits_unchanged(dtype: torch.dtype, drawn: Drawn) -> None:
    lm = drawn.build(dtype)
    folded = lm.clone()
    with pytest.MonkeyPatch.context() as patch:  # rotations of width 1 turn nothing
        patch.setattr(quarot, "HadamardRotation", lambda *_: HadamardRotation(1))
        quarot.rotate(folded.model, seed=0)
    assert relative(folded.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    for name, now in parameters(folded):
        if "norm" in name:
            assert torch.equal(now, torch.ones_like(now)), name
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(at(folded, embeddings), at(lm, embeddings))


@each_dtype
@given(models(), seeds)
def test_rotation_leaves_logits_unchanged(dtype: torch.dtype, drawn: Drawn, seed: int) -> None:
    lm = drawn.build(dtype)
    rotated = qb.quantize(lm, "quarot", UNROUNDED, data(lm), seed=seed)
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    embeddings = "model.embed_tokens.weight"
    moved = relative(at(rotated, embeddings), at(lm, embeddings))
    assert moved > 0.01  # it did rotate


@each_dtype
@given(models(), seeds, alphas, block_sizes)
def test_block_rotation_and_permutation_leave_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn, seed: int, alpha: float, block_size: int
) -> None:
    lm = drawn.build(dtype)
    few = {"steps": 3, "tokens": 32}
    rotated = qb.quantize(
        lm, "duquant", UNROUNDED, data(lm), seed=seed, alpha=alpha, block_size=block_size, **few
    )
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    assert all(layer(rotated, name).transform is not None for name in target_names(lm.model))


@each_dtype
@given(models(), seeds)
def test_permuting_the_channels_that_a_linear_reads_leaves_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn, seed: int
) -> None:
    lm = drawn.build(dtype)
    permuted = lm.clone()
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(permuted.model):
        size = linear(lm, name).in_features
        straight = torch.ones(size, 1, 1, dtype=dtype)  # blocks of one channel that turn nothing
        order = torch.randperm(size, generator=generator)
        turn_input(permuted, name, BlockRotation(straight, order, straight))
    assert relative(permuted.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]


@each_dtype
@given(models())
def test_rotating_the_input_of_down_proj_leaves_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn
) -> None:
    lm = drawn.build(dtype)
    rotated = lm.clone()
    turn_input(rotated, "model.layers.0.mlp.down_proj", HadamardRotation(drawn.mlp_width))
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]


@each_dtype
@given(models(), seeds, st.booleans())
def test_rotating_queries_and_keys_leaves_attention_scores_and_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn, seed: int, signed: bool
) -> None:
    lm = drawn.build(dtype)
    rotated = lm.clone()
    width = drawn.head_width
    rotation = HadamardRotation(width, random_signs(width, seed) if signed else None)
    rotated.model.get_submodule("model.layers.0.self_attn").query_key_rotation = rotation
    seen: list[tuple[Tensor, Tensor]] = []
    rotation.register_forward_hook(lambda _module, args, out: seen.append((args[0], out)))
    assert relative(rotated.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]
    (q, turned_q), (k, turned_k) = seen
    assert relative(scores(turned_q, turned_k), scores(q, k)) < TOLERANCE[dtype]


@each_dtype
@given(models(), alphas, st.sampled_from(METHODS), seeds)
def test_a_method_on_top_of_smoothing_leaves_logits_unchanged(
    dtype: torch.dtype, drawn: Drawn, alpha: float, method: str, seed: int
) -> None:
    lm = drawn.build(dtype)
    smoothed = lm.clone()
    smoothquant.smooth(smoothed.model, data(lm), alpha)
    settings: dict[str, Any] = {}
    if method in ("quarot", "duquant"):
        settings = {"seed": seed} | ({"steps": 3} if method == "duquant" else {})
    both = qb.quantize(smoothed, method, UNROUNDED, data(lm), **settings)
    assert relative(both.logits(IDS), lm.logits(IDS)) < TOLERANCE[dtype]


@given(models(), st.sampled_from(["rtn", "gptq"]), st.sampled_from(list(TOLERANCE)))
def test_methods_that_only_round_leave_every_bit_as_it_was(
    drawn: Drawn, method: str, dtype: torch.dtype
) -> None:
    lm = drawn.build(dtype)
    same = qb.quantize(lm, method, UNROUNDED, data(lm))
    for name, before in parameters(lm):
        assert torch.equal(at(same, name), before), name
    assert torch.equal(same.logits(IDS), lm.logits(IDS))


@given(models(), st.sampled_from(METHODS), seeds)
def test_layers_record_what_leads_back_to_full_precision(
    drawn: Drawn, method: str, seed: int
) -> None:
    """``to_reference(layer(from_reference(x)))`` is the full-precision linear at ``x``."""
    lm = drawn.build(torch.float64)
    changed = qb.quantize(lm, method, UNROUNDED, data(lm))
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(lm.model):
        before, now = linear(lm, name), layer(changed, name)
        x = torch.randn(3, before.in_features, generator=generator, dtype=torch.float64)
        if name.endswith(BEHIND_A_NORM):  # a norm's dead channel hands out zeros
            x[:, [channel for channel, gain in enumerate(drawn.gains) if gain == 0]] = 0.0
        found = now.to_reference(now(now.from_reference(x)))
        assert relative(found, before(x)) < TOLERANCE[torch.float64], name


@given(st.integers(1, 6), st.integers(1, 24), seeds, st.booleans())
def test_a_hadamard_rotation_is_orthogonal_and_undone_by_its_inverse(
    repeats: int, width: int, seed: int, signed: bool
) -> None:
    size = repeats * width
    check_rotation(HadamardRotation(width, random_signs(size, seed) if signed else None), size)


@given(st.integers(1, 5), st.integers(1, 8), seeds)
def test_a_block_rotation_is_orthogonal_and_undone_by_its_inverse(
    count: int, width: int, seed: int
) -> None:
    first, second = (
        torch.stack([random_orthogonal(width, seed + 2 * i + side) for i in range(count)])
        for side in range(2)
    )
    size = count * width
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    check_rotation(BlockRotation(first, order, second), size)


@given(st.integers(1, 30), block_sizes, seeds, st.integers(0, 29))
def test_the_rotation_that_duquant_finds_is_orthogonal_and_its_order_a_bijection(
    size: int, block_size: int, seed: int, massive: int
) -> None:
    x = torch.randn(20, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, massive % size] *= 1e4
    found = duquant.find_rotation([x[:13], x[13:]], block_size, steps=3, tokens=8, seed=seed)
    check_rotation(found, size)
    assert sorted(found.order.tolist()) == list(range(size))
    assert size % found.first.shape[-1] == 0
    assert found.first.shape[-1] <= block_size


def check_rotation(rotation: Rotation, size: int) -> None:
    identity = torch.eye(size, dtype=torch.float64)
    R = rotation(identity)
    torch.testing.assert_close(R @ R.T, identity, rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rotation(x), x @ R, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation(x).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotation.inverse(rotation(x)), x, rtol=0, atol=1e-12)


def turn_input(lm: DiffusionLM, name: str, rotation: Rotation) -> None:
    """Let the linear called ``name`` turn its input online and read what comes out."""
    weight = rotation(linear(lm, name).weight.double()).to(lm.dtype)
    turned = QuantLinear(weight, linear(lm, name).bias, None, UNROUNDED, "rotated")
    turned.transform = rotation
    put(lm.model, name, turned)


def scores(q_BHTE: Tensor, k_BKTE: Tensor) -> Tensor:
    """Products of every query with every key of the value head that it reads."""
    groups = q_BHTE.shape[1] // k_BKTE.shape[1]
    return q_BHTE @ k_BKTE.repeat_interleave(groups, dim=1).mT


def linear(lm: DiffusionLM, name: str) -> nn.Linear:
    found = lm.model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def layer(lm: DiffusionLM, name: str) -> QuantLinear:
    found = lm.model.get_submodule(name)
    assert isinstance(found, QuantLinear)
    return found


def at(lm: DiffusionLM, name: str) -> Tensor:
    return lm.model.get_parameter(name)


def parameters(lm: DiffusionLM) -> list[tuple[str, Tensor]]:
    return list(lm.model.named_parameters())
