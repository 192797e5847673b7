"""The shipped checkpoints: what is in their folders, and the outlier picture that the cards claim."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import dllm_qbench as qb
from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.outliers import outliers
from dllm_qbench.models.embedded import corpus, recipes, train, vocabulary
from dllm_qbench.models.loading import EMBEDDED

RECIPES = {"llada-embedded": recipes.LLADA, "dream-embedded": recipes.DREAM}
MODELS = pytest.mark.parametrize("model", RECIPES)
MIB = 2**20
# What the model cards say. A model of this size grows channel ratios of 1.5 to 2.5 by itself.
SPIKED_LAYERS = {"llada-embedded": 4, "dream-embedded": 1}
CHANNEL_RATIOS = {
    "llada-embedded": {"qkv": 4.0, "gate_up": 2.5},
    "dream-embedded": {"qkv": 2.5, "gate_up": 3.5},
}


@cache
def load(model: str) -> qb.DiffusionLM:
    return qb.load(model)


def test_every_embedded_model_has_a_recipe() -> None:
    assert set(RECIPES) == set(EMBEDDED)
    assert {f"{name}-embedded" for name in recipes.RECIPES} == set(RECIPES)


@MODELS
def test_folder_holds_checkpoint_tokenizer_log_and_card_within_12_mb(model: str) -> None:
    folder = EMBEDDED[model]
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training_log.jsonl",
        "MODEL_CARD.md",
    } <= names
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12 * MIB
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}


@MODELS
def test_log_tells_the_recipe_that_the_script_would_run_today(model: str) -> None:
    text = (EMBEDDED[model] / "training_log.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    recipe = RECIPES[model]
    logged, today = rows[0]["recipe"], json.loads(json.dumps(asdict(recipe)))
    if model == "llada-embedded":  # trained when there was no other: these were not yet fields
        logged |= {"architecture": "llada", "kv_heads": 4}
        logged["outliers"]["marked"] = ["<bos>", "?"]
    assert logged == today
    last = {row["stage"]: row for row in rows[1:]}
    for name, stage in (
        ("natural", recipe.natural),
        ("settled", recipe.settled),
        ("polished", recipe.polished),
    ):
        assert last[name]["step"] == stage.steps
    # of each of the two processes; on a machine that does nothing else it is the time on the clock
    assert sum(row["cpu_seconds"] for row in last.values()) < 3600


@MODELS
def test_tokenizer_is_the_vocabulary(model: str) -> None:
    embedded_lm = load(model)
    tokenizer = embedded_lm.tokenizer
    assert tokenizer is not None
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == vocabulary.words()
    assert tokenizer.mask_token_id == embedded_lm.mask_id
    assert tokenizer.eos_token_id == embedded_lm.eos_id == embedded_lm.pad_id
    assert tokenizer("tom has 3").input_ids[0] == embedded_lm.bos_id


@MODELS
def test_massive_outliers_sit_on_few_tokens_at_down_proj(model: str) -> None:
    """Maximum over median above 300 in every layer, token maximum over median token maximum above 20
    in those that the cards name.
    """
    table = outliers(load(model), mask_ratios=(0.5,))
    down = table[table.input == "down_proj"]
    assert len(down) == 4
    assert (down["token_ratio"] > 20)[: SPIKED_LAYERS[model]].all(), down
    assert (down["max_over_median"] > 300).all(), down


@MODELS
def test_channel_outliers_stand_at_the_inputs_behind_the_norms(model: str) -> None:
    table = outliers(load(model), mask_ratios=(0.0, 0.5, 1.0))
    behind = table[table.input.isin(["qkv", "gate_up"])]
    assert len(behind) == 24
    for name, least in CHANNEL_RATIOS[model].items():
        assert (behind[behind.input == name]["channel_ratio"] > least).all(), behind
    assert (behind["channel_share"] < 0.25).all(), behind


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_loss_reads_the_row_that_predicts_each_masked_token(name: str) -> None:
    """Against cross entropy on ``DiffusionLM.logits``, where row i scores token i in both."""
    recipe = replace(recipes.RECIPES[name], width=24, layers=1, hidden=32)
    model = train.new_model(recipe)
    with torch.no_grad():  # far from uniform, so that another row gives another loss
        model.lm_head.weight.mul_(20)
    length = train.answer_lengths(model)["math"]
    ids = train.draw("math", length, 6, random.Random(1), corpus.Noise())
    seen: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    loss = train.masked_loss(model, ids, length, torch.Generator().manual_seed(2))
    masked = seen[0] == train.as_lm(model).mask_id
    logits = train.as_lm(model).logits(seen[0])
    each = torch.zeros(ids.shape)
    each[masked] = cross_entropy(logits[masked], ids[masked], reduction="none")
    expected = float((each.sum(1) * length / masked.sum(1)).sum())
    assert masked[:, -length:].sum() == masked.sum() > 6
    assert float(loss.detach()) == pytest.approx(expected, rel=0.01)  # bfloat16 there


def test_training_script_writes_the_same_checkpoint_twice_and_after_an_interruption(
    tmp_path: Path,
) -> None:
    small = {"general": 4, "math": 2, "code": 2}
    whole = recipes.DREAM
    recipe = replace(
        whole,
        natural=replace(whole.natural, steps=2, batch=small),
        settled=replace(whole.settled, steps=2, batch=small),
        polished=replace(whole.polished, steps=1, batch=small),
    )
    train.train(recipe, tmp_path / "a")
    once = qb.load(tmp_path / "a" / "polished").fingerprint()
    told = (tmp_path / "a" / "training_log.jsonl").read_text()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "polished")
    shutil.rmtree(tmp_path / "b" / "settled")
    train.train(recipe, tmp_path / "b", after="natural")
    assert (tmp_path / "b" / "training_log.jsonl").read_text() == told
    other = replace(recipe, natural=replace(recipe.natural, lr=0.1))
    with pytest.raises(QBenchError, match="trained by another recipe, it differs in natural"):
        train.train(other, tmp_path / "b", after="natural")
    assert qb.load(tmp_path / "b" / "polished").fingerprint() == once
    assert qb.load(tmp_path / "a" / "natural").fingerprint() != once
    train.train(recipe, tmp_path / "c")
    assert qb.load(tmp_path / "c" / "polished").fingerprint() == once
