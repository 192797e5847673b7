"""A complete local data folder for the paper's ten tasks: a few records each, in our own words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm_qbench.tasks.paper import sources
from dllm_qbench.tasks.paper_settings import SETTINGS

SHOTS = 5  # examples to show, at least as many as any task shows
Record = dict[str, Any]


def write_paper_data(folder: Path, records: int = 4) -> Path:
    """Write a folder for ``--qbench-data-dir`` with so many records a task; return it.

    A task of several subjects has so many in each of the first three subjects, and one in every other:
    mmlu would be 57 times as large otherwise.

    Args:
        folder: made if it is not there.
        records: of the split that is asked.
    """
    for task in SETTINGS.values():
        for place, source in enumerate(sources(task)):
            for split in source.splits:
                home = folder / task.name
                if source.divided:
                    home = home / str(source.config)
                asked = split == source.splits[0]
                count = (records if place < 3 else 1) if asked else SHOTS + 1
                # Other records are shown than asked.
                first = 0 if asked else 100
                made = [record(task.name, first + n) for n in range(count)]
                write_jsonl(home / f"{split}.jsonl", made)
    return folder


def write_jsonl(path: Path, records: Sequence[Record]) -> Path:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records), encoding="utf-8")
    return path


def record(task: str, n: int) -> Record:
    """Return the n-th record of a task, with the fields and the forms that the hub's has."""
    names = ("Ines", "Otto", "Mira", "Paul", "Lena", "Kofi")
    name, other = names[n % 6], names[(n + 1) % 6]
    match task:
        case "winogrande":
            return {
                "sentence": f"{name} lent {other} {n + 2} books because _ had read them all.",
                "option1": name,
                "option2": other,
                "answer": "1" if n % 2 else "2",
            }
        case "piqa":
            return {
                "goal": f"Keep {n + 3} slices of bread fresh.",
                "sol1": "Close them in a tin.",
                "sol2": "Leave them out in the rain all night.",
                "label": n % 2,
            }
        case "arc_easy" | "arc_challenge":
            labels = ["1", "2", "3", "4"] if n % 3 == 2 else ["A", "B", "C", "D"]
            return {
                "id": f"{task.upper()}_{n}",
                "question": f"{name} puts {n + 2} ice cubes in warm tea. What do they become?",
                "choices": {"text": ["water", "stone", "salt", "wood chips"], "label": labels},
                "answerKey": labels[n % 4],
            }
        case "hellaswag":
            return {
                "ind": 10 + n,
                "activity_label": "Washing a bicycle",
                "ctx_a": f"{name} fills bucket number {n} with water.",
                "ctx_b": "then they",
                "ctx": f"{name} fills bucket number {n} with water. then they",
                "endings": [
                    "rub the frame with a sponge.",
                    "eat the saddle. [title] Lunch",
                    "paint the moon with a very long brush.",
                    "sing to the pedals.",
                ],
                "source_id": f"made~{n}",
                "split": "val",
                "split_type": "indomain",
                "label": str(n % 4),
            }
        case "mmlu":
            return {
                "question": f"Which number is {n} plus two?",
                "subject": "made",
                "choices": [str(n + 2), str(n + 3), str(n + 5), str(n + 7)],
                "answer": 0,
            }
        case "gsm8k":
            return {
                "question": f"{name} has {n + 2} pens and buys 3 more. How many pens are there?",
                "answer": f"There are {n + 2} + 3 = <<{n + 2}+3={n + 5}>>{n + 5} pens.\n#### {n + 5}",
            }
        case "minerva_math":
            return {
                "problem": f"What is ${n + 2} \\cdot 3$?",
                "level": "Level 1",
                "type": "Made",
                "solution": f"Three times ${n + 2}$ is $\\boxed{{{3 * (n + 2)}}}$.",
            }
        case "humaneval":
            prompt = (
                f"from typing import List\n\n\ndef shifted(values: List[int]) -> List[int]:\n"
                f'    """Add {n} to each value.\n    >>> shifted([1])\n    [{1 + n}]\n    """\n'
            )
            return {
                "task_id": f"Made/{n}",
                "prompt": prompt,
                "canonical_solution": f"    return [value + {n} for value in values]\n",
                "test": (
                    "METADATA = {}\n\n\ndef check(candidate):\n"
                    f"    assert candidate([]) == []\n    assert candidate([1, 2]) == [{1 + n}, {2 + n}]\n"
                ),
                "entry_point": "shifted",
            }
        case "mbpp":
            return {
                "task_id": 11 + n,
                "text": f"Write a function that multiplies a number by {n + 2}.",
                "code": f"def scaled(x):\r\n  return x * {n + 2}",
                "test_list": [f"assert scaled({x}) == {x * (n + 2)}" for x in (0, 1, 7)],
                "test_setup_code": "",
                "challenge_test_list": [],
            }
    raise ValueError(f"no records are made for {task}")
