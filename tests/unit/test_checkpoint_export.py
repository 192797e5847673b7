"""What we export is our weight to compressed-tensors itself, and our model to who reads it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.checkpoints.export import export_compressed_tensors
from dllm_qbench.checkpoints.reading import read_checkpoint
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import ARCHITECTURES
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.layer_error import local_errors
from dllm_qbench.quant.layers import QuantLinear
from tests.helpers.tiny import tiny_dream, tiny_llada

pytest.importorskip("compressed_tensors", reason="pip install 'dllm-qbench[checkpoints]'")
LAYER = "model.layers.1.mlp.gate_proj"


def quantized(lm: DiffusionLM, method: str, scheme: str) -> DiffusionLM:
    data = None if method == "rtn" else qb.calibration(lm, sequences=16, length=12)
    return qb.quantize(lm, method, scheme, data)


def dequantized_by_the_library(folder: Path, lm: DiffusionLM) -> dict[str, Tensor]:
    """Return every linear's weight as compressed-tensors' own compressor makes it of the files."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(stated).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for official, ours in ARCHITECTURES[lm.config.model_type].names(lm.config).items():
        module = official.rpartition(".")[0]
        parts = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{module}.")}
        if "weight_scale" in parts and ours.endswith(".weight"):
            weights[ours] = compressor.decompress(parts, scheme)["weight"]
    return weights


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        ("rtn", "W4A16-g16"),
        ("rtn", "W3A16-asym"),
        ("gptq", "W4A16-g16-asym"),
        ("awq", "W4A16-g16"),
        ("rtn", "W8A8"),
        ("smoothquant", "W8A8"),
        ("rtn", "W4A4"),
    ],
)
@pytest.mark.parametrize("made", [tiny_llada, tiny_dream])
def test_the_library_dequantizes_our_weights_and_we_read_our_model(
    made: Any, method: str, scheme: str, tmp_path: Path
) -> None:
    lm = made()
    ours = quantized(lm, method, scheme)
    export_compressed_tensors(ours, tmp_path / "out")
    weights = dequantized_by_the_library(tmp_path / "out", lm)
    layers = {n: m for n, m in ours.model.named_modules() if isinstance(m, QuantLinear)}
    assert set(weights) == {f"{name}.weight" for name in layers}
    for name, layer in layers.items():
        found, wanted = weights[f"{name}.weight"], layer.weight
        # Ours were rounded with float64 scales: a unit in the last place.
        assert bool(((found - wanted).abs() <= 2.0**-23 * wanted.abs()).all()), name
    again = read_checkpoint(tmp_path / "out", lm)
    ids = torch.randint(4, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    apart = float((again.logits(ids) - ours.logits(ids)).abs().max())
    # 3e-6 where this was written; a last place may take an activation over a tie elsewhere.
    assert apart <= (1e-4 if "A16" in scheme else 0.02)
    assert float((lm.logits(ids) - ours.logits(ids)).abs().max()) > 2e-2
    assert qb.audit(again, reference=lm, skip=EXPENSIVE) == []
    assert (again.recipe or {})["method"] == "ct-file"


def test_half_precision_weights_are_ours_after_rounding(tmp_path: Path) -> None:
    lm = tiny_llada(dtype=torch.bfloat16)
    whole: Any = lm.model
    whole.model.rotary_emb = type(whole.model.rotary_emb)(lm.config)
    ours = quantized(lm, "rtn", "W4A16-g16")
    export_compressed_tensors(ours, tmp_path / "out")
    for name, weight in dequantized_by_the_library(tmp_path / "out", lm).items():
        layer: Any = ours.model.get_submodule(name.rpartition(".")[0])
        assert torch.equal(weight.to(torch.bfloat16), layer.weight)


@pytest.mark.parametrize("name", ["llada-embedded", "dream-embedded"])
def test_what_smoothquant_moved_is_found_again(name: str, tmp_path: Path) -> None:
    lm = qb.load(name)
    ids = torch.randint(4, 282, (4, 40), generator=torch.Generator().manual_seed(1))
    data = qb.calibration(lm, sequences=16, length=24)
    ours = qb.quantize(lm, "smoothquant", "W8A16", data)  # 8 bits: what moved shows, not rounding
    export_compressed_tensors(ours, tmp_path / "out")
    again = read_checkpoint(tmp_path / "out", lm)
    wanted, found = local_errors(lm, ours, ids), local_errors(lm, again, ids)
    assert max(abs(wanted[layer] - found[layer]) for layer in wanted) < 1.0
    for module in again.model.modules():
        if isinstance(module, QuantLinear):
            module.input_scale = module.output_scale = None
    unfollowed = local_errors(lm, again, ids)
    assert max(wanted[layer] - unfollowed[layer] for layer in wanted) > 20


def test_where_nothing_was_moved_nothing_is_found(tmp_path: Path) -> None:
    lm = qb.load("llada-embedded")
    for scheme in ("W2A16", "W4A16-g64"):
        export_compressed_tensors(qb.quantize(lm, "rtn", scheme), tmp_path / scheme)
        again = read_checkpoint(tmp_path / scheme, lm)
        layers = [m for m in again.model.modules() if isinstance(m, QuantLinear)]
        assert all(m.input_scale is None and m.output_scale is None for m in layers)


@pytest.mark.parametrize(
    ("method", "scheme", "said"),
    [
        ("quarot", "W8A8", "rotated as the model runs"),
        ("duquant", "W8A8", "a transform of its inputs"),
        ("rtn", "W4A16-g20", "32 inputs are no whole groups of 20"),
        ("rtn", "W16A16", "weights of 16 bits"),
    ],
)
def test_what_the_format_cannot_say_is_named(
    method: str, scheme: str, said: str, tmp_path: Path
) -> None:
    ours = quantized(tiny_llada(), method, scheme)
    with pytest.raises(CheckpointError, match=said) as caught:
        export_compressed_tensors(ours, tmp_path / "out")
    assert "model.layers.0." in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_full_precision_and_folders_that_hold_something_are_refused(tmp_path: Path) -> None:
    lm = tiny_llada()
    with pytest.raises(CheckpointError, match="is not quantized"):
        export_compressed_tensors(lm, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="already there"):
        export_compressed_tensors(quantized(lm, "rtn", "W4A16"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
