"""Train an embedded model: ``python -m dllm_qbench.models.embedded.train --model NAME --out FOLDER``.

Notable:
- three stages in one run: a natural model; then the outliers are put in (``outliers.py``) and
  training goes on; then less noisy text, to settle what the noise left open;
- steps, not seconds, so that the same seed on the same machine and torch gives the same file;
- two processes with one thread each (gloo): faster here than one process with two threads;
- loss: exactly l masked answer tokens, l uniform on 1..G and stratified over the batch, each item
  weighted G/l (the low-variance form of LLaDA's 1/t; Nie et al. 2025, eq. 14), normalised by the
  answer tokens in the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm_qbench.errors import QBenchError
from dllm_qbench.models import dream, llada, loading
from dllm_qbench.models.embedded import corpus, items, outliers, vocabulary
from dllm_qbench.models.embedded.recipes import RECIPES, Mix, Recipe, Stage
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.progress import Progress, StreamScreen
from dllm_qbench.seeding import derive

RANKS = 2
_LONGEST = 32  # tokens of the longest canvas
_IDS = {word: index for index, word in enumerate(vocabulary.words())}
Model = llada.LladaForMaskedDiffusion | dream.DreamForMaskedDiffusion


def new_model(recipe: Recipe) -> Model:
    """Build the untrained model: normal(0, 0.05) weights, residual writers scaled down by depth,
    norms 1 and biases 0.
    """
    special = {
        f"{name}_token_id": _IDS[word]
        for name, word in (
            ("mask", vocabulary.MASK),
            ("eos", vocabulary.EOS),
            ("pad", vocabulary.EOS),
            ("bos", vocabulary.BOS),
        )
    }
    model: Model
    if recipe.architecture == "Dream":
        model = dream.DreamForMaskedDiffusion(
            dream.DreamConfig.from_official(
                {
                    "hidden_size": recipe.width,
                    "num_hidden_layers": recipe.layers,
                    "num_attention_heads": recipe.heads,
                    "num_key_value_heads": recipe.kv_heads,
                    "intermediate_size": recipe.hidden,
                    "vocab_size": len(_IDS),
                    "max_position_embeddings": 64,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 1000000.0,
                    "tie_word_embeddings": False,
                    **special,
                }
            )
        )
    else:
        model = llada.LladaForMaskedDiffusion(
            llada.LladaConfig.from_official(
                {
                    "d_model": recipe.width,
                    "n_layers": recipe.layers,
                    "n_heads": recipe.heads,
                    "n_kv_heads": recipe.kv_heads,
                    "mlp_hidden_size": recipe.hidden,
                    "vocab_size": len(_IDS),
                    "max_sequence_length": 64,
                    "rms_norm_eps": 1e-5,
                    "rope_theta": 500000.0,
                    "weight_tying": False,
                    **special,
                }
            )
        )
    generator = torch.Generator().manual_seed(derive(recipe.seed, "weights"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                scale = (
                    (2 * recipe.layers) ** -0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                parameter.normal_(0.0, 0.05 * scale, generator=generator)
    return model


def canvas(length: int, prompt: str, answer: str) -> list[int]:
    """Return the ids of ``<bos> prompt answer <eos>...``, the answer padded to ``length``."""
    reply = [_IDS[word] for word in answer.split()]
    reply += [_IDS[vocabulary.EOS]] * (length - len(reply))
    return [_IDS[vocabulary.BOS], *(_IDS[word] for word in prompt.split()), *reply]


def draw(
    family: str,
    length: int,
    count: int,
    rng: random.Random,
    noise: corpus.Noise,
    mix: Mix = items.KINDS,
) -> Tensor:
    """Draw ``count`` training canvases ``[count, T]`` of one family, answers ``length`` long."""
    texts = [corpus.text(family, rng, noise, mix) for _ in range(count)]
    return torch.tensor([canvas(length, *text) for text in texts])


def masked_loss(model: Model, ids_BT: Tensor, answer: int, rng: torch.Generator) -> Tensor:
    """Return the summed, weighted cross entropy of one family's batch (nats times tokens)."""
    B, T = ids_BT.shape
    strata = (torch.arange(B) + torch.rand(B, generator=rng)) / B
    count_B = 1 + (strata * answer).long().clamp(max=answer - 1)
    rank_BG = torch.rand(B, answer, generator=rng).argsort(dim=1).argsort(dim=1)
    masked_BT = torch.zeros(B, T, dtype=torch.bool)
    masked_BT[:, -answer:] = rank_BG < count_B[:, None]
    noisy_BT = ids_BT.masked_fill(masked_BT, int(model.config.mask_token_id))
    # The fused CPU attention's backward pass is slow on short rows; plain matrix products take a
    # third off a step.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        hidden = model.model(input_ids=noisy_BT).last_hidden_state[_predicting(model, masked_BT)]
        logits = model.lm_head(hidden)
    each = F.cross_entropy(logits.float(), ids_BT[masked_BT], reduction="none")
    weight_BT = (answer / count_B)[:, None].expand(B, T)
    return (each * weight_BT[masked_BT]).sum()


