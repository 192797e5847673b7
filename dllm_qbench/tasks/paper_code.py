"""HumanEval and MBPP: from an answer to a verdict, by the sandbox instead of lm-eval's ``code_eval``.

lm-eval's own functions for the two tasks are never imported: on import they load a metric from the network
and run a program unprotected. Their YAML gives the prompts; what becomes of the answers is here. MBPP's
three examples are read from the source text of lm-eval's ``mbpp/utils.py``, which is not run.

Scoring is pass@1 of one answer, as published: the program must pass all tests of its document.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.filter import Filter

from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation.sandbox import Check, run_checks

_FENCE = re.compile(r"```([A-Za-z]*)[ \t]*\n?")


def first_block(text: str) -> str:
    """Return the code of an answer that continues an opened block of code.

    The first fence closes that block, unless it names a language: then the model opened one of its own.
    """
    fence = _FENCE.search(text)
    if fence is None:
        return text
    return text[fence.end() :].split("```")[0] if fence.group(1) else text[: fence.start()]


def humaneval_check(doc: Mapping[str, Any], answer: str, *, chat: bool) -> Check:
    """The prompt, continued by the answer, against the document's ``check``."""
    body = answer.split("```")[0] if chat else answer
    return Check(
        program=doc["prompt"] + body,
        test=doc["test"],
        entry=doc["entry_point"],
        prelude=doc["prompt"],
    )


def mbpp_check(doc: Mapping[str, Any], answer: str, *, chat: bool) -> Check:
    """The answer against the document's asserts; lm-eval leaves ``test_setup_code`` out, too."""
    return Check(program=first_block(answer) if chat else answer, test="\n".join(doc["test_list"]))


CHECKS: Mapping[str, Callable[..., Check]] = {"humaneval": humaneval_check, "mbpp": mbpp_check}


class Run(Filter):  # type: ignore[misc, unused-ignore]
    """Replace each answer by how its program ended.

    A filter sees all answers of a task at once, so that the sandbox starts once and not per document.

    Args:
        task: ``"humaneval"`` or ``"mbpp"``.
        chat: answers stand in a block of code.
        allowed: whoever runs the suite has agreed that generated programs are run.
    """

    def __init__(self, task: str, chat: bool, allowed: bool) -> None:
        super().__init__()
        self.task, self.chat, self.allowed = task, chat, allowed

    def apply(
        self, resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[list[str]]:
        """Run the answers (one or more for each document); return each one's status."""
        require_consent(self.task, self.allowed)
        answers = [list(of_doc) for of_doc in resps]
        checks = [
            CHECKS[self.task](doc, text, chat=self.chat)
            for of_doc, doc in zip(answers, docs, strict=True)
            for text in of_doc
        ]
        statuses = iter([outcome.status for outcome in run_checks(checks)])
        return [[next(statuses) for _ in of_doc] for of_doc in answers]


def passes(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a document: 1 where the program passed all its tests."""
    return {"pass@1": float(results[0] == "ok")}


def require_consent(task: str, allowed: bool) -> None:
    """Raise a TaskError, which says how to agree, where programs may not be run."""
    if not allowed:
        raise TaskError(
            f"task {task} runs programs that the model wrote; they run sandboxed, but only when you ask for"
            " it: pass --qbench-run-programs (in Python: run_programs=True)"
        )


def listed_samples(utils: Path) -> list[dict[str, Any]]:
    """Return the literal that ``list_fewshot_samples`` of a module's source text returns.

    Raises:
        TaskError: this lm-eval's file has no such function, or it returns something else.
    """
    for node in ast.parse(utils.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            match node.body[-1]:
                case ast.Return(value=ast.expr() as value):
                    found: list[dict[str, Any]] = ast.literal_eval(value)
                    return found
    raise TaskError(
        f"{utils}: list_fewshot_samples returns no literal list, as lm-eval 0.4.13's does; install that"
    )
