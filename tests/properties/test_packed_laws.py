"""Laws of a packed layer: it stands for the fake layer's values, and multiplies as that does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm_qbench.errors import CheckpointError
from dllm_qbench.kernels import Codes
from dllm_qbench.quant.grid import Grid, find_grid
from dllm_qbench.quant.layer_error import token_sqnr
from dllm_qbench.quant.layers import BlockRotation, HadamardRotation, QuantLinear, Rotation
from dllm_qbench.quant.packed import PackedLinear, packed_weight
from dllm_qbench.quant.rotation import random_orthogonal, random_signs
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.packed_models import rounded_apart

few = settings(max_examples=40)
INTEGERS = {4: torch.int32, 2: torch.int16}
schemes = st.builds(
    Scheme,
    st.sampled_from([2, 3, 4, 5, 6, 7, 8]),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([None, 1, 3, 8, 20, 128]),
    st.booleans(),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 7, 12, 24, 40, 130]))
seeds = st.integers(0, 2**20)


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Values of widely different rows, with a row of zeros and one of a single sign now and then."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x *= 10.0 ** torch.randint(-3, 3, (shape[0], 1), generator=generator)
    x[0] = x[0].abs() if seed % 3 == 0 else x[0]
    x[-1] = 0 if seed % 5 == 0 else x[-1]
    return x.to(dtype)


def fake_layer(
    shape: tuple[int, int], scheme: Scheme, seed: int, dtype: torch.dtype
) -> QuantLinear:
    grid = find_grid(
        drawn(shape, seed, dtype), scheme.weight_bits, bool(scheme.symmetric), scheme.group
    )
    weight = grid.nearest(drawn(shape, seed, dtype))
    return QuantLinear(weight, drawn((1, shape[0]), seed + 1, dtype)[0], grid, scheme, "test")


def rotations(size: int, seed: int) -> list[Rotation | None]:
    blocks = random_orthogonal(size, seed).float()[None]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return [
        None,
        HadamardRotation(size),
        HadamardRotation(math.gcd(size, 4), random_signs(size, seed).float()),
        BlockRotation(blocks, order, blocks.mT.contiguous()),
    ]


def turning(
    shape: tuple[int, int], scheme: Scheme, seed: int, pick: int
) -> tuple[QuantLinear, PackedLinear, Tensor]:
    """A layer that turns and clips what it reads, its packed self, and an input."""
    fake = fake_layer(shape, scheme, seed, torch.float32)
    fake.transform = rotations(shape[1], seed)[pick]
    fake.act_clip = (1.0, 0.9)[seed % 2]
    x = drawn((10, shape[1]), seed + 2, torch.float32).unflatten(0, (2, 5))
    return fake, PackedLinear.of(fake), x


def apart(found: Tensor, expected: Tensor) -> int:
    """How many floating-point numbers two tensors are apart, at most."""
    kind = INTEGERS[found.element_size()]
    steps = found.contiguous().view(kind).long() - expected.contiguous().view(kind).long()
    return int(steps.abs().max())


@few
@given(shape=shapes, scheme=schemes, seed=seeds, dtype=dtypes)
def test_codes_stand_for_the_fake_values_to_the_last_place(
    shape: tuple[int, int], scheme: Scheme, seed: int, dtype: torch.dtype
) -> None:
    fake = fake_layer(shape, scheme, seed, dtype)
    packed = PackedLinear.of(fake)
    exact = fake.stored().scale.dtype == torch.float32
    assert packed.weight.dtype == dtype
    assert apart(packed.weight, fake.weight) <= (0 if exact else 1)
    assert fake.scale is not None
    assert fake.zero is not None
    assert torch.equal(packed.scale, fake.scale)
    assert torch.equal(packed.zero, fake.zero)
    assert packed.symmetric == fake.symmetric


@few
@given(shape=shapes, scheme=schemes, seed=seeds, pick=st.integers(0, 3))
def test_output_is_the_product_of_the_fake_weight_and_what_was_read(
    shape: tuple[int, int], scheme: Scheme, seed: int, pick: int
) -> None:
    fake, packed, x = turning(shape, scheme, seed, pick)
    found, read = packed(x), packed._turned_and_rounded(x)
    wide = read.dequantize(torch.float64) if isinstance(read, Codes) else read.double()
    weight, bias = fake.weight.double(), fake.bias
    assert bias is not None
    assert found.dtype == x.dtype
    # Against what goes into a sum: outputs may cancel to nothing.
    size = wide.norm(dim=-1, keepdim=True) * weight.norm(dim=-1) + bias.abs()
    error = (found - (wide @ weight.T + bias)).abs()
    assert bool((error <= 1e-5 * size + 1e-30).all())


@few
@given(shape=shapes, scheme=schemes, seed=seeds, pick=st.integers(0, 3))
def test_input_is_rounded_as_fake_quantization_does_but_for_ties(
    shape: tuple[int, int], scheme: Scheme, seed: int, pick: int
) -> None:
    fake, packed, x = turning(shape, scheme, seed, pick)
    expected, found = fake._turned_and_rounded(x), packed._turned_and_rounded(x)
    if scheme.act_bits == 16:
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(x.abs().max()))
        return
    assert isinstance(found, Codes)
    assert (found.bits, found.group) == (scheme.act_bits, shape[1])
    differ, tied = rounded_apart(fake, packed, x)
    assert bool((tied | ~differ).all())


@few
@given(shape=shapes, scheme=schemes, seed=seeds, dtype=dtypes)
def test_memory_is_codes_scales_and_zero_points(
    shape: tuple[int, int], scheme: Scheme, seed: int, dtype: torch.dtype
) -> None:
    I = shape[1]  # noqa: E741 (inputs)
    packed = PackedLinear.of(fake_layer(shape, scheme, seed, dtype))
    bits, groups = scheme.weight_bits, math.ceil(I / min(scheme.group or I, I))
    row = math.ceil(I * bits / 8) + 4 * groups
    row += 0 if scheme.symmetric else math.ceil(groups * bits / 8)
    assert packed.held_bits == pytest.approx(8 * row / I)
    assert packed.held_bits == pytest.approx(packed.packed.bits_per_weight)


@few
@given(shape=shapes, scheme=schemes, seed=seeds, dtype=dtypes)
def test_what_a_checkpoint_holds_of_a_packed_layer_is_that_layer(
    shape: tuple[int, int], scheme: Scheme, seed: int, dtype: torch.dtype
) -> None:
    packed = PackedLinear.of(fake_layer(shape, scheme, seed, dtype))
    stored = packed.stored()
    assert apart(stored.weight(dtype), packed.weight) == 0
    again = packed_weight(stored, dtype)
    for found, expected in ((again.data, packed.codes), (again.scale, packed.steps)):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    as_fake = QuantLinear(stored.weight(dtype), None, stored.grid(), scheme, "test")
    assert torch.equal(PackedLinear.of(as_fake).weight, packed.weight)


@few
@given(scheme=schemes, seed=seeds, other=schemes)
def test_requantized_layer_is_the_other_weights_own(
    scheme: Scheme, seed: int, other: Scheme
) -> None:
    packed = PackedLinear.of(fake_layer((4, 24), scheme, seed, torch.float32))
    wanted = PackedLinear.of(fake_layer((4, 24), other, seed + 1, torch.float32))
    grid = Grid(
        wanted.scale, wanted.zero, other.weight_bits, bool(other.symmetric), other.group or 24
    )
    packed.requantize(wanted.weight, grid, other)
    assert torch.equal(packed.weight, wanted.weight)
    assert torch.equal(packed.scale, wanted.scale)
    assert packed.scheme == other


@few
@given(scheme=schemes, seed=seeds)
def test_data_type_of_a_model_changes_values_and_no_scale(scheme: Scheme, seed: int) -> None:
    packed = PackedLinear.of(fake_layer((4, 24), scheme, seed, torch.float32))
    halved = copy.deepcopy(packed).to(torch.bfloat16)
    assert halved.dtype == torch.bfloat16
    assert torch.equal(halved.scale, packed.scale)
    assert torch.equal(halved.weight, packed.weight.to(torch.bfloat16))
    x = drawn((3, 24), seed, torch.bfloat16)
    assert halved(x).dtype == torch.bfloat16
    # bfloat16 has 8 bits: 44 dB a value, and sums of 24 do not add up to worse.
    assert float(token_sqnr(packed(x.float()), halved(x)).min()) > (
        30 if scheme.act_bits != 4 else 5
    )


@few
@given(size=st.integers(1, 20), seed=seeds)
def test_a_weight_off_its_grid_is_refused(size: int, seed: int) -> None:
    fake = fake_layer((3, size), Scheme(4, 16, None, True), seed, torch.float32)
    assert fake.scale is not None
    fake.weight.data[0, 0] += 0.3 * fake.scale[0, 0]
    with pytest.raises(CheckpointError, match="on no level of its grid"):
        PackedLinear.of(fake)
