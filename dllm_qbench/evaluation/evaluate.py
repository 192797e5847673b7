"""Measure one cell: the quantized model and its full-precision self on the same items and masks.

Notable:
- lm-eval's own evaluator runs the tasks; per-item results come from its samples, for pairing;
- full precision is run once per process for each (weights, task, items, seed), and remembered; given a
  place to keep answers, each chunk of items is put there as soon as it is known, so that a run that is
  killed repeats one chunk at most, and cells that share full precision share its answers;
- a NaN or an infinity is an error that names the task and the item, never a score.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.benchmark import (
    Answers,
    Benchmark,
    traces_from_lists,
    traces_to_lists,
)
from dllm_qbench.evaluation.embedded_benchmark import EmbeddedBenchmark
from dllm_qbench.evaluation.fidelity import measure
from dllm_qbench.evaluation.probe import ITEMS
from dllm_qbench.evaluation.provenance import provenance
from dllm_qbench.evaluation.trajectory import Trace, compare_traces
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.packed import execution_of
from dllm_qbench.quant.quantize import recipe_hash
from dllm_qbench.records import Record

Progress = Callable[[int, int, str], None]
Stop = Callable[[Sequence[bool], Sequence[bool]], bool]
CHUNK = 50
"""Items between two looks at the evidence, where a cell may stop early, and between two puts."""


class Keep(Protocol):
    """Where answers are kept from one run to the next: JSON values by kind and key."""

    def compute(self, kind: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return the value that is kept under this key; made and put there where there is none."""
        ...


_references: dict[tuple[str, str, int, int, int, int | None], Answers] = {}
_reference_drafts: dict[tuple[str, str, int], list[Trace]] = {}


def evaluate(
    quantized: DiffusionLM,
    reference: DiffusionLM,
    task: str | Benchmark,
    items: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    keep: Keep | None = None,
    bring: Callable[[DiffusionLM], None] | None = None,
) -> Record:
    """Run a task on both models and return what each answered.

    Args:
        quantized: what is under test.
        reference: the same model in full precision.
        task: ``"general"``, ``"math"`` or ``"code"`` (or the lm-eval name), or any benchmark.
        items: how many, from the first; of 2,000 where the task is an embedded one.
        seed: which test items, and their masks.
        batch_size: canvases in one forward pass; by default a token budget. Answers do not depend on it.
        progress: called with (items done, items in all, label) as each model advances.
        stop: given, items are run 50 at a time, and after each 50 this is called with their right and
            wrong answers, full precision's and the quantized model's; true ends the cell there.
        keep: given, items are run 50 at a time, and what is kept there is not run again.
        bring: called with a model before it runs, where not both fit the device at once.

    Returns:
        The record of the cell. SQNR and fidelity are measured on canvases of the same task's first
        items; they do not depend on ``items``.

    Raises:
        TaskError: an unknown task, more items than there are, or a model without a tokenizer.
        NonFiniteError: a model gave a NaN or an infinity; names the task and the item.
    """
    started = time.perf_counter()
    benchmark = find_benchmark(task)
    if not 1 <= items <= benchmark.size():
        raise TaskError(
            f"task {benchmark.family!r}: items must lie in 1..{benchmark.size()}, found {items}"
        )
    recipe = dict(quantized.recipe or {})
    method, scheme = str(recipe.get("method", "none")), str(recipe.get("scheme", "W16A16"))
    cell = f"{method}/{scheme}/{benchmark.family}"
    told = partial(_items_told, progress, items)
    answering = _Answering(benchmark, seed, batch_size, keep, bring or _stay)

    def of_reference(start: int, end: int) -> Answers:
        return answering.reference(
            reference, start, end, told(f"{cell}: full precision", start, end)
        )

    def of_quantized(start: int, end: int) -> Answers:
        return answering.part(quantized, start, end, told(f"{cell}: quantized", start, end))

    expected, found = Answers(), Answers()
    if stop is None:
        chunk = CHUNK if keep is not None else items
        for start, end in _chunks(items, chunk):
            expected += of_reference(start, end)
        for start, end in _chunks(items, chunk):
            found += of_quantized(start, end)
    else:
        for start, end in _chunks(items, CHUNK):
            right, part = of_reference(start, end), of_quantized(start, end)
            expected, found = expected + right, found + part
            if stop(right.correct, part.correct):
                break
    drafts = expected.traces, found.traces
    if not expected.traces:
        drafts = answering.drafts(reference, True), answering.drafts(quantized, False)
    measured = measure(reference, quantized, benchmark.canvases(reference, seed, ITEMS))
    return Record(
        model=reference.name,
        method=method,
        scheme=scheme,
        task=benchmark.family,
        seed=seed,
        item_ids=expected.ids,
        reference_correct=expected.correct,
        quantized_correct=found.correct,
        reference_answers=expected.texts,
        quantized_answers=found.texts,
        kinds=expected.kinds,
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        provenance={**provenance(reference, seed), **benchmark.provenance, **_execution(quantized)},
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
    task: str | Benchmark,
    items: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    start: int = 0,
) -> Answers:
    """Run one model on a task through lm-eval; arguments and errors are those of :func:`evaluate`.

    ``start`` leaves out so many of the first ``items``.
    """
    return find_benchmark(task).answers(lm, start, items, seed, batch_size, progress)


