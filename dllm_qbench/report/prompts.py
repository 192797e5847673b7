"""Items by id: what was asked and what was expected. The embedded tasks' are made, the paper's are read.

No torch, no lm-eval: a paper item shows its own question, not the examples that stood before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dllm_qbench.errors import TaskError
from dllm_qbench.report.reading import cut
from dllm_qbench.tasks import TASKS
from dllm_qbench.tasks.paper import PAPER_TASKS, sources
from dllm_qbench.tasks.paper_data import read, require
from dllm_qbench.tasks.paper_settings import find_paper_task

Items = dict[str, dict[str, str]]
_MOST_SEEDS: Final = 4  # each makes 2,000 items; a run has one


@dataclass
class Wanted:
    """The ids of one task's items that are to be shown, and the seeds that they were drawn with."""

    ids: dict[str, None] = field(default_factory=dict)
    seeds: dict[int, None] = field(default_factory=dict)


def find_items(
    wanted: Mapping[str, Wanted], data_dir: Path | None
) -> tuple[dict[str, Items], list[str]]:
    """Prompt and expected answer of each item that can be found, by task and id.

    Args:
        wanted: by the task's name.
        data_dir: where the paper's data are; without it the paper's prompts are not shown.

    Returns:
        The items of each task that has any, and notes about data that cannot be read.
    """
    found: dict[str, Items] = {}
    notes = []
    for task, asked in wanted.items():
        items: Items = {}
        if task in TASKS:
            items = _embedded(task, asked)
        elif task in PAPER_TASKS and data_dir is not None:
            try:
                items = _of_the_paper(task, asked, data_dir)
            except TaskError as error:
                notes.append(f"Prompts of {task} are not shown: {cut(str(error))}")
        if items:
            found[task] = items
    return found, notes


def _embedded(task: str, asked: Wanted) -> Items:
    from dllm_qbench.models.embedded.items import test_items

    found: Items = {}
    for seed in [*asked.seeds][:_MOST_SEEDS]:
        if len(found) == len(asked.ids):
            break
        for item in test_items(task, seed=seed):
            if item.id in asked.ids and item.id not in found:
                found[item.id] = _shown(_with_choices(item.prompt, item.choices), item.answer)
    return found


def _of_the_paper(task: str, asked: Wanted, data_dir: Path) -> Items:
    settings = find_paper_task(task)
    ask = _QUESTIONS[task]
    found: Items = {}
    for source in sources(settings):
        # Of a task of many subjects only those are read that an id belongs to.
        if source.divided and not _any_starts(asked.ids, f"{source.config}/"):
            continue
        alone = replace(source, splits=source.splits[:1])
        for (_, split), files in require([alone], data_dir).items():
            for record in read(alone, split, files):
                if record["id"] in asked.ids:
                    found[record["id"]] = _shown(*ask(record))
    return found


def _any_starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _shown(prompt: str, expected: str) -> dict[str, str]:
    return {"prompt": cut(prompt), "expected": cut(expected)}


def _with_choices(question: str, choices: Sequence[str]) -> str:
    return "\n".join([question, *(f"- {choice}" for choice in choices)])


# --- the paper's records, whose fields ``tasks.paper_schemas`` has checked

_Ask = Callable[[Mapping[str, Any]], tuple[str, str]]


def _winogrande(record: Mapping[str, Any]) -> tuple[str, str]:
    options = [record["option1"], record["option2"]]
    return _with_choices(record["sentence"], options), options[int(record["answer"]) - 1]


def _piqa(record: Mapping[str, Any]) -> tuple[str, str]:
    options = [record["sol1"], record["sol2"]]
    return _with_choices(record["goal"], options), options[int(record["label"])]


def _arc(record: Mapping[str, Any]) -> tuple[str, str]:
    texts, labels = record["choices"]["text"], record["choices"]["label"]
    return _with_choices(record["question"], texts), texts[labels.index(record["answerKey"])]


def _hellaswag(record: Mapping[str, Any]) -> tuple[str, str]:
    question = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b']}"
    return _with_choices(question, record["endings"]), record["endings"][int(record["label"])]


def _mmlu(record: Mapping[str, Any]) -> tuple[str, str]:
    choices = record["choices"]
    return _with_choices(record["question"], choices), choices[int(record["answer"])]


def _mbpp(record: Mapping[str, Any]) -> tuple[str, str]:
    return "\n".join([record["text"], *record["test_list"]]), record["code"]


def _plain(question: str, answer: str) -> _Ask:
    return lambda record: (record[question], record[answer])


_QUESTIONS: Final[Mapping[str, _Ask]] = {
    "winogrande": _winogrande,
    "piqa": _piqa,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "hellaswag": _hellaswag,
    "mmlu": _mmlu,
    "gsm8k": _plain("question", "answer"),
    "minerva_math": _plain("problem", "solution"),
    "humaneval": _plain("prompt", "canonical_solution"),
    "mbpp": _mbpp,
}
