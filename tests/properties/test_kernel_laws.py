"""Laws of the kernels: every backend does what the reference does, and the reference what it says."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dllm_qbench import kernels
from dllm_qbench.kernels.reference import hadamard_matrix
from tests.helpers import kernel_cases as cases
from tests.helpers.kernel_cases import backends, placed

ALL = [pytest.param("torch"), *backends()]
fast = pytest.mark.parametrize("backend", backends())
every = pytest.mark.parametrize("backend", ALL)
widths = st.sampled_from(cases.WIDTHS)
clips = st.sampled_from([1.0, 0.9, 0.5])


def signs_of(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare per token, relative to the token's norm: a transform mixes all its channels."""
    assert found.shape == expected.shape
    error = (found.double().cpu() - expected).norm(dim=-1)
    limit = tolerance * expected.norm(dim=-1) + 1e-30
    assert bool((error <= limit).all()), float((error / limit).max())


def dense(x: Tensor, width: int, signs: Tensor | None, inverse: bool) -> Tensor:
    """Turn by the matrix itself, in float64."""
    matrix = hadamard_matrix(width)
    wide = x.double()
    if inverse:
        y = (wide.unflatten(-1, (-1, width)) @ matrix).flatten(-2)
        return y if signs is None else y * signs.double()
    wide = wide if signs is None else wide * signs.double()
    return (wide.unflatten(-1, (-1, width)) @ matrix.T).flatten(-2)


@pytest.mark.parametrize("size", [1, 2, 4, 64, 512])
def test_reference_is_scipys_hadamard_matrix(size: int) -> None:
    x = torch.eye(size, dtype=torch.float64)
    expected = torch.from_numpy(scipy.linalg.hadamard(size)).double() / size**0.5
    assert torch.allclose(kernels.hadamard(x, backend="torch"), expected, atol=1e-14)


@every
@given(data=st.data())
def test_hadamard_is_the_dense_product(backend: str, data: st.DataObject) -> None:
    width, blocks = data.draw(widths), data.draw(st.sampled_from([1, 1, 3]))
    x = data.draw(cases.inputs(st.just(width * blocks)))
    inverse = data.draw(st.booleans())
    signs = data.draw(st.sampled_from([None, signs_of(width * blocks)]))
    before = x.clone()
    own_signs = None if signs is None else placed(signs, backend)
    found = kernels.hadamard(
        placed(x, backend), width=width, signs=own_signs, inverse=inverse, backend=backend
    )
    assert found.dtype == x.dtype
    assert torch.equal(x, before)
    if x.numel():
        close(found, dense(x, width, signs, inverse), cases.TOLERANCE[x.dtype])


@every
@given(data=st.data())
def test_hadamard_undoes_itself(backend: str, data: st.DataObject) -> None:
    width = data.draw(widths)
    x = placed(data.draw(cases.inputs(st.just(width), (torch.float32,))), backend)
    signs = placed(signs_of(width), backend)
    turned = kernels.hadamard(x, signs=signs, backend=backend)
    back = kernels.hadamard(turned, signs=signs, inverse=True, backend=backend)
    close(back, x.double().cpu(), 4e-6)


@fast
@given(data=st.data())
def test_quantize_is_the_reference_bit_by_bit(backend: str, data: st.DataObject) -> None:
    x = data.draw(cases.inputs(st.sampled_from([0, 1, 2, 7, 16, 33, 64, 128, 192, 300])))
    how = {
        "bits": data.draw(st.sampled_from([4, 8])),
        "group": data.draw(st.sampled_from([None, 1, 3, 16, 32, 128])),
        "symmetric": data.draw(st.booleans()),
        "clip": data.draw(clips),
    }
    expected = kernels.quantize(x, backend="torch", **how)
    found = kernels.quantize(placed(x, backend), backend=backend, **how)
    assert (found.bits, found.size, found.group) == (expected.bits, expected.size, expected.group)
    assert torch.equal(found.scale.cpu(), expected.scale)
    assert torch.equal(found.data.cpu(), expected.data)
    assert (found.zero is None) == (expected.zero is None)
    if found.zero is not None and expected.zero is not None:
        assert torch.equal(found.zero.cpu(), expected.zero)


