"""How answers of the embedded families become right or wrong, as lm-eval calls it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.filter import Filter

from dllm_qbench.evaluation.sandbox.expressions import run_expressions


def winners(log_likelihoods: Sequence[float]) -> list[int]:
    """Return the choices of the highest log-likelihood; more than one where they tie exactly."""
    best = max(log_likelihoods)
    return [index for index, value in enumerate(log_likelihoods) if value == best]


def choose(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Score a choice. An exact tie is no choice and counts as wrong, whatever ties.

    lm-eval would give the tie to the first choice, so that a model that prefers nothing (all logits
    equal) would be right as often as the first choice is.
    """
    return {"acc": float(winners([value for value, _ in results]) == [doc["gold"]])}


class Execute(Filter):  # type: ignore[misc, unused-ignore]
    """Replace each generated expression by its values on the document's inputs.

    A filter sees all answers of a task at once, so that the sandbox starts once and not per document.
    """

    def apply(
        self, resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[list[list[int | None]]]:
        """Run the answers (one or more for each document); ``None`` stands for no value."""
        texts = [
            (text, doc["inputs"])
            for of_doc, doc in zip(resps, docs, strict=True)
            for text in of_doc
        ]
        values = iter(run_expressions([text for text, _ in texts], [inputs for _, inputs in texts]))
        return [[next(values) for _ in of_doc] for of_doc in resps]


def passes(doc: Mapping[str, Any], results: Sequence[Sequence[int | None]]) -> dict[str, float]:
    """Score a program: 1 where it gives every expected output (pass@1 of one sample)."""
    return {"pass@1": float(list(results[0]) == list(doc["outputs"]))}
