"""Bad checkpoints: every one gets an error that names file and tensor or field."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm_qbench as qb
from dllm_qbench.errors import CheckpointError, NonFiniteError, QBenchError
from dllm_qbench.models import lm as lm_module
from dllm_qbench.models import loading
from dllm_qbench.models.synthetic import write_checkpoint
from tests.helpers.official import official_tensors, write_official
from tests.helpers.tiny import tiny_config, tiny_llada

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


def test_quantized_weights_are_not_taken_for_full_precision(folder: Path) -> None:
    rewrite(folder, {DOWN: torch.zeros(32, 48, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=rf"tensor {DOWN} holds I8, expected one of F64, F32"):
        qb.load(folder)


class _Unread:
    """A file of which headers may be read, and no tensor."""

    def __init__(self, handle: Any) -> None:
        self.keys, self.get_slice = handle.keys, handle.get_slice

    def __enter__(self) -> _Unread:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (DOWN, torch.zeros(32, 47), "has shape"),
        (DOWN, torch.zeros(32, 48, dtype=torch.int8), "holds I8"),
        (DOWN, None, "missing 1"),
        ("extra", torch.zeros(1), "unexpected 1"),
    ],
)
def test_everything_is_checked_before_a_weight_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: torch.Tensor | None,
    message: str,
) -> None:
    config = tiny_config()
    tensors: dict[str, Any] = official_tensors(config) | {name: value}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    folder = write_official(tmp_path / "ck", config, kept, shards=3)
    opened = loading._open
    monkeypatch.setattr(loading, "_open", lambda path: _Unread(opened(path)))
    with pytest.raises(CheckpointError, match=message):
        qb.load(folder)
    with pytest.raises(AttributeError, match="get_tensor"):  # a good one does get that far
        qb.load(write_official(tmp_path / "good", config, official_tensors(config), shards=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_does_not_change_with_its_files(folder: Path, dtype: torch.dtype) -> None:
    before = qb.load(folder, dtype=dtype)
    expected = before.logits([1, 2, 4])
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert torch.equal(before.logits([1, 2, 4]), expected)


@pytest.mark.parametrize("architecture", ["llada", "illada", "Dream"])
def test_weights_are_converted_to_the_dtype_asked_for(tmp_path: Path, architecture: str) -> None:
    write_checkpoint(tmp_path, architecture, size="tiny", dtype=torch.float32)
    wide, narrow = qb.load(tmp_path), qb.load(tmp_path, dtype=torch.bfloat16)
    pairs = list(zip(wide.model.parameters(), narrow.model.parameters(), strict=True))
    assert all(torch.equal(w.bfloat16(), n) for w, n in pairs)
    ids = torch.arange(6, 38)
    far = (wide.logits(ids) - narrow.logits(ids)).abs().max()
    # bf16 keeps 8 bits: a few percent of logits of size 2, where a lost tensor would give 100 %
    assert 0 < far < 0.25 * wide.logits(ids).std()


def test_the_last_of_many_values_is_checked_and_counted() -> None:
    lm = tiny_llada()
    weight = torch.zeros(2, lm_module._PIECE)
    weight[0, 0] = weight[1, -1] = float("nan")
    lm.model.model.embed_tokens.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(NonFiniteError, match=r"embed_tokens.weight holds 2 non-finite value\(s\)"):
        lm.check_finite("here")


def test_fingerprint_is_sha256_of_names_dtypes_shapes_and_bytes() -> None:
    lm = tiny_llada(dtype=torch.bfloat16)
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert lm.fingerprint() == digest.hexdigest()


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
    lm = tiny_llada()
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.63, found 1\.\.64"):
        lm.logits([1, 64])
    assert lm.logits([[1, 2], [3, 4]]).shape == (2, 2, 64)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_device_that_cannot_be_used_is_named(device: str) -> None:
    with pytest.raises(QBenchError, match=f"device '{device}' cannot be used"):
        qb.load("llada-embedded", device=device)
