"""Released models: what is said of them, and where their weights are looked for."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import dllm_qbench as qb
from dllm_qbench.diffusion import by_model
from dllm_qbench.errors import CheckpointError
from dllm_qbench.models.hub import (
    EMBEDDED,
    MODELS,
    PAPER_MODELS,
    MissingWeights,
    ModelSpec,
    download_command,
    find_model,
    locate,
)
from dllm_qbench.models.synthetic import official_config, parameter_shapes, write_checkpoint
from tests.helpers.tiny import tiny_dream, tiny_llada

BASE = MODELS["llada-8b-base"]
EVERY_MODEL = pytest.mark.parametrize("spec", MODELS.values(), ids=list(MODELS))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hf-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def stand_in(folder: Path, model: str = "llada-8b-base", **fields: Any) -> Path:
    return write_checkpoint(folder, model, size="tiny", shards=2, **fields)


def snapshot(cache: Path, spec: ModelSpec, revision: str | None = None) -> Path:
    """Where the cache keeps a revision: models--owner--name/snapshots/commit."""
    owner, name = spec.hub_id.split("/")
    return cache / f"models--{owner}--{name}" / "snapshots" / (revision or spec.revision)


@EVERY_MODEL
def test_every_revision_is_a_pinned_commit(spec: ModelSpec) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", spec.revision)


@EVERY_MODEL
def test_sizes_and_bytes_are_those_of_the_official_format(spec: ModelSpec) -> None:
    config = official_config(spec)
    assert spec.is_real(config)
    assert sum(map(prod, parameter_shapes(config).values())) * 2 == spec.bytes


def test_models_are_found_by_name_and_by_hub_id() -> None:
    for name, spec in MODELS.items():
        assert (
            find_model(name) is find_model(spec.hub_id) is find_model(spec.hub_id.lower()) is spec
        )
    assert find_model("llada") is find_model("llada-embedded") is None
    assert set(PAPER_MODELS) < set(MODELS)


@EVERY_MODEL
def test_sampler_settings_are_ones_that_the_sampler_takes(spec: ModelSpec) -> None:
    lm = tiny_dream() if spec.architecture == "Dream" else tiny_llada()
    for each in (spec, spec.as_in_paper()):
        settings: dict[str, Any] = dict(each.generation)
        if each.forbidden_ids or each.unconfident_ids:
            settings |= {"forbidden_ids": (1,), "unconfident_ids": (2,)}
        (row,) = by_model.generate(lm, [[5, 6]], 4, 2, 4, **settings)
        assert len(row) == 6


def test_the_paper_runs_llada_instruct_without_template_and_suppression() -> None:
    release = MODELS["llada-8b-instruct"]
    assert (release.chat, release.unconfident_ids) == (True, (126081, 126348))
    paper = release.as_in_paper()
    assert (paper.chat, paper.forbidden_ids, paper.unconfident_ids) == (False, (), ())
    assert (paper.name, paper.revision) == (release.name, release.revision)
    assert BASE.as_in_paper() == BASE


@pytest.mark.parametrize("place", ["llada-8b-base", "LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Base"])
@pytest.mark.parametrize("name", ["llada-8b-base", "GSAI-ML/LLaDA-8B-Base"])
def test_models_dir_is_searched_under_three_names(tmp_path: Path, place: str, name: str) -> None:
    folder = stand_in(tmp_path / "models" / place)
    assert locate(name, tmp_path / "models") == folder
    assert qb.load(name, models_dir=tmp_path / "models").name == "llada-8b-base"


def test_embedded_names_and_folders_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in EMBEDDED.items():
        assert locate(name, tmp_path) == folder
    mine = stand_in(tmp_path / "mine")
    assert locate(mine) == locate(str(mine), tmp_path) == mine
    assert qb.load(mine).name == "mine"
    stand_in(tmp_path / "GSAI-ML" / "LLaDA-8B-Base")
    monkeypatch.chdir(tmp_path)
    assert locate("GSAI-ML/LLaDA-8B-Base") == Path("GSAI-ML/LLaDA-8B-Base")
    with pytest.raises(
        CheckpointError, match=r"nowhere: no such checkpoint folder.*llada-embedded.*llada-1\.5"
    ):
        locate("nowhere")


@EVERY_MODEL
def test_missing_weights_say_where_they_were_looked_for_and_how_to_get_them(
    spec: ModelSpec, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(MissingWeights) as caught:
        locate(spec.name, tmp_path / "models")
    text = str(caught.value)
    last = spec.hub_id.split("/")[1]
    for part in (
        f"{spec.name}: the weights of {spec.hub_id} are not on this machine",
        f"{tmp_path / 'models' / spec.name} (no such folder)",
        f"{snapshot(cache, spec)}: no such folder",
        f"Download them ({spec.bytes / 1e9:.1f} GB)",
        f"hf download {spec.hub_id} --revision {spec.revision} --local-dir {tmp_path / 'models' / last}",
    ):
        assert part in text
    with pytest.raises(MissingWeights) as caught:
        qb.load(spec.hub_id)
    assert str(caught.value).endswith(f"hf download {spec.hub_id} --revision {spec.revision}")


def test_the_download_goes_where_the_search_looks(tmp_path: Path) -> None:
    models = tmp_path / "my models"
    for spec in MODELS.values():
        command = shlex.split(download_command(spec, models))
        assert command[:3] == ["hf", "download", spec.hub_id]
        target = Path(command[-1])
        stand_in(target, spec.name)
        assert locate(spec.name, models) == target


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("config.json", "config.json"),
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model.safetensors.index.json", "model.safetensors or model.safetensors.index.json"),
    ],
)
def test_an_incomplete_folder_is_named_with_what_it_lacks(
    tmp_path: Path, lost: str, named: str
) -> None:
    folder = stand_in(tmp_path / "llada-8b-base")
    (folder / lost).unlink()
    with pytest.raises(MissingWeights, match=re.escape(f"{folder} (incomplete: {named})")):
        locate("llada-8b-base", tmp_path)


def test_a_complete_folder_is_taken_after_an_incomplete_one(tmp_path: Path) -> None:
    (tmp_path / "llada-8b-base").mkdir()
    folder = stand_in(tmp_path / "LLaDA-8B-Base")
    assert locate("llada-8b-base", tmp_path) == folder


def test_another_architecture_is_not_taken_for_the_model(tmp_path: Path) -> None:
    stand_in(tmp_path / "llada-8b-base", "dream-7b-base")
    with pytest.raises(
        CheckpointError,
        match=r"this is not GSAI-ML/LLaDA-8B-Base: model_type 'Dream', expected 'llada'",
    ):
        locate("llada-8b-base", tmp_path)


def test_a_stand_in_is_found_but_is_not_the_real_model(tmp_path: Path) -> None:
    folder = locate("llada-8b-base", stand_in(tmp_path / "llada-8b-base").parent)
    raw = json.loads((folder / "config.json").read_text())
    for config in (raw, qb.load(folder).config):
        assert not BASE.is_real(config)
        assert "d_model 128, expected 4096" in BASE.differences(config)
        assert "its weights are random (seed 0)" in BASE.differences(config)


def test_random_weights_of_the_real_size_are_not_the_real_model() -> None:
    raw = official_config(BASE, synthetic="seed 7")
    assert BASE.differences(raw) == ["its weights are random (seed 7)"]
    assert BASE.is_real(official_config(BASE))
    assert not MODELS["dream-7b-base"].is_real(official_config(BASE))


def test_the_cache_is_searched_at_the_pinned_revision(cache: Path) -> None:
    folder = snapshot(cache, BASE)
    stand_in(folder)
    with pytest.raises(
        CheckpointError, match=r"this is not GSAI-ML/LLaDA-8B-Base: d_model 128, expected 4096"
    ):
        locate("llada-8b-base")
    # A config of the real sizes is all that is looked at here; the weights are checked when they are loaded.
    (folder / "config.json").write_text(json.dumps(official_config(BASE)))
    assert locate("llada-8b-base") == folder
    # the library that fills the cache looks in the same place
    theirs = snapshot_download(
        BASE.hub_id, revision=BASE.revision, cache_dir=cache, local_files_only=True
    )
    assert Path(theirs) == folder
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"incomplete: model-00001-of-00002\.safetensors"):
        locate("llada-8b-base")


def test_another_revision_in_the_cache_is_mentioned_but_not_taken(cache: Path) -> None:
    stand_in(snapshot(cache, BASE, "f" * 40))
    with pytest.raises(
        MissingWeights, match=f"it holds other revisions \\({'f' * 40}\\), give the folder"
    ):
        locate("llada-8b-base")


def test_suppressed_tokens_are_translated_for_a_stand_in() -> None:
    spec = MODELS["llada-1.5"]
    numbers = {"<|endoftext|>": 7, "<|eot_id|>": 9}
    tokenizer = SimpleNamespace(get_vocab=lambda: numbers)
    small = SimpleNamespace(config=official_config(spec, "tiny"), tokenizer=tokenizer, name="small")
    real = SimpleNamespace(config=official_config(spec), tokenizer=tokenizer, name="real")
    assert spec.fitted_to(small).unconfident_ids == (7, 9)
    assert spec.fitted_to(real) == spec
    del numbers["<|eot_id|>"]
    with pytest.raises(CheckpointError, match=r"small: its tokenizer has no '<\|eot_id\|>'"):
        spec.fitted_to(small)
    assert BASE.fitted_to(small) is BASE


def test_looking_for_models_needs_no_torch() -> None:
    program = "import sys; import dllm_qbench.models.hub; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
