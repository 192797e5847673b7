"""Measure one cell: the quantized model and its full-precision self on the same items and masks.

Notable:
- lm-eval's own evaluator runs the tasks; per-item results come from its samples, for pairing;
- full precision is run once per process for each (weights, task, items, seed), and remembered;
- a NaN or an infinity is an error that names the task and the item, never a score.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import lm_eval.api.task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks import TaskManager

from dllm_qbench import tasks
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.adapter import DiffusionAdapter
from dllm_qbench.evaluation.fidelity import measure
from dllm_qbench.evaluation.probe import ITEMS, canvases
from dllm_qbench.evaluation.provenance import provenance
from dllm_qbench.evaluation.trajectory import Trace, compare_traces, draft
from dllm_qbench.models.embedded.items import test_items
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.quantize import recipe_hash
from dllm_qbench.records import Record
from dllm_qbench.tasks.embedded.scoring import winners

Progress = Callable[[int, int, str], None]
Stop = Callable[[Sequence[bool], Sequence[bool]], bool]
CHUNK = 50
"""Items between two looks at the evidence, where a cell may stop early."""


@dataclass(frozen=True)
class Answers:
    """One model's answers to one task: one entry per item in each tuple, in the task's order.

    ``traces`` holds what each denoising step committed; it is empty where nothing is generated.
    ``scores`` holds the true choice's log-likelihood in nats, whose last bits depend on the batch: they
    play no part where answers are compared. It is empty where there are no choices.
    """

    ids: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()
    texts: tuple[str, ...] = ()
    traces: tuple[Trace, ...] = ()
    scores: tuple[float, ...] = field(default=(), compare=False)

    def __add__(self, more: Answers) -> Answers:
        """These items' answers, then those of ``more``."""
        names = [entry.name for entry in fields(self)]
        return Answers(*(getattr(self, name) + getattr(more, name) for name in names))


_references: dict[tuple[str, str, int, int, int, int | None], Answers] = {}
_reference_drafts: dict[tuple[str, str, int], list[Trace]] = {}


