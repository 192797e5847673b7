"""A quantized model that is saved and loaded again is the same model, bit by bit, or an error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.checkpoint import load_quantized, save_quantized
from dllm_qbench.quant.grid import Grid, find_grid, within
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.stored_grid import store_grid
from tests.helpers.tiny import tiny_dream, tiny_llada

METHODS = ("rtn", "gptq", "awq", "smoothquant", "quarot", "duquant")
DTYPES = (torch.float32, torch.bfloat16)


@cache
def made(method: str, scheme: str, dtype: torch.dtype, dream: bool, tied: bool) -> DiffusionLM:
    name = "tie_word_embeddings" if dream else "weight_tying"
    lm = (tiny_dream if dream else tiny_llada)(dtype=dtype, **{name: tied})
    whole: Any = lm.model
    whole.model.rotary_emb = type(whole.model.rotary_emb)(lm.config)  # float32, as loading makes it
    data = None if method == "rtn" else qb.calibration(lm, sequences=16, length=12)
    return qb.quantize(lm, method, scheme, data)


def reloaded(lm: DiffusionLM, **settings: Any) -> DiffusionLM:
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "made" / "here"
        save_quantized(lm, folder)
        assert [path.name for path in folder.parent.iterdir()] == ["here"]
        return load_quantized(folder, **settings)


def bits(x: Tensor) -> bytes:
    return x.detach().contiguous().view(torch.uint8).numpy().tobytes()


schemes = st.builds(
    lambda weights, acts, group, symmetry: f"W{weights}A{acts}{group}{symmetry}",
    st.sampled_from([2, 3, 4, 5, 8, 16]),
    st.sampled_from([4, 8, 16]),
    st.sampled_from(["", "-g8", "-g20", "-g128"]),
    st.sampled_from(["", "-sym", "-asym"]),
)


@settings(max_examples=30, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    scheme=schemes,
    dtype=st.sampled_from(DTYPES),
    dream=st.booleans(),
    tied=st.booleans(),
)
def test_reloaded_model_is_the_saved_one_bit_by_bit(
    method: str, scheme: str, dtype: torch.dtype, dream: bool, tied: bool
) -> None:
    lm = made(method, scheme, dtype, dream, tied)
    again = reloaded(lm)
    ours, theirs = lm.model.state_dict(), again.model.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if bits(ours[name]) != bits(theirs[name])] == []
    assert [x.dtype for x in ours.values()] == [x.dtype for x in theirs.values()]
    ids = torch.randint(4, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    assert bits(lm.logits(ids)) == bits(again.logits(ids))
    assert again.recipe == lm.recipe
    assert (again.name, again.mask_id) == (lm.name, lm.mask_id)
    assert again.config.to_dict() == lm.config.to_dict()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method_at_its_own_scheme(method: str, dtype: torch.dtype) -> None:
    scheme = "W3A16-g20" if method in ("rtn", "gptq", "awq") else "W4A4"
    lm = made(method, scheme, dtype, True, False)
    again = reloaded(lm)
    assert again.fingerprint() == lm.fingerprint()
    layers = [m for m in again.model.modules() if isinstance(m, QuantLinear)]
    saved = [m for m in lm.model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == len(saved) == 14
    for found, expected in zip(layers, saved, strict=True):
        for field in ("scheme", "method", "symmetric", "act_clip", "in_features"):
            assert getattr(found, field) == getattr(expected, field)


@pytest.mark.parametrize("method", ["gptq", "awq", "quarot", "duquant"])
def test_audits_pass_on_a_reloaded_model(method: str) -> None:
    lm = tiny_llada()
    data = qb.calibration(lm, sequences=128, length=12)
    scheme = "W4A16-g16" if method in ("gptq", "awq") else "W4A4"
    again = reloaded(qb.quantize(lm, method, scheme, data))
    assert qb.audit(again, lm, data) == []


def test_a_shared_rotation_is_stored_and_read_once() -> None:
    again = reloaded(made("duquant", "W4A4", torch.float32, False, False))
    layer: Any = again.model.get_submodule("model.layers.0.self_attn")
    assert layer.q_proj.transform is layer.k_proj.transform is layer.v_proj.transform
    assert layer.q_proj.transform is not layer.o_proj.transform


def test_tokenizer_comes_along() -> None:
    lm = qb.load("llada-embedded")
    again = reloaded(qb.quantize(lm, "rtn", "W4A16-g64"))
    assert lm.tokenizer is not None
    assert again.tokenizer is not None
    text = lm.tokenizer.decode([10, 11, 12, 13])
    assert again.tokenizer(text).input_ids == lm.tokenizer(text).input_ids
    assert again.eos_id == lm.eos_id


def test_another_data_type_is_of_the_weights_alone() -> None:
    lm = made("smoothquant", "W4A4", torch.float32, False, False)
    again = reloaded(lm, dtype=torch.bfloat16)
    one = lm.model.get_submodule("model.layers.0.mlp.down_proj")
    other = again.model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(one, QuantLinear)
    assert isinstance(other, QuantLinear)
    assert torch.equal(other.weight, one.weight.bfloat16())
    assert one.scale is not None
    assert other.scale is not None
    assert torch.equal(other.scale, one.scale)
    assert again.logits([4, 5, 6]).isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    bits_=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([1, 7, 16, 100]),
    dtype=st.sampled_from([*DTYPES, torch.float16]),
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_stored_grid_gives_the_values_back(
    bits_: int, symmetric: bool, group: int, dtype: torch.dtype, seed: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 50, generator=generator, dtype=torch.float64) * spread
    x[1] = 0.0
    x[2] = x[2].abs()
    grid = find_grid(x, bits_, symmetric, group)
    weight = within(grid.nearest(x), dtype)
    stored = store_grid(weight, grid.scale.float(), grid.zero.float(), bits_, symmetric, grid.group)
    assert bits(stored.weight(dtype)) == bits(weight)
    assert torch.equal(stored.grid().scale.float(), grid.scale.float())
    assert torch.equal(stored.grid().zero, grid.zero)


def test_scales_in_half_precision_models_mostly_stay_narrow() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    grid = find_grid(x, 4, False, 16)
    stored = store_grid(grid.nearest(x), grid.scale.float(), grid.zero.float(), 4, False, 16)
    assert stored.scale.dtype == torch.float32
    assert stored.bytes == 8 * 32 + 8 * 4 * 4 + 8 * 4


def off_grid(layer: QuantLinear) -> None:
    layer.weight.data[1, 3] *= 1.01


def wrong_scale(layer: QuantLinear) -> None:
    assert layer.scale is not None
    layer.scale[2] *= 1.2


def half_zero(layer: QuantLinear) -> None:
    assert layer.zero is not None
    layer.zero[0, 0] = 1.5


def coarse_scale(layer: QuantLinear) -> None:
    assert layer.scale is not None
    layer.scale = layer.scale[:, :1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (off_grid, r"row 1, group 0 is on no level of its grid \(4 bits"),
        (wrong_scale, "row 2, group 0 is on no level of its grid"),
        (half_zero, "a zero point is no integer in 0..15"),
        (coarse_scale, r"expected \[32, 3\], groups of 20"),
    ],
)
def test_a_weight_that_is_not_on_its_grid_is_named(
    spoil: Callable[[QuantLinear], None], message: str, tmp_path: Path
) -> None:
    lm = made("rtn", "W4A16-g20", torch.float32, False, False).clone()
    layer = lm.model.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(layer, QuantLinear)
    spoil(layer)
    with pytest.raises(CheckpointError, match=f"^model.layers.1.mlp.down_proj: .*{message}"):
        save_quantized(lm, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []  # not even a part of it


def test_full_precision_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not quantized"):
        save_quantized(tiny_llada(), tmp_path / "made")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="already there"):
        save_quantized(made("rtn", "W4A16", torch.float32, False, False), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_was_cast_as_a_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rotary_emb: its frequencies \(torch.bfloat16\)"):
        save_quantized(qb.quantize(tiny_llada(dtype=torch.bfloat16), "rtn", "W8A8"), tmp_path / "x")


@pytest.mark.parametrize(
    ("scale", "made_with", "codes", "zero"),
    [
        (0.02822265774011612, 5e-10, [31, 12, 7, 11, 0, 12, 14, 8], 13),
        (0.014648438431322575, -3e-10, [0, 12, 14, 2, 27, 8, 31, 11], 8),
    ],
)
def test_a_half_close_to_a_midpoint_is_given_back(
    scale: float, made_with: float, codes: list[int], zero: int
) -> None:
    """A code times this scale is a bfloat16 midpoint to half a step of float32, by way of which torch
    rounds: GPTQ weights of random models.
    """
    narrow = torch.tensor([[scale]])
    zero_11 = torch.tensor([[float(zero)]]).double()
    exact = Grid(narrow.double() + made_with, zero_11, 5, False, 8)
    weight = within(exact.values(torch.tensor([codes])), torch.bfloat16)
    from_narrow = Grid(narrow.double(), zero_11, 5, False, 8).values(torch.tensor([codes]))
    assert not torch.equal(within(from_narrow, torch.bfloat16), weight)
    stored = store_grid(weight, narrow, zero_11.float(), 5, False, 8)
    assert torch.equal(stored.weight(torch.bfloat16), weight)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_quantized(made("rtn", "W4A16", torch.float32, False, False), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_source_is_checked_where_it_is_known(tmp_path: Path) -> None:
    lm = tiny_llada()
    save_quantized(qb.quantize(lm, "rtn", "W4A16"), tmp_path / "made", lm.fingerprint())
    assert load_quantized(tmp_path / "made", source=lm.fingerprint()).recipe is not None
    with pytest.raises(CheckpointError, match="field 'source'"):
        load_quantized(tmp_path / "made", source=tiny_llada(seed=1).fingerprint())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "made"
    save_quantized(made("duquant", "W4A4", torch.float32, False, False), place)
    return place


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["top.safetensors", "block-00001.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, "truncated or replaced"), (flip, "is corrupt"), (Path.unlink, "file is missing")],
)
def test_a_damaged_file_is_named(
    folder: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
        load_quantized(folder)


def first_layer(raw: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = raw["layers"]["model.layers.0.self_attn.q_proj"]
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format="another"), "field 'format' is 'another'"),
        (lambda raw: raw.pop("recipe"), "field 'recipe' must be a JSON dict"),
        (lambda raw: raw.update(name=3), "field 'name' must be a JSON str"),
        (lambda raw: raw["files"].pop("top.safetensors"), "field 'files' names 2 files"),
        (lambda raw: raw["layers"].pop("model.layers.0.mlp.up_proj"), "model.layers.0.mlp.up_proj"),
        (lambda raw: first_layer(raw).pop("scheme"), "q_proj: field 'scheme' is missing"),
        (lambda raw: first_layer(raw).update(scheme="W4A5"), "q_proj: field 'scheme': .*W4A5"),
        (lambda raw: first_layer(raw).update(inputs=31), "q_proj"),
        (lambda raw: first_layer(raw).update(dtype="int8"), "field 'dtype' is 'int8'"),
        (lambda raw: first_layer(raw).update(transform=99), "rotation 99; there are"),
        (lambda raw: first_layer(raw).update(tensors=["weight"]), "does not hold its weight"),
        (lambda raw: raw["rotations"][0].update(kind="spin"), "number 0: field 'kind' is 'spin'"),
        (lambda raw: raw["rotations"].clear(), "rotation 3; there are 0"),
        (
            lambda raw: raw["query_key_rotations"].update(nobody=0),
            "nobody is no part of this model",
        ),
    ],
)
def test_a_foreign_recipe_is_an_error_that_names_the_field(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = folder / "recipe.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_quantized(folder)


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_quantized(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"recipe\.json: file is missing"):
        load_quantized(tmp_path)


def test_state_of_the_size_is_what_the_files_hold(folder: Path) -> None:
    raw = json.loads((folder / "recipe.json").read_text())
    # W4 symmetric, one float64 or float32 scale for 32 or 48 inputs: 4 + 64/32 bits at most.
    assert 4 + 32 / 48 <= raw["bits_per_weight"] <= 4 + 64 / 32


def test_values_are_made_from_the_grid_alone() -> None:
    """The oracle: unpacked by hand from the definition of the packing."""
    weight = torch.tensor([[0.5, -1.0, 1.5, 0.0]])
    grid = Grid(torch.tensor([[0.5]]).double(), torch.tensor([[2.0]]).double(), 3, False, 4)
    stored = store_grid(weight, grid.scale.float(), grid.zero.float(), 3, False, 4)
    # codes 3, 0, 5, 2 of 3 bits each, least significant first: 3 + 0 * 8 + 5 * 64 + 2 * 512 = 1347
    assert stored.codes.tolist() == [[1347 % 256, 1347 // 256]]