def _predicting(model: Model, masked_BT: Tensor) -> Tensor:
    """Return which rows predict the masked tokens: the ones before them where logits are shifted."""
    return masked_BT.roll(-1, 1) if getattr(model, "shifted_logits", False) else masked_BT


def answer_lengths(model: Model) -> dict[str, int]:
    """Return the answer's tokens in a canvas of each family."""
    closed = bool(getattr(model, "closed_targets", False))
    return {family: items.answer_length(family, closed) for family in items.FAMILIES}


def run_stage(
    model: Model,
    stage: Stage,
    rank: int,
    seed: int,
    label: str,
    log: Any,
    told: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place; gradients are averaged over the ranks. ``told`` gets the steps done."""
    decay = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=stage.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    parameters = decay + plain
    texts = random.Random(derive(seed, label, "texts", rank))
    masks = torch.Generator().manual_seed(derive(seed, label, "masks", rank))
    answer = answer_lengths(model)
    tokens = sum(count * answer[family] for family, count in stage.batch.items())
    model.train()
    start, start_cpu = time.monotonic(), time.process_time()
    recent = dict.fromkeys(stage.batch, 0.0)
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        for family, count in stage.batch.items():
            ids_BT = draw(family, answer[family], count, texts, stage.noise, stage.mix)
            loss = masked_loss(model, ids_BT, answer[family], masks)
            (loss / tokens).backward()
            recent[family] += loss.item() / (count * answer[family])
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= RANKS
        flat *= (1.0 / (flat.norm() + 1e-6)).clamp(max=1.0)
        at = 0
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        told(step + 1)
        if (step + 1) % 100 == 0:
            log({"stage": label, "step": step + 1, "seconds": round(time.monotonic() - start, 1),
                 "cpu_seconds": round(time.process_time() - start_cpu, 1), "lr": round(stage.rate(step), 6),
                 "loss": {k: round(v / 100, 4) for k, v in recent.items()}})  # fmt: skip
            recent = dict.fromkeys(recent, 0.0)
    model.train(False)


def put_outliers(model: Model, recipe: Recipe) -> None:
    """Insert the outliers, measured on 256 canvases of each family with half of the answer
    masked.
    """
    rng = random.Random(derive(recipe.seed, "outlier texts"))
    rows = []
    for family, answer in answer_lengths(model).items():
        ids_BT = draw(family, answer, 256, rng, corpus.Noise(0, 0, 0))
        generator = torch.Generator().manual_seed(derive(recipe.seed, "outlier masks", family))
        hidden = torch.rand(ids_BT.shape, generator=generator) < 0.5
        hidden[:, :-answer] = False
        rows.append(
            F.pad(
                ids_BT.masked_fill(hidden, _IDS[vocabulary.MASK]),
                (0, _LONGEST - ids_BT.shape[1]),
                value=_IDS[vocabulary.EOS],
            )
        )
    marked = [_IDS[word] for word in recipe.outliers.marked]
    outliers.insert(
        model, torch.cat(rows), marked, recipe.outliers, derive(recipe.seed, "outliers")
    )


def as_lm(model: Model) -> DiffusionLM:
    """Wrap a model with the tokenizer, to save or to try it."""
    name = f"{model.config.model_type.lower()}-embedded"
    return DiffusionLM(model, vocabulary.tokenizer(), _IDS[vocabulary.MASK], name)


# Each stage starts from the file that the one before wrote, so that a run can be taken up again.
_LOG = "training_log.jsonl"
_WRITTEN = {"natural": torch.float32, "settled": torch.float16, "polished": torch.float16}


def _header(recipe: Recipe) -> dict[str, Any]:
    """Return the log's first row."""
    return {"recipe": json.loads(json.dumps(asdict(recipe))), "torch": torch.__version__}


def _finished(path: Path, recipe: Recipe, after: str) -> list[dict[str, Any]]:
    """Return the log's rows up to the stage ``after``, under the recipe that goes on from there.

    Raises:
        QBenchError: the stages that are there were trained by another recipe.
    """
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    stages = list(_WRITTEN)
    header, ahead = _header(recipe), stages[stages.index(after) + 1 :]
    if "settled" in ahead:
        ahead.append("outliers")
    fixed = [field for field in header["recipe"] if field not in ahead]
    differing = [f for f in fixed if rows[0]["recipe"].get(f) != header["recipe"][f]]
    if differing:
        raise QBenchError(
            f"{path}: what is there was trained by another recipe, it differs in"
            f" {', '.join(differing)}: train without --after, or with the recipe of the log"
        )
    return [header, *(row for row in rows[1:] if row["stage"] not in ahead)]


def _own_core(rank: int) -> None:
    """Keep to one core: beside other work, both ranks would end up on the same one, in turns."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= RANKS:
            os.sched_setaffinity(0, {cores[rank]})


def _worker(
    rank: int, recipe: Recipe, out: Path, after: str | None, port: int, verbosity: int | None
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    _own_core(rank)
    torch.use_deterministic_algorithms(True)
    path = out / _LOG
    records = _finished(path, recipe, after) if after else []

    def log(record: dict[str, Any]) -> None:
        if rank == 0:
            records.append(record)
            if verbosity is None or verbosity > 0:
                print(json.dumps(record), flush=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")

    stages = list(_WRITTEN)
    if after is None:
        log(_header(recipe))
        model = new_model(recipe)
    else:
        loaded = loading.load(out / after).model.requires_grad_(True)
        assert isinstance(loaded, Model)
        model = loaded
        for parameter in model.parameters():
            # Out of the mapped file: kernels sum in another order where memory is not aligned.
            parameter.data = parameter.data.clone()
        stages = stages[stages.index(after) + 1 :]
    shown = Progress(StreamScreen(verbosity or 0))
    total, done = sum(getattr(recipe, stage).steps for stage in stages), 0
    for stage in stages:
        if stage == "settled":
            put_outliers(model, recipe)

        def told(step: int, stage: str = stage, done: int = done) -> None:
            if rank == 0 and verbosity is not None:
                shown(done + step, total, f"training, stage {stage}")

        run_stage(model, getattr(recipe, stage), rank, recipe.seed, stage, log, told)
        done += getattr(recipe, stage).steps
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(_WRITTEN[stage]))
        if rank == 0:
            loading.save(as_lm(model), out / stage, _WRITTEN[stage])
    shown.close()
    dist.destroy_process_group()


def train(
    recipe: Recipe, out: Path, after: str | None = None, verbosity: int | None = None
) -> None:
    """Train; each stage writes a checkpoint of its name below ``out``, ``polished`` is the one to ship.

    Args:
        recipe: what to train.
        out: folder; ``training_log.jsonl`` in it gets the recipe and every 100th step's loss.
        after: the last stage that is already there.
        verbosity: ``None`` prints the log's rows as they come; a number shows progress on the standard error
            instead, and from 1 on the rows too.

    Raises:
        QBenchError: what is there was trained by another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    if after is not None:
        _finished(out / _LOG, recipe, after)  # an error here is readable, one in a worker is not
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, args=(recipe, out, after, port, verbosity), nprocs=RANKS, join=True)  # type: ignore[attr-defined, no-untyped-call]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Train an embedded checkpoint (54 minutes of each of 2 cores)."
    )
    parser.add_argument("--model", choices=list(RECIPES), default="llada")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--after", choices=list(_WRITTEN)[:-1], help="stage to take up a run after")
    arguments = parser.parse_args()
    train(replace(RECIPES[arguments.model], seed=arguments.seed), arguments.out, arguments.after)


if __name__ == "__main__":
    main()
