"""The paper's ten tasks as benchmarks: lm-eval's definitions on local data, answered by a diffusion model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate as lm_eval_evaluate

from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.adapter import DiffusionAdapter, Manner
from dllm_qbench.evaluation.benchmark import Answers
from dllm_qbench.evaluation.embedded_benchmark import quiet_lm_eval
from dllm_qbench.evaluation.paper_probe import Question, draft_answers, masked_answers
from dllm_qbench.evaluation.probe import Canvases
from dllm_qbench.evaluation.trajectory import Trace
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.released import ModelSpec
from dllm_qbench.tasks import paper, paper_data
from dllm_qbench.tasks.embedded.scoring import winners
from dllm_qbench.tasks.paper_code import require_consent
from dllm_qbench.tasks.paper_lm_eval import (
    PaperLmEvalTask,
    build,
    configured,
    definition_digest,
)
from dllm_qbench.tasks.paper_settings import (
    PaperTask,
    find_paper_task,
    mask_samples,
    require_profile,
    sampler_settings,
)

BRIEF_ITEMS = 8  # canvases and drafts of the brief profile

_built: dict[tuple[Any, ...], PaperBenchmark] = {}


def paper_benchmark(
    task: str,
    *,
    data_dir: Path | None,
    model: ModelSpec | None,
    profile: str = "paper",
    run_programs: bool = False,
) -> PaperBenchmark:
    """Return one of the paper's tasks; read once per process as long as its files stay the same.

    Args:
        task: one of ``PAPER_TASKS``.
        data_dir: where the data are, as :mod:`dllm_qbench.tasks.paper_data` describes; ``None`` takes the
            Hugging Face caches.
        model: how the model is asked and sampled; ``None`` asks it plainly.
        profile: ``"paper"``, or ``"brief"`` for a dry run: two masks per choice, 16 tokens in 4 steps.
        run_programs: agree that HumanEval and MBPP run what the model wrote, sandboxed.

    Raises:
        TaskError: an unknown task or profile, a record that is not as it should be, programs without consent.
        MissingData: the data are not on this machine; says how to get them.
    """
    settings = find_paper_task(task)
    require_profile(profile)
    if settings.code:
        require_consent(task, run_programs)
    files = paper_data.require(paper.sources(settings), data_dir)
    stats = tuple((p, p.stat().st_mtime_ns, p.stat().st_size) for f in files.values() for p in f)
    key = (task, _asked(model), profile, run_programs, stats)
    if key not in _built:
        _built[key] = PaperBenchmark(settings, files, model, profile, run_programs)
    return _built[key]


def _asked(model: ModelSpec | None) -> tuple[Any, ...]:
    """Return what of a model's release a benchmark depends on: models that are asked alike share it."""
    if model is None:
        return ()
    ids = model.forbidden_ids, model.unconfident_ids
    generation = tuple(sorted((name, repr(value)) for name, value in model.generation.items()))
    return model.architecture == "Dream", model.chat, *ids, generation


@dataclass(frozen=True)
class _Subtask:
    """One lm-eval task and how many documents it has."""

    task: PaperLmEvalTask
    kind: str
    size: int


