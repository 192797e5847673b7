"""Bugs that kernels have had, planted one at a time: a packed model with one is not the fake model any more.

Each is planted in the reference backend's product for one layer of the model, as a kernel that is wrong for
some shapes would be. The comparison with fake quantization names that layer, and so does the localisation
of a cell against its baseline, where the bug costs more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench import kernels
from dllm_qbench.kernels import Codes, PackedWeight, reference
from dllm_qbench.kernels.packing import pack_codes
from dllm_qbench.noise import LEAST_DB
from dllm_qbench.quant.layer_error import profile
from dllm_qbench.quant.packed import PackedLinear
from dllm_qbench.verdict.localise import locate
from tests.helpers import packed_models as models
from tests.helpers.packed_models import MODELS, SAME_DB

LAYER = "model.layers.2.mlp.up_proj"
WEIGHT_ONLY, BOTH = ("rtn", "W4A16-g128"), ("rtn", "W8A8")
float_product, integer_product = reference.linear, reference.linear_quantized


def swapped_nibbles(x: Any, weight: PackedWeight, *more: Any) -> Tensor:
    """The high half of a byte is read as the first code."""
    return float_product(x, replace(weight, data=weight.data << 4 | weight.data >> 4), *more)


def zero_point_off_by_one(x: Any, weight: PackedWeight, *more: Any) -> Tensor:
    """Zero points are stored less one, as in some checkpoints of GPTQ, and read as they are."""
    zeros = weight.zeros()
    assert zeros is not None
    lower = pack_codes((zeros.int() - 1).clamp(min=0), weight.bits)
    return float_product(x, replace(weight, zero=lower), *more)


def last_group_dropped(x: Any, weight: PackedWeight, *more: Any) -> Tensor:
    """Groups are counted by a division that rounds down: 192 inputs have one of 128."""
    whole = weight.size // weight.group * weight.group
    assert whole < weight.size
    kept = torch.where(torch.arange(weight.size) < whole, x, 0)
    return float_product(kept, weight, *more)


def scales_of_the_group_before(x: Any, weight: PackedWeight, *more: Any) -> Tensor:
    """The scale is loaded before the group's index moves on."""
    return float_product(x, replace(weight, scale=weight.scale.roll(1, -1)), *more)


def scales_of_another_token(codes: Codes, weight: PackedWeight, *more: Any) -> Tensor:
    """Rows of a tile take the scales of the row beside."""
    return integer_product(replace(codes, scale=codes.scale.roll(1, -2)), weight, *more)


def sums_of_16_bits(codes: Codes, weight: PackedWeight, bias: Any, dtype: torch.dtype) -> Tensor:
    """Products of int8 are summed in int16, as by a saturating instruction without its saturation."""
    sums = codes.integers().long() @ weight.codes().integers().long().T
    wrapped = (sums + 2**15) % 2**16 - 2**15
    made = wrapped.float() * codes.scale * weight.scale[:, 0]
    return (made if bias is None else made + bias).to(dtype)


def unsigned_codes(codes: Codes, weight: PackedWeight, *more: Any) -> Tensor:
    """Weights are loaded as uint8 and widened without their sign."""
    return integer_product(codes, replace(weight, data=weight.data.view(torch.uint8)), *more)


BUGS = [
    pytest.param("linear", bug, WEIGHT_ONLY, id=bug.__name__)
    for bug in (
        swapped_nibbles,
        zero_point_off_by_one,
        last_group_dropped,
        scales_of_the_group_before,
    )
] + [
    pytest.param("linear_quantized", bug, BOTH, id=bug.__name__)
    for bug in (scales_of_another_token, sums_of_16_bits, unsigned_codes)
]


@pytest.fixture(autouse=True)
def _reference_backend() -> Iterator[None]:
    with kernels.use("torch"):
        yield


@pytest.mark.parametrize(("operation", "bug", "made"), BUGS)
def test_a_bug_in_a_kernel_shows_and_is_located(
    operation: str,
    bug: Callable[..., Tensor],
    made: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, fake = models.full(MODELS[0]), models.fake(MODELS[0], *made)
    packed = qb.pack(fake)
    ids, mask = models.canvases(lm, 4)
    assert min(models.alone(fake, packed, ids, mask).values()) >= SAME_DB
    before = profile(lm, fake, ids, mask)
    plant(packed, operation, bug, monkeypatch)
    found = models.alone(fake, packed, ids, mask)
    assert [name for name, decibel in found.items() if decibel < SAME_DB] == [LAYER]
    after = profile(lm, packed, ids, mask)
    place = locate(
        before.layer_sqnr, after.layer_sqnr, before.local_sqnr, after.local_sqnr, LEAST_DB
    )
    assert place.first == LAYER


def plant(
    packed: qb.DiffusionLM,
    operation: str,
    bug: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Have the reference backend make a mistake for one layer's weight."""
    layer = packed.model.get_submodule(LAYER)
    assert isinstance(layer, PackedLinear)
    codes, sound = layer.codes, getattr(reference, operation)

    def wrong(x: Any, weight: PackedWeight, *more: Any) -> Tensor:
        made: Tensor = (bug if weight.data is codes else sound)(x, weight, *more)
        return made

    monkeypatch.setattr(reference, operation, wrong)