def find_benchmark(task: str | Benchmark) -> Benchmark:
    """Return the benchmark of an embedded family by its name; a benchmark passes through."""
    return EmbeddedBenchmark(task) if isinstance(task, str) else task


class _Answering:
    """How the answers of one cell come about: remembered, kept, or run."""

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int | None,
        keep: Keep | None,
        bring: Callable[[DiffusionLM], None],
    ) -> None:
        self._benchmark, self._seed, self._batch_size = benchmark, seed, batch_size
        self._keep, self._bring = keep, bring

    def reference(
        self, lm: DiffusionLM, start: int, end: int, told: Callable[[int, int], None] | None
    ) -> Answers:
        """Return full precision's answers, run once in this process."""
        digest, fingerprint = self._benchmark.digest, lm.fingerprint()
        key = (fingerprint, digest, start, end, self._seed, self._batch_size)
        if key not in _references:
            _references[key] = self.part(lm, start, end, told)
        return _references[key]

    def part(
        self, lm: DiffusionLM, start: int, end: int, told: Callable[[int, int], None] | None
    ) -> Answers:
        """Return a model's answers to some items; run only if they were not kept."""

        def run() -> Answers:
            self._bring(lm)
            return answers(lm, self._benchmark, end, self._seed, self._batch_size, told, start)

        if self._keep is None:
            return run()
        key = self._key(lm, start=start, end=end)
        return Answers.from_dict(self._keep.compute("answers", key, lambda: run().to_dict()))

    def drafts(self, lm: DiffusionLM, is_reference: bool) -> tuple[Trace, ...]:
        """Return a model's drafts; full precision's are made once in this process."""
        known = (lm.fingerprint(), self._benchmark.digest, self._seed) if is_reference else None
        if known in _reference_drafts:
            return tuple(_reference_drafts[known])

        def run() -> Sequence[Trace]:
            self._bring(lm)
            return self._benchmark.drafts(lm, self._seed, ITEMS)

        if self._keep is None:
            made = tuple(run())
        else:
            key = self._key(lm, items=ITEMS)
            lists = self._keep.compute("drafts", key, lambda: traces_to_lists(run()))
            made = traces_from_lists(lists)
        if known is not None:
            _reference_drafts[known] = list(made)
        return made

    def _key(self, lm: DiffusionLM, **which: int) -> dict[str, Any]:
        """Name what answers depend on, but for code and device, which are the keeper's to add."""
        return {
            "model": lm.name,
            "weights_sha256": lm.fingerprint(),
            "recipe_sha256": recipe_hash(lm.recipe),
            "task": self._benchmark.family,
            "task_sha256": self._benchmark.digest,
            "seed": self._seed,
            "dtype": str(lm.dtype).removeprefix("torch."),
            **_execution(lm),
            **which,
        }


def _execution(lm: DiffusionLM) -> dict[str, str]:
    """Say of a model that it runs on packed weights; nothing of others, as ever."""
    execution = execution_of(lm)
    return {} if execution == "fake" else {"execution": execution}


def _chunks(items: int, chunk: int) -> Iterator[tuple[int, int]]:
    for start in range(0, items, chunk):
        yield start, min(items, start + chunk)


def _stay(_lm: DiffusionLM) -> None:
    """Leave a model where it is."""


def _items_told(
    progress: Progress | None, items: int, label: str, start: int, end: int
) -> Callable[[int, int], None] | None:
    """Report a chunk's share as items of the whole cell: a chunk may be run in any number of pieces."""
    if progress is None:
        return None
    return lambda done, total: progress(start + (end - start) * done // total, items, label)
