"""The embedded models' three families as benchmarks: items made in memory, run by lm-eval."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks import TaskManager

from dllm_qbench import tasks
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.adapter import DiffusionAdapter
from dllm_qbench.evaluation.benchmark import Answers
from dllm_qbench.evaluation.probe import Canvases, canvases
from dllm_qbench.evaluation.trajectory import Trace, draft
from dllm_qbench.models.embedded import items as embedded_items
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.tasks.embedded.scoring import winners


class EmbeddedBenchmark:
    """One of the families ``general``, ``math`` and ``code``.

    Raises:
        TaskError: an unknown family.
    """

    def __init__(self, task: str) -> None:
        self.spec = tasks.find(task)

    @property
    def family(self) -> str:
        """The short name, as in a cell's name."""
        return self.spec.family

    @cached_property
    def digest(self) -> str:
        """Sha256 over the task's YAML, its scoring, and the code that makes its items."""
        found = hashlib.sha256()
        folder = tasks.FOLDER / "embedded"
        sources = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*.py"))]
        for path in (*sources, Path(embedded_items.__file__)):
            found.update(f"{path.name}\n".encode() + path.read_bytes())
        return hashlib.sha256(f"{self.spec.name} {found.hexdigest()}".encode()).hexdigest()

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Nothing: the items and their settings are this package's own."""
        return {}

    def size(self) -> int:
        """Return how many test items a seed has."""
        return embedded_items.TEST_ITEMS

    def answers(
        self,
        lm: DiffusionLM,
        start: int,
        end: int,
        seed: int,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answers:
        """Run one model on the items from ``start`` up to ``end``; errors are those of ``evaluate``."""
        spec = self.spec
        with quiet_lm_eval():
            manager = TaskManager(
                include_path=str(tasks.FOLDER),
                include_defaults=False,
                metadata={"items": end, "seed": seed, "start": start},
            )
            loaded = manager.load(spec.name)
            metadata: Mapping[str, Any] = loaded["tasks"][spec.name].config.metadata
            masks = _samples(spec.name, metadata, str(lm.config.model_type))
            adapter = DiffusionAdapter(lm, masks, seed, batch_size=batch_size, progress=progress)
            results = lm_eval_evaluate(
                adapter, loaded, bootstrap_iters=0, confirm_run_unsafe_code=True
            )
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

    def canvases(self, lm: DiffusionLM, seed: int, items: int) -> Canvases:
        """Return partly masked true answers of the first items; see :func:`probe.canvases`."""
        return canvases(lm, self.family, seed, items)

    def drafts(self, lm: DiffusionLM, seed: int, items: int) -> list[Trace]:
        """Let the model write the answers of the first items; see :func:`trajectory.draft`."""
        return draft(lm, self.family, seed, items)


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


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
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