@given(data=st.data())
def test_reference_rounds_to_the_nearest_code(data: st.DataObject) -> None:
    x = data.draw(cases.inputs(st.sampled_from([1, 7, 33, 128])))
    bits, group = data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from([None, 3, 32]))
    symmetric = data.draw(st.booleans())
    codes = kernels.quantize(x, bits, group=group, symmetric=symmetric, backend="torch")
    groups = codes.scale.double()[..., torch.arange(codes.size) // codes.group]
    # An asymmetric range may end half a step beyond the last code: its zero point is rounded too.
    most = 0.5 if symmetric else 1.0
    error = (cases.stands_for(codes) - x.double()).abs()
    assert bool((error <= groups * most * (1 + 1e-4)).all())
    shown = codes.dequantize(torch.float64)
    assert torch.allclose(shown, cases.stands_for(codes), rtol=1e-6, atol=1e-30)


@every
@pytest.mark.parametrize("bits", [4, 8])
def test_nan_shows_in_all_values_of_its_token(backend: str, bits: int) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    x[1, 5] = torch.nan
    for codes in (
        kernels.quantize(placed(x, backend), bits, backend=backend),
        kernels.rotate_quantize(placed(x, backend), bits, backend=backend),
    ):
        shown = codes.dequantize().cpu()
        assert bool(shown[1].isnan().all())
        assert bool(shown[[0, 2]].isfinite().all())


@every
@given(data=st.data())
def test_rotate_quantize_turns_then_rounds(backend: str, data: st.DataObject) -> None:
    width, blocks = data.draw(widths), data.draw(st.sampled_from([1, 1, 3]))
    x = data.draw(cases.inputs(st.just(width * blocks)))
    bits, clip = data.draw(st.sampled_from([4, 8])), data.draw(clips)
    signs = data.draw(st.sampled_from([None, signs_of(width * blocks)]))
    own_signs = None if signs is None else placed(signs, backend)
    found = kernels.rotate_quantize(
        placed(x, backend), bits, width=width, signs=own_signs, clip=clip, backend=backend
    )
    assert found.symmetric
    assert found.group == max(1, found.size)
    exact = dense(x, width, signs, inverse=False)
    scale = found.scale.cpu().double()
    last = 2 ** (bits - 1) - 1
    largest = exact.abs().amax(-1, keepdim=True) if exact.numel() else scale.clone()
    expected = largest * clip / last
    noise = 4e-6 * exact.norm(dim=-1, keepdim=True)  # of the transform in float32
    assert bool(((scale - expected).abs() <= noise + 1e-30).all())
    limit = scale * (0.5 + 1e-4) + noise
    inside = exact.clamp(-scale * last, scale * last)
    assert bool(((cases.stands_for(found) - inside).abs() <= limit).all())


@every
@given(data=st.data())
def test_linear_is_the_product_with_what_the_weight_stands_for(
    backend: str, data: st.DataObject
) -> None:
    weight = data.draw(cases.weights(st.sampled_from([2, 3, 4, 8])))
    O, I = weight.shape  # noqa: E741 (the legend's names)
    x = data.draw(cases.inputs(st.just(I)))
    bias = data.draw(st.sampled_from([None, torch.linspace(-1, 1, O)]))
    own = weight.to("cuda") if placed(x, backend).is_cuda else weight
    own_bias = None if bias is None else placed(bias, backend)
    found = kernels.linear(placed(x, backend), own, own_bias, backend=backend)
    assert found.dtype == x.dtype
    assert list(found.shape) == [*x.shape[:-1], O]
    values = cases.weight_stands_for(weight)
    expected = F.linear(x.double(), values, None if bias is None else bias.double())
    # Each term is rounded once or twice to the type of x, the sum once.
    size = F.linear(x.double().abs(), values.abs(), None if bias is None else bias.double().abs())
    limit = cases.TOLERANCE[x.dtype] * size + 1e-30
    assert bool(((found.cpu().double() - expected).abs() <= limit).all())


@every
@given(data=st.data())
def test_linear_quantized_is_exact_but_for_its_scaling(backend: str, data: st.DataObject) -> None:
    weight = data.draw(cases.weights())
    O, I = weight.shape  # noqa: E741 (the legend's names)
    x = data.draw(cases.inputs(st.just(I), (torch.float32,)))
    codes = kernels.quantize(
        placed(x, backend),
        data.draw(st.sampled_from([4, 8])),
        group=data.draw(st.sampled_from([None, None, 32])),
        symmetric=data.draw(st.booleans()),
        backend="torch",
    )
    bias = data.draw(st.sampled_from([None, torch.linspace(-1, 1, O)]))
    own = weight.to("cuda") if codes.data.is_cuda else weight
    own_bias = None if bias is None else placed(bias, backend)
    found = kernels.linear_quantized(codes, own, own_bias, backend=backend)
    shown, values = cases.stands_for(codes), cases.weight_stands_for(weight)
    wide = None if bias is None else bias.double()
    expected = F.linear(shown, values, wide)
    size = F.linear(shown.abs(), values.abs(), None if wide is None else wide.abs())
    assert list(found.shape) == [*x.shape[:-1], O]
    assert bool(((found.cpu().double() - expected).abs() <= 2e-6 * size + 1e-30).all())
