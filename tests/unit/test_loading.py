"""Bad checkpoints: every one gets an error that names file and tensor or field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError, NonFiniteError, QBenchError
from tests.helpers.official import official_tensors, write_official
from tests.helpers.tiny import tiny_config

DOWN = "model.transformer.blocks.1.ff_out.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config()
    return write_official(tmp_path / "ck", config, official_tensors(config))


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)


def test_missing_folder_lists_the_embedded_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint folder.*llada-embedded"):
        qb.load(tmp_path / "nowhere")


def test_folder_without_tokenizer_loads(folder: Path) -> None:
    lm = qb.load(folder)
    assert lm.tokenizer is None
    assert lm.mask_id == 3
    assert lm.logits(torch.tensor([[1, 2, 3]])).shape == (1, 3, 64)


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_safetensors_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not a readable safetensors file"
    ):
        qb.load(folder)


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    rewrite(folder, {DOWN: None, "model.transformer.extra": torch.zeros(2)})
    with pytest.raises(
        CheckpointError, match=rf"missing 1: {DOWN}; unexpected 1: model.transformer.extra"
    ):
        qb.load(folder)


def test_tied_head_may_repeat_the_embedding_but_not_differ_from_it(tmp_path: Path) -> None:
    config = tiny_config(weight_tying=True)
    tensors = official_tensors(config)
    plain = qb.load(write_official(tmp_path / "plain", config, tensors))
    head = "model.transformer.ff_out.weight"
    tensors[head] = tensors["model.transformer.wte.weight"].clone()
    again = qb.load(write_official(tmp_path / "again", config, tensors))
    assert torch.equal(plain.logits([1, 2, 3]), again.logits([1, 2, 3]))
    tensors[head][0, 0] += 1
    with pytest.raises(CheckpointError, match=f"unexpected 1: {head}"):
        qb.load(write_official(tmp_path / "other", config, tensors))


def test_wrong_shape_is_named(folder: Path) -> None:
    rewrite(folder, {DOWN: torch.zeros(32, 47)})
    with pytest.raises(
        CheckpointError,
        match=rf"tensor {DOWN} has shape \[32, 47\], the config asks for \[32, 48\]",
    ):
        qb.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weight_is_named(folder: Path, value: float) -> None:
    weight = torch.zeros(32, 48)
    weight[3, 5] = value
    rewrite(folder, {DOWN: weight})
    with pytest.raises(
        NonFiniteError, match=r"model.layers.1.mlp.down_proj.weight holds 1 non-finite"
    ):
        qb.load(folder)


def test_config_problems_are_named(folder: Path) -> None:
    path = folder / "config.json"
    text = path.read_text()
    for broken, message in [
        (text[:-5], "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps(json.loads(text) | {"model_type": "gpt2"}), "field 'model_type' is 'gpt2'"),
    ]:
        path.write_text(broken)
        with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
            qb.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: file is missing"):
        qb.load(folder)


def test_index_that_lies_is_named(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_official(tmp_path / "ck", config, official_tensors(config), shards=2)
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"][DOWN] = next(
        f for f in set(value["weight_map"].values()) if f != value["weight_map"][DOWN]
    )
    index.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=f"says that {DOWN} is in"):
        qb.load(folder)
    value["weight_map"][DOWN] = "../outside.safetensors"
    index.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="must name files inside the folder"):
        qb.load(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    value["weight_map"][DOWN] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(value))
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors: file is missing"
    ):
        qb.load(folder)


def test_ids_are_checked() -> None:
    from tests.helpers.tiny import tiny_llada

    lm = tiny_llada()
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.63, found 1\.\.64"):
        lm.logits([1, 64])
    assert lm.logits([[1, 2], [3, 4]]).shape == (2, 2, 64)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_device_that_cannot_be_used_is_named(device: str) -> None:
    with pytest.raises(QBenchError, match=f"device '{device}' cannot be used"):
        qb.load("llada-embedded", device=device)
