"""GPTQ and AWQ checkpoints, written bit by bit, read back as what they stand for; faults are caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm_qbench as qb
from dllm_qbench.checkpoints import awq as awq_format
from dllm_qbench.checkpoints.reading import read_checkpoint
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.layers import QuantLinear
from tests.helpers.published_writers import Written, awq, gptq
from tests.helpers.tiny import tiny_dream, tiny_llada

LAYER = "model.layers.1.mlp.gate_proj"
SIZES = {"mlp_hidden_size": 64}


def llada() -> DiffusionLM:
    return tiny_llada(**SIZES)


def apart(found: DiffusionLM, expected: DiffusionLM) -> float:
    """Largest difference of logits."""
    ids = torch.randint(4, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    return float((found.logits(ids) - expected.logits(ids)).abs().max())


def audits(quantized: DiffusionLM, reference: DiffusionLM) -> list[str]:
    return [str(f) for f in qb.audit(quantized, reference=reference, skip=EXPENSIVE)]


def same(written: Written, folder: Path, **how: Any) -> DiffusionLM:
    """Write, read, and compare with what the codes stand for."""
    found = read_checkpoint(written.write(folder, **how), written.lm)
    expected = written.expected()
    for name, drawn in written.drawn.items():
        layer = found.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        weight = layer.weight if layer.transform is None else layer.transform.inverse(layer.weight)
        assert torch.equal(weight, drawn.weight), name
    assert apart(found, expected) <= 1e-5
    assert apart(written.lm, expected) > 0.1
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [None, "gptq_v2"])
def test_gptq_weights_are_what_codes_scales_and_zero_points_stand_for(
    bits: int, symmetric: bool, version: str | None, tmp_path: Path
) -> None:
    lm = llada()
    found = same(gptq(lm, bits, symmetric=symmetric, version=version), tmp_path)
    assert (found.recipe or {})["scheme"] == f"W{bits}A16-g16"
    assert (found.recipe or {})["symmetric"] is symmetric
    assert audits(found, lm) == []


@pytest.mark.parametrize("bits", [3, 4])
def test_act_order_reads_each_input_with_its_own_groups_scale(bits: int, tmp_path: Path) -> None:
    lm = llada()
    found = same(gptq(lm, bits, act_order=True), tmp_path)
    assert audits(found, lm) == []
    layer = found.model.get_submodule(LAYER)
    assert isinstance(layer, QuantLinear)
    assert layer.transform is not None


def test_one_group_is_a_whole_channel(tmp_path: Path) -> None:
    written = gptq(llada(), group=1024)
    written.stated["group_size"] = -1
    found = same(written, tmp_path)
    assert (found.recipe or {})["scheme"] == "W4A16"
    assert audits(found, written.lm) == []


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_weights_are_what_interleaved_codes_stand_for(symmetric: bool, tmp_path: Path) -> None:
    lm = llada()
    found = same(awq(lm, symmetric=symmetric), tmp_path)
    assert (found.recipe or {})["method"] == "awq-file"
    assert audits(found, lm) == []


def test_awq_without_zero_points_is_symmetric(tmp_path: Path) -> None:
    written = awq(llada(), symmetric=True)
    written.tensors = {n: t for n, t in written.tensors.items() if not n.endswith("qzeros")}
    same(written, tmp_path)


@pytest.mark.parametrize("made", [gptq, awq])
@pytest.mark.parametrize("shards", [1, 3])
def test_dreams_names_and_biases_are_read(
    made: Callable[[DiffusionLM], Written], shards: int, tmp_path: Path
) -> None:
    same(made(tiny_dream(intermediate_size=64)), tmp_path, shards=shards)


@pytest.mark.parametrize(
    ("official", "shards", "stated_in"),
    [
        (True, 2, "quantize_config.json"),
        (False, 1, "quant_config.json"),
        (False, 3, "config.json"),
    ],
)
def test_both_spellings_shards_and_places_of_the_configuration_are_read(
    official: bool, shards: int, stated_in: str, tmp_path: Path
) -> None:
    same(gptq(llada()), tmp_path, official=official, shards=shards, stated_in=stated_in)


def test_older_files_without_a_method_are_known_by_their_fields(tmp_path: Path) -> None:
    by_auto_awq = awq(llada())
    by_auto_awq.stated = {"w_bit": 4, "q_group_size": 16, "zero_point": True, "version": "GEMM"}
    same(by_auto_awq, tmp_path / "awq", stated_in="quant_config.json")
    by_auto_gptq = gptq(llada())
    del by_auto_gptq.stated["quant_method"]
    same(by_auto_gptq, tmp_path / "gptq", stated_in="quantize_config.json")


def test_a_layers_own_rule_comes_before_the_whole_models(tmp_path: Path) -> None:
    written = gptq(llada(), bits=4)
    other = gptq(written.lm, bits=8)
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        written.tensors[f"{LAYER}.{part}"] = other.tensors[f"{LAYER}.{part}"]
    written.drawn[LAYER] = other.drawn[LAYER]
    written.stated["dynamic"] = {r"+:.*\.1\.mlp\.gate_proj": {"bits": 8}}
    found = same(written, tmp_path, official=False)
    assert [text for text in audits(found, written.lm) if LAYER in text and "W8A16" in text]


def test_a_single_file_of_any_name_is_read_and_a_pickled_one_is_not(tmp_path: Path) -> None:
    written = gptq(llada())
    folder = written.write(tmp_path)
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-16g.safetensors")
    assert apart(read_checkpoint(folder, written.lm), written.expected()) <= 1e-5
    (folder / "gptq_model-4bit-16g.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickled"):
        read_checkpoint(folder, written.lm)


# --- planted faults -----------------------------------------------------------------------------


def test_zero_points_off_by_one_are_named_on_a_symmetric_checkpoint(tmp_path: Path) -> None:
    written = gptq(llada(), symmetric=True, version="gptq_v2")
    written.stated["checkpoint_format"] = "gptq"  # version 1 stores them less one
    found = read_checkpoint(written.write(tmp_path), written.lm)
    said = audits(found, written.lm)
    assert any("q_proj: its grid is asymmetric; expected symmetric" in text for text in said)


def test_zero_points_off_by_one_move_logits_on_an_asymmetric_checkpoint(tmp_path: Path) -> None:
    written = gptq(llada(), symmetric=False, version="gptq_v2")
    written.stated["checkpoint_format"] = "gptq"
    found = read_checkpoint(written.write(tmp_path), written.lm)
    assert apart(found, written.expected()) > 0.1


def test_ignoring_groups_moves_logits(tmp_path: Path) -> None:
    written = gptq(llada(), act_order=True)
    written.stated["desc_act"] = False
    for name in written.drawn:
        del written.tensors[f"{name}.g_idx"]
    found = read_checkpoint(written.write(tmp_path), written.lm)
    assert apart(found, written.expected()) > 0.1


def test_ignoring_awqs_order_moves_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = awq(llada())
    monkeypatch.setattr(awq_format, "PLACES", tuple(range(8)))
    found = read_checkpoint(written.write(tmp_path), written.lm)
    assert apart(found, written.expected()) > 0.1


@pytest.mark.parametrize("made", [gptq, awq])
def test_a_layer_left_unquantized_is_named(
    made: Callable[[DiffusionLM], Written], tmp_path: Path
) -> None:
    written = made(llada())
    written.leave(LAYER)
    found = read_checkpoint(written.write(tmp_path), written.lm)
    assert apart(found, written.expected()) <= 1e-5
    said = audits(found, written.lm)
    assert any(text.startswith(f"coverage: {LAYER}: is Linear, not quantized") for text in said)


# --- what cannot be read ------------------------------------------------------------------------


def stated(written: Written, **fields: Any) -> Written:
    written.stated |= fields
    return written


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            lambda lm: stated(gptq(lm), bits=5),
            r"config\.json: field 'quantization_config\.bits' is 5",
        ),
        (
            lambda lm: stated(gptq(lm), checkpoint_format="marlin"),
            r"checkpoint_format' is 'marlin'",
        ),
        (lambda lm: stated(gptq(lm), is_marlin_format=True), r"is_marlin_format' is True"),
        (lambda lm: stated(gptq(lm), group_size=0), r"group_size' is 0"),
        (lambda lm: stated(gptq(lm), group_size="16"), r"group_size' is '16'; expected a JSON int"),
        (lambda lm: stated(gptq(lm), quant_method="fp8"), r"quant_method' is 'fp8'; read are"),
        (
            lambda lm: stated(gptq(lm), group_size=32),
            r"qzeros has shape \[2, 4\], expected \[1, 4\]",
        ),
        (lambda lm: stated(gptq(lm), bits=8), r"qweight has shape \[4, 32\], expected \[8, 32\]"),
        (lambda lm: stated(awq(lm), version="gemv"), r"version' is 'gemv'; read is 'gemm'"),
        (lambda lm: stated(awq(lm), bits=8), r"bits' is 8; AWQ's gemm layout has 4"),
        (
            lambda lm: stated(gptq(lm), dynamic={"-:.*gate_proj": {}}),
            r"dynamic': '-:\.\*gate_proj'",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    written: Callable[[DiffusionLM], Written], said: str, tmp_path: Path
) -> None:
    lm = llada()
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(written(lm).write(tmp_path), lm)


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


def test_missing_misplaced_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    lm = llada()

    def refused(name: str, change: Callable[[dict[str, torch.Tensor]], Any], said: str) -> None:
        folder = changed(gptq(lm, act_order=True).write(tmp_path / name, official=False), change)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(folder, lm)

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.scales"] = tensors[f"{LAYER}.scales"].double()

    def regroup(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.g_idx"][0] = 9

    def ungroup(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.g_idx"][:] = 0

    def embed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    def bias(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.bias"] = torch.ones(64)

    refused("nine", bias, f"{LAYER}.bias is not zero")
    refused("one", lambda t: t.pop(f"{LAYER}.scales"), f"{LAYER}.scales is missing")
    refused("two", lambda t: t.pop(f"{LAYER}.g_idx"), "g_idx is missing, and .*desc_act' is true")
    refused("three", retype, "scales holds torch.float64, expected torch.float16")
    refused("four", regroup, r"g_idx names groups 0\.\.9; there are 2")
    refused("five", ungroup, "g_idx: it assigns 32 inputs to groups 0..0")
    refused("six", embed, "is not the reference's")
    refused("seven", lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing")
    refused("eight", lambda t: t.update(other=torch.zeros(1)), "belongs to no part of this model")


def test_a_bias_of_zeros_where_there_is_none_is_no_bias(tmp_path: Path) -> None:
    written = gptq(llada())
    written.tensors[f"{LAYER}.bias"] = torch.zeros(64)
    same(written, tmp_path)


def test_truncated_files_wrong_indexes_and_other_models_are_named(tmp_path: Path) -> None:
    lm = llada()
    folder = gptq(lm).write(tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        read_checkpoint(folder, lm)
    folder = gptq(lm).write(tmp_path / "index", shards=2)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    name = next(iter(data["weight_map"]))
    data["weight_map"][name] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="but it is not there"):
        read_checkpoint(folder, lm)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="file is missing"):
        read_checkpoint(folder, lm)
    with pytest.raises(
        CheckpointError, match=r"field 'rms_norm_eps' is 1e-05; the reference has 0\.1"
    ):
        read_checkpoint(gptq(lm).write(tmp_path / "eps"), tiny_llada(rms_norm_eps=0.1, **SIZES))
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere", lm)
    bare = gptq(lm)
    bare.stated = {}
    with pytest.raises(CheckpointError, match="nothing says how the checkpoint is quantized"):
        read_checkpoint(bare.write(tmp_path / "bare"), lm)
