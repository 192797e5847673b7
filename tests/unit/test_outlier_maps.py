"""Outlier maps: what a rotation and what joining neighbours must keep, and what is said of broken files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dllm_qbench as qb
from dllm_qbench.errors import NonFiniteError, QBenchError
from dllm_qbench.evaluation.outliers import canvases, each_input, outliers
from dllm_qbench.report.outlier_maps import OutlierMap, outlier_maps, read_maps, write_maps
from tests.helpers.rotated import IDS, data, massive_llada

DOWN = "model.layers.1.mlp.down_proj"
O_PROJ = "model.layers.0.self_attn.o_proj"


def maps(**given: Any) -> tuple[OutlierMap, ...]:
    """Maps of a small random model with massive values, rotated by QuaRot."""
    lm = massive_llada()
    asked = {"ids": IDS, "tokens": IDS.numel(), "channels": 64, "calibration": data(lm)}
    return outlier_maps(lm, **{**asked, **given})


def test_rotation_keeps_every_tokens_norm() -> None:
    """Of QuaRot's, which folds nothing but rotations in front of these two inputs."""
    found = maps(inputs=[O_PROJ, DOWN])
    for before, after in (found[:2], found[2:]):
        assert (before.module, before.rotated_by) == (after.module, None)
        assert after.rotated_by == "quarot"
        norms = [np.linalg.norm(np.array(one.magnitudes), axis=1) for one in (before, after)]
        assert np.allclose(*norms, rtol=1e-4)  # five digits are kept of each value
        assert not np.allclose(*(np.array(one.magnitudes) for one in (before, after)), rtol=0.1)


@pytest.mark.parametrize("method", ["quarot", "duquant"])
def test_after_is_what_the_layer_makes_of_what_was_there_before(method: str) -> None:
    lm = massive_llada()
    turned = qb.quantize(lm, method, "W16A16", data(lm))
    rows = canvases(lm, IDS, 0.5, 0)
    read: dict[str, list[torch.Tensor]] = {O_PROJ: [], DOWN: []}
    each_input(lm, rows, lambda name, x: read[name].append(x), frozenset(read))
    found = maps(inputs=[*read], rotated=turned)
    for before, after in (found[:2], found[2:]):
        layer: Any = turned.model.get_submodule(before.module)
        x_ND = torch.cat(read[before.module])
        y_ND = layer.turned(layer.from_reference(x_ND))
        for one, expected in ((before, x_ND), (after, y_ND)):
            size = expected.abs().numpy()
            assert np.allclose(one.magnitudes, size, rtol=1e-3, atol=1e-4 * size.max())


def test_joining_neighbours_keeps_every_block_s_maximum() -> None:
    whole, _ = maps(inputs=[DOWN])
    tokens, channels = 7, 5
    joined, _ = maps(inputs=[DOWN], tokens=tokens, channels=channels)
    size = np.array(whole.magnitudes)
    assert size.shape == (whole.tokens, whole.channels) == (IDS.numel(), 48)
    edges = [
        [n * at // most for at in range(most + 1)]
        for n, most in zip(size.shape, (tokens, channels), strict=True)
    ]
    expected = [
        [
            size[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]].max()
            for j in range(channels)
        ]
        for i in range(tokens)
    ]
    assert np.array(joined.magnitudes).tolist() == expected
    told = ("maximum", "max_over_rms", "kurtosis", "tokens", "channels")
    assert [getattr(joined, name) for name in told] == [getattr(whole, name) for name in told]
    assert max(map(max, joined.magnitudes)) == joined.maximum


def test_the_same_question_has_the_same_answer_and_another_seed_another() -> None:
    assert maps(mask_ratio=0.5) == maps(mask_ratio=0.5)
    assert maps(mask_ratio=0.5) != maps(mask_ratio=0.5, seed=1)


def test_inputs_are_chosen_by_the_ratios_that_outliers_measures() -> None:
    found = maps()
    assert [(one.kind, one.rotated_by) for one in found] == [
        ("massive", None), ("massive", "quarot"), ("normal", None), ("normal", "quarot"),
    ]  # fmt: skip
    table = outliers(massive_llada(), IDS, mask_ratios=(0.5,))
    massive = table.loc[table["token_ratio"].idxmax()]
    assert massive["input"] == "down_proj"
    assert found[0].module == f"model.layers.{massive['layer']}.mlp.down_proj"
    assert found[0].max_over_rms == pytest.approx(massive["max_over_rms"], rel=1e-4)
    others = table[table["input"] != "down_proj"]
    normal = others.loc[others["channel_ratio"].idxmax()]
    leaf = {"qkv": "self_attn.q_proj", "gate_up": "mlp.gate_proj", "o_proj": "self_attn.o_proj"}
    assert found[2].module == f"model.layers.{normal['layer']}.{leaf[normal['input']]}"


def test_a_rotated_model_that_is_there_is_taken() -> None:
    lm = massive_llada()
    rotated = qb.quantize(lm, "quarot", "W4A4", data(lm), weights="rtn")
    before, after = maps(inputs=[DOWN], rotated=rotated)
    assert after.rotated_by == "quarot"
    # what comes before is rounded to 4 bits: near the exact rotation's, and not it
    _, exact = maps(inputs=[DOWN])
    norms = [np.linalg.norm(np.array(one.magnitudes), axis=1) for one in (exact, after)]
    assert not np.allclose(*norms, rtol=1e-3)
    assert np.corrcoef(*norms)[0, 1] > 0.7  # measured: 0.84
    assert before == maps(inputs=[DOWN])[0]


