"""compressed-tensors' checkpoints: written and dequantized by the library, and read here.

The library's own compressors write the tensors and make weights of them again; ours must be the same
weights, and the same model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dllm_qbench as qb
from dllm_qbench.checkpoints.compressed_tensors import library
from dllm_qbench.checkpoints.reading import read_checkpoint
from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.layers import QuantLinear, target_names
from tests.helpers.published_writers import words_of
from tests.helpers.tiny import tiny_dream, tiny_llada

compressed_tensors = pytest.importorskip(
    "compressed_tensors", reason="pip install 'dllm-qbench[checkpoints]'"
)
LAYER = "model.layers.1.mlp.gate_proj"
TOKENS = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}


class Made:
    """A checkpoint as compressed-tensors writes it, and what it makes of that again."""

    def __init__(
        self,
        lm: DiffusionLM,
        kind: str,
        weights: dict[str, Any],
        inputs: dict[str, Any] | None = None,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        self.lm = lm
        args = QuantizationArgs(**weights)
        scheme = QuantizationScheme(
            targets=["Linear"],
            weights=args,
            input_activations=None if inputs is None else QuantizationArgs(**inputs),
            format=kind,
        )
        compressor = BaseCompressor.get_value_from_registry(kind)
        self.weights: dict[str, Tensor] = {}
        self.tensors = {n: p.detach().clone() for n, p in lm.model.named_parameters()}
        for name in target_names(lm.model):
            weight = self.tensors.pop(f"{name}.weight")
            grouped = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
            scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
            given = {"weight": weight, "weight_scale": scale.to(scale_dtype)}
            given["weight_zero_point"] = zero.to(torch.int8)
            made = compressor.compress(given, scheme)
            self.weights[name] = compressor.decompress(dict(made), scheme)["weight"].float()
            self.tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()}
        group = scheme.model_dump(mode="json")
        self.stated: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": kind,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "version": compressed_tensors.__version__,
        }

    def expected(self) -> DiffusionLM:
        lm = self.lm.clone()
        for name, weight in self.weights.items():
            lm.model.get_parameter(f"{name}.weight").data.copy_(weight)
        return lm

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        config = self.lm.config.to_official() | {"quantization_config": self.stated}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors")
        return folder


def packed(lm: DiffusionLM, bits: int = 4, symmetric: bool = True, group: int | None = 16) -> Made:
    strategy = "channel" if group is None else "group"
    weights = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy, "group_size": group}
    return Made(lm, "pack-quantized", weights)


def apart(found: DiffusionLM, expected: DiffusionLM) -> float:
    ids = torch.randint(4, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    return float((found.logits(ids) - expected.logits(ids)).abs().max())


def same(made: Made, folder: Path) -> DiffusionLM:
    found = read_checkpoint(made.write(folder), made.lm)
    for name, weight in made.weights.items():
        layer = found.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        assert torch.equal(layer.weight, weight), name
    assert qb.audit(found, reference=made.lm, skip=EXPENSIVE) == []
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, None])
def test_packed_weights_are_those_that_the_library_dequantizes(
    bits: int, symmetric: bool, group: int | None, tmp_path: Path
) -> None:
    made = packed(tiny_llada(), bits, symmetric, group)
    found = same(made, tmp_path)
    assert apart(found, made.expected()) <= 1e-5
    scheme = f"W{bits}A16" + ("" if group is None else "-g16")
    assert (found.recipe or {}).items() >= {"scheme": scheme, "symmetric": symmetric}.items()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_to_the_scales_type_as_the_library_does(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 16}
    made = Made(tiny_dream(), "pack-quantized", weights, scale_dtype=dtype)
    assert apart(same(made, tmp_path), made.expected()) <= 1e-5


@pytest.mark.parametrize("kind", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_those_that_the_library_dequantizes(
    kind: str, symmetric: bool, tmp_path: Path
) -> None:
    weights = {"num_bits": 8, "symmetric": symmetric, "strategy": "channel"}
    made = Made(tiny_llada(), kind, weights)
    assert apart(same(made, tmp_path), made.expected()) <= 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_are_rounded_as_the_library_does(bits: int, tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
    inputs = TOKENS | {"num_bits": bits}
    made = Made(tiny_llada(), "int-quantized", weights, inputs)
    found = same(made, tmp_path)
    assert (found.recipe or {})["scheme"] == f"W8A{bits}"
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))
    x[0, 0] = 0
    args = QuantizationArgs(**inputs)
    scale, zero = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)
    rounded = fake_quantize(x, scale, zero, args)
    layer = found.model.get_submodule(LAYER)
    assert isinstance(layer, QuantLinear)
    product = torch.nn.functional.linear(rounded, made.weights[LAYER])
    assert float((layer(x) - product).abs().max()) <= 1e-6
    assert float((torch.nn.functional.linear(x, layer.weight) - product).abs().max()) > 1e-4


def test_inputs_assigned_to_groups_freely_are_read_by_them(tmp_path: Path) -> None:
    made = packed(tiny_llada())
    generator = torch.Generator().manual_seed(5)
    for name in made.weights:
        inputs = made.weights[name].shape[1]
        moved = torch.randperm(inputs, generator=generator)
        words, shape = made.tensors[f"{name}.weight_packed"], made.weights[name].shape
        codes = library().unpack_from_int32(words, 4, shape)
        back = moved.argsort()
        made.tensors[f"{name}.weight_packed"] = library().pack_to_int32(codes[:, back], 4)
        made.tensors[f"{name}.weight_g_idx"] = (torch.arange(inputs) // 16)[back].int()
        made.weights[name] = made.weights[name][:, back]
    found = read_checkpoint(made.write(tmp_path), made.lm)
    assert apart(found, made.expected()) <= 1e-5
    assert qb.audit(found, reference=made.lm, skip=EXPENSIVE) == []
    for name in made.weights:
        made.tensors[f"{name}.weight_g_idx"][:] = -1  # declared, and never set
    ignored = read_checkpoint(made.write(tmp_path), made.lm)
    assert apart(ignored, made.expected()) > 0.1


@pytest.mark.parametrize("bits", [3, 5])
def test_codes_that_no_word_shares_with_the_next_are_read(bits: int, tmp_path: Path) -> None:
    """compressed-tensors wrote so before version 0.18."""
    made = packed(tiny_llada(), bits, symmetric=False)
    for name, weight in made.weights.items():
        outputs, inputs = weight.shape

        def loose(words: Tensor, rows: int, count: int) -> Tensor:
            signed = library().unpack_from_int32(words, bits, torch.Size((rows, count)))
            codes = signed.to(torch.int32) + 2 ** (bits - 1)
            pieces = [words_of(piece, bits) for piece in codes.split(32 // bits, dim=1)]
            return torch.cat(pieces, dim=1)

        part = f"{name}.weight_packed"
        made.tensors[part] = loose(made.tensors[part], outputs, inputs)
        part = f"{name}.weight_zero_point"
        made.tensors[part] = loose(made.tensors[part].T, inputs // 16, outputs).T
    made.stated["version"] = "0.15.0.1"
    same(made, tmp_path)


def test_zero_points_of_older_files_are_bytes(tmp_path: Path) -> None:
    made = packed(tiny_llada(), symmetric=False)
    for name, weight in made.weights.items():
        shape = torch.Size((weight.shape[0], weight.shape[1] // 16))
        zero = made.tensors[f"{name}.weight_zero_point"]
        plain = library().unpack_from_int32(zero, 4, shape, packed_dim=0)
        made.tensors[f"{name}.weight_zero_point"] = plain
    same(made, tmp_path)


@pytest.mark.parametrize(
    "nest",
    [
        lambda stated: {"compression_config": stated},
        lambda stated: {"compression_config": {"quantization_config": stated}},
        lambda stated: {"text_config": {"quantization_config": stated}},
    ],
)
def test_a_configuration_further_in_is_found(
    nest: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    made = packed(tiny_llada())
    path = made.write(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    stated = config.pop("quantization_config")
    path.write_text(json.dumps(config | nest(stated)))
    assert apart(read_checkpoint(tmp_path, made.lm), made.expected()) <= 1e-5


def test_a_zero_point_off_by_one_moves_logits(tmp_path: Path) -> None:
    made = packed(tiny_llada(), 8, symmetric=False)
    for name, weight in made.weights.items():
        shape = torch.Size((weight.shape[0], weight.shape[1] // 16))
        zero = made.tensors[f"{name}.weight_zero_point"]
        plain = library().unpack_from_int32(zero, 8, shape, packed_dim=0)
        made.tensors[f"{name}.weight_zero_point"] = (plain - 1).clamp(-128)
    found = read_checkpoint(made.write(tmp_path), made.lm)
    assert apart(found, made.expected()) > 0.01


def test_a_layer_left_unquantized_and_another_scheme_are_named(tmp_path: Path) -> None:
    made = packed(tiny_llada())
    for part in ("weight_packed", "weight_scale", "weight_shape"):
        del made.tensors[f"{LAYER}.{part}"]
    made.tensors[f"{LAYER}.weight"] = made.lm.model.get_parameter(f"{LAYER}.weight").clone()
    made.stated["ignore"].append(LAYER)
    other = packed(made.lm, bits=8)
    name = "model.layers.0.self_attn.q_proj"
    for part in ("weight_packed", "weight_scale", "weight_shape"):
        made.tensors[f"{name}.{part}"] = other.tensors[f"{name}.{part}"]
    own = other.stated["config_groups"]["group_0"] | {"targets": ["re:.*layers.0.self_attn.q.*"]}
    made.stated["config_groups"] = {"first": own, **made.stated["config_groups"]}
    found = read_checkpoint(made.write(tmp_path), made.lm)
    said = [str(f) for f in qb.audit(found, reference=made.lm, skip=EXPENSIVE)]
    assert any(text.startswith(f"coverage: {LAYER}: is Linear, not quantized") for text in said)
    assert any(text.startswith(f"coverage: {name}: is quantized under W8A16-g16") for text in said)


def group_of(made: Made) -> dict[str, Any]:
    group: dict[str, Any] = made.stated["config_groups"]["group_0"]
    return group


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.stated.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme' is"),
        (
            lambda m: m.stated.update(transform_config={"config_groups": {"R1": {}}}),
            "transform_con",
        ),
        (lambda m: m.stated.update(sparsity_config={"format": "sparse-24"}), "sparse-24"),
        (lambda m: m.stated.update(config_groups={}), "config_groups' is missing or empty"),
        (lambda m: group_of(m).update(format="marlin-24"), "group_0.format' is 'marlin-24'"),
        (lambda m: group_of(m)["weights"].update(type="float"), "weights.type' is 'float'"),
        (lambda m: group_of(m)["weights"].update(strategy="block"), "strategy' is 'block'"),
        (lambda m: group_of(m)["weights"].update(num_bits=9), "num_bits' is 9"),
        (
            lambda m: group_of(m)["weights"].update(group_size=32),
            r"expected \[32, 1\].*strategy 'group'",
        ),
        (lambda m: group_of(m).update(targets=["re:.*mlp.*"]), "and no target of .*config_groups"),
        (lambda m: group_of(m).update(targets=["re:*"]), "targets': 're:[*]' is no pattern"),
        (lambda m: group_of(m).update(output_activations=TOKENS), "output_activations' is"),
        (
            lambda m: group_of(m).update(input_activations=TOKENS | {"dynamic": False}),
            "dynamic' is F",
        ),
        (
            lambda m: group_of(m).update(input_activations=TOKENS | {"strategy": "tensor"}),
            "'tensor'",
        ),
        (lambda m: group_of(m).update(input_activations=TOKENS | {"symmetric": False}), "is false"),
    ],
)
def test_what_is_not_supported_is_named(
    change: Callable[[Made], Any], said: str, tmp_path: Path
) -> None:
    made = packed(tiny_llada())
    change(made)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(made.write(tmp_path), made.lm)
    assert str(tmp_path) in str(caught.value)


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    made = packed(tiny_llada())
    folder = made.write(tmp_path)

    def refused(part: str, change: Callable[[Tensor], Tensor], said: str) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"model.safetensors: tensor {LAYER}.{said}"):
            read_checkpoint(folder, made.lm)
        made.write(tmp_path)

    refused(
        "weight_packed", lambda t: t[:, :-1], "weight_packed has .* expected .48, 4. for 32 codes"
    )
    refused("weight_packed", lambda t: t.long(), "weight_packed holds torch.int64")
    refused("weight_shape", lambda t: t.flip(0), "weight_shape says")
    refused("weight_scale", lambda t: t[:-1], "weight_scale has shape")


def test_without_the_library_its_name_and_the_command_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packing = "compressed_tensors.compressors.pack_quantized.helpers"
    monkeypatch.setitem(sys.modules, packing, None)
    with pytest.raises(QBenchError, match=r"pip install 'dllm-qbench\[checkpoints\]'"):
        library()
