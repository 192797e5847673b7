"""The shipped LLaDA checkpoint: what is in the folder, and the outlier picture that its card
claims.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import dllm_qbench as qb
from dllm_qbench.evaluation.outliers import outliers
from dllm_qbench.models.embedded import train, vocabulary
from dllm_qbench.models.loading import EMBEDDED

FOLDER = EMBEDDED["llada-embedded"]
MIB = 2**20


def test_folder_holds_checkpoint_tokenizer_log_and_card_within_12_mb() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training_log.jsonl",
        "MODEL_CARD.md",
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12 * MIB
    assert {t.dtype for t in load_file(FOLDER / "model.safetensors").values()} == {torch.float16}


def test_log_tells_the_recipe_that_the_script_would_run_today() -> None:
    rows = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    assert rows[0]["recipe"] == json.loads(json.dumps(asdict(train.Recipe())))
    last = {row["stage"]: row for row in rows[1:]}
    recipe = train.Recipe()
    for name, stage in (
        ("natural", recipe.natural),
        ("settled", recipe.settled),
        ("polished", recipe.polished),
    ):
        assert last[name]["step"] == stage.steps
    # of each of the two processes; on a machine that does nothing else it is the time on the clock
    assert sum(row["cpu_seconds"] for row in last.values()) < 3600


def test_tokenizer_is_the_vocabulary(embedded_lm: qb.DiffusionLM) -> None:
    tokenizer = embedded_lm.tokenizer
    assert tokenizer is not None
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == vocabulary.words()
    assert tokenizer.mask_token_id == embedded_lm.mask_id
    assert tokenizer.eos_token_id == embedded_lm.eos_id == embedded_lm.pad_id
    assert tokenizer("tom has 3").input_ids[0] == embedded_lm.bos_id


def test_massive_outliers_sit_on_few_tokens_at_down_proj(embedded_lm: qb.DiffusionLM) -> None:
    """Token maximum over median token maximum above 20 and maximum over median above 300, in every
    layer.
    """
    table = outliers(embedded_lm, mask_ratios=(0.5,))
    down = table[table.input == "down_proj"]
    assert len(down) == 4
    assert (down["token_ratio"] > 20).all(), down
    assert (down["max_over_median"] > 300).all(), down


def test_channel_outliers_stand_at_the_inputs_behind_the_norms(embedded_lm: qb.DiffusionLM) -> None:
    table = outliers(embedded_lm, mask_ratios=(0.0, 0.5, 1.0))
    behind = table[table.input.isin(["qkv", "gate_up"])]
    assert len(behind) == 24
    # a model of this size grows 1.5 to 2.5 by itself
    assert (behind[behind.input == "qkv"]["channel_ratio"] > 4).all(), behind
    assert (behind[behind.input == "gate_up"]["channel_ratio"] > 2.5).all(), behind
    assert (behind["channel_share"] < 0.25).all(), behind


def test_training_script_writes_the_same_checkpoint_twice_and_after_an_interruption(
    tmp_path: Path,
) -> None:
    small = {"general": 4, "math": 2, "code": 2}
    whole = train.Recipe()
    recipe = replace(
        whole,
        natural=replace(whole.natural, steps=2, batch=small),
        settled=replace(whole.settled, steps=2, batch=small),
        polished=replace(whole.polished, steps=1, batch=small),
    )
    train.train(recipe, tmp_path / "a")
    once = qb.load(tmp_path / "a" / "polished").fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "polished")
    shutil.rmtree(tmp_path / "b" / "settled")
    train.train(recipe, tmp_path / "b", after="natural")
    assert qb.load(tmp_path / "b" / "polished").fingerprint() == once
    assert qb.load(tmp_path / "a" / "natural").fingerprint() != once
    train.train(recipe, tmp_path / "c")
    assert qb.load(tmp_path / "c" / "polished").fingerprint() == once