@pytest.mark.parametrize("model", ["llada-embedded", "dream-embedded"])
def test_rotation_flattens_what_the_paper_says_it_does(model: str) -> None:
    found = outlier_maps(qb.load(model))
    before, after, channels, channels_after = found
    assert before.module.endswith("mlp.down_proj")
    assert before.kind == "massive"
    assert not channels.module.endswith("mlp.down_proj")
    # measured: 48 to 4.2 and 59 to 4.9; 8.1 to 4.4 and 16 to 3.8
    assert before.max_over_rms > 5 * after.max_over_rms
    assert channels.max_over_rms > 1.5 * channels_after.max_over_rms
    assert after.kurtosis < before.kurtosis / 10
    for one in found:
        assert (one.tokens, len(one.magnitudes)) == (96, 96)
        assert one.maximum == max(map(max, one.magnitudes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": ["model.layers.1.mlp.down"]}, "has no linear 'model.layers.1.mlp.down' in its"),
        ({"inputs": ["lm_head"]}, "has no linear 'lm_head' in its blocks; like it: model.layers"),
        (
            {"method": "rtn", "inputs": [DOWN]},
            "rtn rotates nothing at model.layers.1.mlp.down_proj",
        ),
        ({"method": "smoothquant", "inputs": [DOWN]}, "methods that do: quarot, duquant"),
        ({"method": "turn"}, "method 'turn' is unknown"),
    ],
)
def test_what_cannot_be_mapped_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(QBenchError, match=message):
        maps(**given)


def test_a_quantized_model_and_senseless_sizes_are_refused() -> None:
    lm = massive_llada()
    with pytest.raises(QBenchError, match="is quantized; give the full-precision model"):
        outlier_maps(qb.quantize(lm, "rtn", "W4A16"), ids=IDS)
    with pytest.raises(ValueError, match="maps of 0 tokens by 256 channels: at least 1 of each"):
        outlier_maps(lm, ids=IDS, tokens=0)
    with pytest.raises(ValueError, match="no tokenizer; give canvases as ids"):
        outlier_maps(lm)


# --- files -------------------------------------------------------------------------------------

SMALL = OutlierMap(
    "tiny", DOWN, "massive", None, 4, 3, ((1.0, 0.5, 0.25), (0.0, 2.0, 1.0)), 2.0, 1.5, 3.1
)


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    found = maps()
    for written in (found, (SMALL,), ()):
        write_maps(written, tmp_path / "maps.json")
        assert read_maps(tmp_path / "maps.json") == written
    first = (tmp_path / "maps.json").read_bytes()
    write_maps((), tmp_path / "maps.json")
    assert (tmp_path / "maps.json").read_bytes() == first


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda one: one.pop(name)


def setting(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda one: one.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("kurtosis"), "field 'kurtosis' is missing"),
        (setting(color="red"), "unknown field 'color'"),
        (setting(kind="big"), "field 'kind' is 'big', expected massive or normal"),
        (setting(model=""), "field 'model' is '', expected text"),
        (setting(rotated_by=3), "field 'rotated_by' is 3, expected text or null"),
        (setting(tokens=True), "field 'tokens' is True, expected an integer above 0"),
        (setting(channels=2), "field 'channels' is 2, but magnitudes shows 3"),
        (setting(max_over_rms=-1.0), "field 'max_over_rms' is -1.0, expected a number, at least 0"),
        (setting(maximum=3.0), "field 'maximum' is 3.0, but the largest of magnitudes is 2.0"),
        (setting(magnitudes=[]), r"field 'magnitudes' is \[\], expected a list of rows"),
        (
            setting(magnitudes=[[1.0], [2.0, 1.0]]),
            r"field 'magnitudes'\[1\] has 2 channels, row 0 has 1",
        ),
        (
            setting(magnitudes=[[1.0, -2.0]]),
            r"field 'magnitudes'\[0\]: expected numbers, none of them",
        ),
        (setting(magnitudes=[["1"]]), r"field 'magnitudes'\[0\]: expected numbers"),
    ],
)
def test_a_broken_map_is_named_by_file_and_field(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    one = copy.deepcopy(SMALL.to_dict())
    change(one)
    path = tmp_path / "maps.json"
    path.write_text(json.dumps({"outlier_maps_version": 1, "maps": [SMALL.to_dict(), one]}))
    with pytest.raises(QBenchError, match=rf"maps\.json: maps\[1\]: {message}"):
        read_maps(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "field 'outlier_maps_version' is missing: no file of outlier maps"),
        ('{"outlier_maps_version": 2, "maps": []}', "is 2, expected 1: make the maps anew"),
        ('{"outlier_maps_version": 1}', "field 'maps' is missing, or no list"),
        ('{"outlier_maps_version": 1, "maps": [3]}', r"maps\[0\]: expected an object, found int"),
        ("[", "not JSON at line 1"),
    ],
)
def test_a_file_of_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "maps.json"
    path.write_text(text)
    with pytest.raises(QBenchError, match=message):
        read_maps(path)
    with pytest.raises(QBenchError, match=r"nothing\.json: cannot be read"):
        read_maps(tmp_path / "nothing.json")


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maps.json"
    data = SMALL.to_dict() | {"kurtosis": float("nan")}
    path.write_text(json.dumps({"outlier_maps_version": 1, "maps": [data]}))
    with pytest.raises(NonFiniteError, match=r"maps\.json: maps\[0\]\['kurtosis'\] is nan"):
        read_maps(path)