def evaluate(
    quantized: DiffusionLM,
    reference: DiffusionLM,
    task: str,
    items: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Record:
    """Run a task on both models and return what each answered.

    Args:
        quantized: what is under test.
        reference: the same model in full precision.
        task: ``"general"``, ``"math"`` or ``"code"`` (or the lm-eval name).
        items: how many, from the first; of 2,000.
        seed: which test items, and their masks.
        batch_size: canvases in one forward pass; by default a token budget. Answers do not depend on it.
        progress: called with (done, total, label) as each model advances.
        stop: given, items are run 50 at a time, and after each 50 this is called with their right and
            wrong answers, full precision's and the quantized model's; true ends the cell there.

    Returns:
        The record of the cell. SQNR and fidelity are measured on canvases of the same task's first
        items; they do not depend on ``items``.

    Raises:
        TaskError: an unknown task, more items than there are, or a model without a tokenizer.
        NonFiniteError: a model gave a NaN or an infinity; names the task and the item.
    """
    started = time.perf_counter()
    spec = tasks.find(task)
    test_items(spec.family, items, seed)  # too many items are an error now, not in the last chunk
    recipe = dict(quantized.recipe or {})
    method, scheme = str(recipe.get("method", "none")), str(recipe.get("scheme", "W16A16"))
    cell = f"{method}/{scheme}/{spec.family}"
    told = partial(_labelled, progress)
    expected, found = Answers(), Answers()
    for start in range(0, items, CHUNK if stop else items):
        end = min(items, start + CHUNK) if stop else items
        key = (reference.fingerprint(), spec.name, start, end, seed, batch_size)
        if key not in _references:
            label = told(f"{cell}: full precision")
            _references[key] = answers(reference, task, end, seed, batch_size, label, start)
        label = told(f"{cell}: quantized")
        part = answers(quantized, task, end, seed, batch_size, label, start)
        expected, found = expected + _references[key], found + part
        if stop is not None and stop(_references[key].correct, part.correct):
            break
    measured = measure(reference, quantized, canvases(reference, spec.family, seed))
    drafts = expected.traces, found.traces
    if not expected.traces:
        key_of_drafts = (reference.fingerprint(), spec.family, seed)
        if key_of_drafts not in _reference_drafts:
            _reference_drafts[key_of_drafts] = draft(reference, spec.family, seed)
        drafts = tuple(_reference_drafts[key_of_drafts]), tuple(draft(quantized, spec.family, seed))
    return Record(
        model=reference.name,
        method=method,
        scheme=scheme,
        task=spec.family,
        seed=seed,
        item_ids=expected.ids,
        reference_correct=expected.correct,
        quantized_correct=found.correct,
        reference_answers=expected.texts,
        quantized_answers=found.texts,
        kinds=expected.kinds,
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        provenance=provenance(reference, seed),
        layer_sqnr=measured.layer_sqnr,
        local_sqnr=measured.local_sqnr,
        fidelity={
            **measured.metrics,
            "reference_scores": [round(score, 6) for score in expected.scores[:ITEMS]],
        },
        trajectory=compare_traces(*drafts),
        seconds=time.perf_counter() - started,
    )


def answers(
    lm: DiffusionLM,
    task: str,
    items: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    start: int = 0,
) -> Answers:
    """Run one model on a task through lm-eval; arguments and errors are those of :func:`evaluate`.

    ``start`` leaves out so many of the first ``items``.
    """
    spec = tasks.find(task)
    with _quiet():
        manager = TaskManager(
            include_path=str(tasks.FOLDER),
            include_defaults=False,
            metadata={"items": items, "seed": seed, "start": start},
        )
        loaded = manager.load(spec.name)
        metadata: Mapping[str, Any] = loaded["tasks"][spec.name].config.metadata
        masks = _samples(spec.name, metadata, str(lm.config.model_type))
        adapter = DiffusionAdapter(lm, masks, seed, batch_size=batch_size, progress=progress)
        results = lm_eval_evaluate(adapter, loaded, bootstrap_iters=0, confirm_run_unsafe_code=True)
    samples = sorted(results["samples"][spec.name], key=lambda sample: int(sample["doc_id"]))
    return Answers(
        ids=tuple(str(sample["doc"]["id"]) for sample in samples),
        kinds=tuple(str(sample["doc"]["kind"]) for sample in samples),
        correct=tuple(bool(sample[spec.metric]) for sample in samples),
        texts=tuple(_answer(sample) for sample in samples),
        traces=tuple(adapter.traces[str(sample["doc"]["id"])] for sample in samples)
        if adapter.traces
        else (),
        scores=tuple(
            float(sample["filtered_resps"][sample["doc"]["gold"]][0])
            for sample in samples
            if sample["doc"].get("choices") is not None
        ),
    )


def _samples(task: str, metadata: Mapping[str, Any], architecture: str) -> int:
    """Return the masks per scored target that a task asks for: one number, or one by architecture."""
    given = metadata.get("samples", 1)
    if not isinstance(given, Mapping):
        return int(given)
    if architecture not in given:
        raise TaskError(
            f"task {task}: metadata.samples has {', '.join(given)}, nothing for {architecture!r}:"
            " add the masks per target for it"
        )
    return int(given[architecture])


def _answer(sample: Mapping[str, Any]) -> str:
    """Return what the model answered: the chosen text (all of them in a tie), or what it generated."""
    choices = sample["doc"].get("choices")
    if choices is None:
        return str(sample["resps"][0][0])
    best = winners([value for value, _ in sample["filtered_resps"]])
    return " | ".join(choices[index] for index in best)


def _labelled(progress: Progress | None, label: str) -> Callable[[int, int], None] | None:
    return None if progress is None else partial(_report, progress, label)


def _report(progress: Progress, label: str, done: int, total: int) -> None:
    progress(done, total, label)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notices and its progress bar (it has no switch) out of a test run's output."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda documents, **_: documents
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