class PaperBenchmark:
    """One of the paper's tasks on its data; see :func:`paper_benchmark`.

    Items are all documents of the subtasks in the order of their names, each in the order of its file.
    """

    def __init__(
        self,
        task: PaperTask,
        files: Mapping[tuple[paper_data.Source, str], list[Path]],
        model: ModelSpec | None,
        profile: str,
        run_programs: bool,
    ) -> None:
        self._task, self._files, self._profile = task, files, profile
        generates = task.samples == 0
        dream = model is not None and model.architecture == "Dream"
        self._masks = mask_samples(task, profile, dream=dream)
        self._chat = generates and model is not None and model.chat
        self._sampler = (
            sampler_settings(task, profile, model.generation if model else {}, one_block=dream)
            if generates
            else {}
        )
        # A begin-of-text token before what Dream-Base continues, as its own evaluation has it; the paper's
        # commands for choices add none.
        self._manner = Manner(
            chat=self._chat,
            begin=generates and dream and not self._chat,
            clean=True,
            cut=True,
            forbidden_ids=model.forbidden_ids if model and generates else (),
            unconfident_ids=model.unconfident_ids if model and generates else (),
        )
        self._definitions: list[str] = []
        self._subtasks: list[_Subtask] = []
        places = paper.definitions(task, chat=self._chat)
        for source, place in zip(paper.sources(task), places, strict=True):
            config = configured(
                task, place, chat=self._chat, sampler=self._sampler, allowed=run_programs
            )
            self._definitions.append(definition_digest(place, config))
            rows = {s: paper_data.read(source, s, files[source, s]) for s in source.splits}
            self._require_shots(source, rows)
            with quiet_lm_eval():
                built = build(config, rows)
            kind = str(source.config) if source.divided else task.name
            self._subtasks.append(_Subtask(built, kind, len(rows[source.splits[0]])))

    @property
    def family(self) -> str:
        """The task's name, as in a cell's name."""
        return self._task.name

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The settings, the model's manner, and what the data and the definitions were."""
        return {
            "profile": self._profile,
            "lm_eval": version("lm_eval"),
            "shots": self._task.shots,
            "metric": self._task.metric,
            "filter": self._task.filter,
            "mask_samples": self._masks,
            "sampler": dict(self._sampler),
            "manner": {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self._manner).items()
            },
            "data_sha256": paper_data.digest(self._files),
            "definition_sha256": hashlib.sha256(" ".join(self._definitions).encode()).hexdigest(),
        }

    @cached_property
    def digest(self) -> str:
        """Sha256 over settings, definitions, lm-eval's version and the data's bytes."""
        told = {"task": self.family, **self.provenance}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def size(self) -> int:
        """Return how many items there are."""
        return sum(subtask.size for subtask in self._subtasks)

    def answers(
        self,
        lm: DiffusionLM,
        start: int,
        end: int,
        seed: int,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answers:
        """Return a model's answers to the items from ``start`` up to, not including, ``end``.

        Raises:
            TaskError: no such items, a prompt that leaves no room, or a thread in which lm-eval's math
                scorer cannot keep its time limits.
            NonFiniteError: a NaN or an infinity; names the task and the item.
        """
        self._require_main_thread()
        adapter = self._adapter(lm, seed, batch_size, progress)
        chosen = list(self._chosen(start, end))
        with quiet_lm_eval():
            results = lm_eval_evaluate(
                adapter,
                {"tasks": {subtask.task.task_name: subtask.task for subtask, _ in chosen}},
                samples={subtask.task.task_name: list(numbers) for subtask, numbers in chosen},
                bootstrap_iters=0,
                apply_chat_template=self._chat,
                fewshot_as_multiturn=self._chat,
                confirm_run_unsafe_code=True,
            )
        found = []
        for subtask, _ in chosen:
            samples = [
                sample
                for sample in results["samples"][subtask.task.task_name]
                if sample["filter"] == self._task.filter
            ]
            for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
                found.append(self._answer(subtask, sample, adapter))
        ids, kinds, correct, texts, traces, scores = zip(*found, strict=True)
        return Answers(
            ids,
            kinds,
            correct,
            texts,
            traces=traces if self._sampler else (),
            scores=() if self._sampler else scores,
        )

    def canvases(self, lm: DiffusionLM, seed: int, items: int) -> Canvases:
        """Return partly masked true answers of the first items, one canvas each; of 8 in brief."""
        return masked_answers(lm, self.family, seed, self._questions(lm, self._few(items)))

    def drafts(self, lm: DiffusionLM, seed: int, items: int) -> list[Trace]:
        """Let a model write the answers of the first items, one token a step; of 8 in brief."""
        questions = self._questions(lm, self._few(items))
        return draft_answers(lm, self.family, seed, questions, self._manner.suppressed())

    def _few(self, items: int) -> int:
        return min(items, BRIEF_ITEMS) if self._profile == "brief" else items

    def _answer(
        self, subtask: _Subtask, sample: Mapping[str, Any], adapter: DiffusionAdapter
    ) -> tuple[str, str, bool, str, Trace, float]:
        """Return id, kind, right or not, text, trace and score of one document."""
        doc, task = sample["doc"], subtask.task
        trace: Trace = ()
        score = 0.0
        if self._sampler:
            text = str(sample["resps"][0][0])
            trace = tuple(adapter.traces[str(doc["id"])])
        else:
            compared = task.compared(doc, sample["filtered_resps"], self._task.metric)
            choices = task.doc_to_choice(doc)
            text = " | ".join(choices[index] for index in winners(compared))
            score = float(sample["filtered_resps"][task.gold(doc)][0])
        right = bool(sample[self._task.metric])
        return str(doc["id"]), subtask.kind, right, text, trace, score

    def _questions(self, lm: DiffusionLM, items: int) -> list[Question]:
        """Return prompts and true answers of the first items, as token ids."""
        adapter = self._adapter(lm, 0)
        found = []
        for subtask, numbers in self._chosen(0, min(items, self.size())):
            with quiet_lm_eval():
                subtask.task.build_all_requests(
                    samples=list(numbers),
                    apply_chat_template=self._chat,
                    fewshot_as_multiturn=self._chat,
                    chat_template=adapter.apply_chat_template if self._chat else None,
                )
            asked: dict[str, list[Any]] = {}
            for request in subtask.task.instances:
                asked.setdefault(str(request.doc["id"]), []).append(request)
            for name, requests in asked.items():
                if not self._sampler:
                    request = requests[subtask.task.gold(requests[0].doc)]
                    found.append(Question(name, *adapter.encode_pair(*request.args)))
                else:
                    context, doc = requests[0].args[0], requests[0].doc
                    prompt = adapter.prompt(context)
                    found.append(
                        Question(name, prompt, adapter.answer_ids(_solution(self.family, doc)))
                    )
        return found

    def _adapter(
        self,
        lm: DiffusionLM,
        seed: int,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> DiffusionAdapter:
        return DiffusionAdapter(
            lm,
            self._masks,
            seed,
            batch_size=batch_size,
            progress=progress,
            manner=self._manner,
        )

    def _chosen(self, start: int, end: int) -> Iterator[tuple[_Subtask, range]]:
        """Yield the subtasks that have items from ``start`` up to ``end``, and which of their documents."""
        if not 0 <= start < end <= self.size():
            raise TaskError(
                f"task {self.family}: items {start} to {end} were asked for; there are {self.size()}"
            )
        first = 0
        for subtask in self._subtasks:
            numbers = range(max(start - first, 0), min(end - first, subtask.size))
            if numbers:
                yield subtask, numbers
            first += subtask.size

    def _require_shots(self, source: paper_data.Source, rows: Mapping[str, list[Any]]) -> None:
        shown = len(rows[source.splits[-1]])
        if len(source.splits) > 1 and shown < self._task.shots:
            raise TaskError(
                f"task {self.family}: {self._task.shots} examples are shown, but"
                f" {self._files[source, source.splits[-1]][0]} has {shown}"
            )

    def _require_main_thread(self) -> None:
        """Refuse to score mathematics where it would silently be wrong.

        lm-eval's scorer limits its time by signals; elsewhere these fail, and it takes that for unequal.
        """
        if (
            self._task.metric == "math_verify"
            and threading.current_thread() is not threading.main_thread()
        ):
            raise TaskError(
                f"task {self.family}: lm-eval's scorer works in a process's main thread only; run it there"
            )


def _solution(task: str, doc: Mapping[str, Any]) -> str:
    """Return a document's true answer as a model would write it after the prompt."""
    match task:
        case "gsm8k":
            return f" {doc['answer']}"
        case "minerva_math":
            return f" {doc['solution']}"
        case "humaneval":
            return str(doc["canonical_solution"])
    return str(doc["code"])
