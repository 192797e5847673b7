"""The paper's tasks as lm-eval task objects: lm-eval's own definitions, local records, the paper's settings.

Notable:
- a definition is read from the installed lm-eval and never copied; :func:`configured` says what is set
  on top;
- the data come from memory, so that nothing is downloaded and no cache is written;
- a document's few shots depend on its place in the data set, not on which others are run: gsm8k's are
  those that lm-eval draws when it runs the whole data set with its default seed;
- an exact tie between choices is no choice and counts as wrong; lm-eval would give it to the first.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]
from datasets.utils import (  # type: ignore[import-untyped, unused-ignore]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from dllm_qbench.errors import TaskError
from dllm_qbench.tasks import paper_code
from dllm_qbench.tasks.embedded.scoring import winners
from dllm_qbench.tasks.paper_settings import TURN_ENDS, PaperTask

FEWSHOT_SEED = 1234  # lm-eval's default
_STRUCTURE = ("tag", "group", "task_list", "dataset_kwargs", "should_decontaminate")


class InOrder(ContextSampler):  # type: ignore[misc, unused-ignore]
    """Draws for document ``number`` what lm-eval's own sampler does in a run over all documents."""

    number = 0
    _drawn: list[list[int]]
    _random: random.Random

    def sample(
        self, n: int, eval_doc: Any = None, df: Any = None, **_: Any
    ) -> Sequence[dict[str, Any]]:
        """Return ``n`` documents for the current ``number``."""
        if not hasattr(self, "_drawn"):
            self._drawn, self._random = [], random.Random(FEWSHOT_SEED)
        pool = self.fewshot_docs()
        while len(self._drawn) <= self.number:
            self._drawn.append(self._random.sample(range(len(pool)), n))
        return [pool[index] for index in self._drawn[self.number]]


class PaperLmEvalTask(ConfigurableTask):  # type: ignore[misc, unused-ignore]
    """A definition with its documents read once, in any order, and with ties counted as wrong."""

    @property
    def eval_docs(self) -> Any:
        """The documents that are asked, processed once."""
        if not hasattr(self, "_documents"):
            self._documents = super().eval_docs
        return self._documents

    def fewshot_docs(self) -> Any:
        """Return the documents to show; none where none are shown, so that no split is needed for it."""
        return super().fewshot_docs() if self.config.num_fewshot else None

    def doc_iterator(
        self, *, samples: Sequence[int] | None = None, **_: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yield the chosen documents without reading the others."""
        documents = self.eval_docs
        for place, number in enumerate(range(len(documents)) if samples is None else samples):
            yield place, documents[number]

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Build a document's prompt, with the few shots that belong to its place."""
        if isinstance(getattr(self, "sampler", None), InOrder):
            self.sampler.number = doc["number"]
        return super().fewshot_context(doc, *args, **kwargs)

    def process_results(self, doc: Mapping[str, Any], results: Any) -> dict[str, Any]:
        """Score a document as lm-eval does, except for ties."""
        scores: dict[str, Any] = super().process_results(doc, results)
        if self.OUTPUT_TYPE == "multiple_choice":
            for metric in scores.keys() & {"acc", "acc_norm"}:
                if len(winners(self.compared(doc, results, metric))) > 1:
                    scores[metric] = 0.0
        return scores

    def compared(self, doc: Mapping[str, Any], results: Any, metric: str) -> list[float]:
        """Return what decides between the choices: log-likelihoods, for ``acc_norm`` by character."""
        values = [float(value) for value, _ in results]
        if metric != "acc_norm":
            return values
        return [
            value / len(choice)
            for value, choice in zip(values, self.doc_to_choice(doc), strict=True)
        ]

    def gold(self, doc: Mapping[str, Any]) -> int:
        """Return the place of the right choice."""
        found = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
        return int(found)


def configured(
    task: PaperTask, definition: Path, *, chat: bool, sampler: Mapping[str, Any], allowed: bool
) -> dict[str, Any]:
    """Return a definition with the paper's settings on top.

    Args:
        task: the settings.
        definition: lm-eval's YAML file.
        chat: answers come from a chat model.
        sampler: ``generation_kwargs`` of a task that generates, beside ``until``.
        allowed: generated programs may be run.

    Raises:
        TaskError: what lm-eval's scorer needs is not installed.
    """
    try:
        config: dict[str, Any] = load_yaml(definition, resolve_func=not task.code)
    except (ImportError, AssertionError) as error:  # minerva_math's scorer, or another antlr4
        raise TaskError(
            f"task {task.name}: lm-eval's own functions for it cannot be loaded ({str(error)[:200]});"
            " install what they need with: pip install 'lm-eval[math]'"
        ) from error
    for name in _STRUCTURE:
        config.pop(name, None)
    asked = config.get("test_split") or config.get("validation_split")
    config |= {
        "num_fewshot": task.shots,
        "training_split": None,
        "validation_split": None,
        "test_split": asked,
    }
    if task.shots and "fewshot_config" not in config:
        config["fewshot_config"] = {"sampler": InOrder}
    if sampler:
        until = config["generation_kwargs"]["until"]
        config["generation_kwargs"] = {
            **sampler,
            "until": [*until, *(TURN_ENDS if chat else ())],
        }
    if task.code:
        run = partial(paper_code.Run, task=task.name, chat=chat, allowed=allowed)
        config |= {
            "process_results": paper_code.passes,
            "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {"name": "run", "filter": [{"function": run}, {"function": "take_first"}]}
            ],
        }
        if task.shots:
            utils = definition.with_name("utils.py")
            config["fewshot_config"] |= {"samples": paper_code.listed_samples(utils)}
    return config


def build(
    config: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> PaperLmEvalTask:
    """Build a configured task on its records, by split."""
    data = {split: Dataset.from_list(list(rows)) for split, rows in records.items()}
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # some definitions map their documents
    try:
        return PaperLmEvalTask(config={**config, "custom_dataset": lambda **_: data})
    finally:
        if shown:
            enable_progress_bars()


def definition_digest(definition: Path, config: Mapping[str, Any]) -> str:
    """Sha256 over a configured task: its plain fields, and the source text of lm-eval's functions for it."""
    found = hashlib.sha256()
    for path in sorted(definition.parent.glob("*.py")):
        found.update(f"{path.name}\n".encode() + path.read_bytes())
    plain = json.dumps(_plain(config), sort_keys=True)
    return hashlib.sha256(f"{plain} {found.hexdigest()}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Name functions instead of showing where they lie."""
    match value:
        case Mapping():
            return {str(name): _plain(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case partial():
            return f"{_plain(value.func)} {json.dumps(_plain(value.keywords), sort_keys=True)}"
        case str() if Path(value).is_absolute():
            return Path(value).name
    if callable(value):
        return f"{value.__module__.rpartition('.')[2]}.{value.__qualname__}"
    return value
