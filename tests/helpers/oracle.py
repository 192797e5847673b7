"""An adapter that answers as it is told instead of asking the model, and writes down what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance

from dllm_qbench.evaluation.adapter import DiffusionAdapter

Text = Callable[[str, Mapping[str, Any]], str]
"""What to write for (task, document)."""


class Oracle(DiffusionAdapter):
    """Prefers the right choice and writes what ``text`` says; with ``right`` unset, any other choice.

    Class attributes, as benchmarks make their own adapter: set them on a subclass.
    """

    right = True
    text: Text
    asked: list[Instance]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score the true choice 0 and the others -900, or the other way round."""
        self.asked.extend(requests)
        return [(-900.0 * (is_gold(r) != self.right), False) for r in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write the text that was agreed on."""
        self.asked.extend(requests)
        for request in requests:
            self.traces[str(request.doc["id"])] = []
        return [type(self).text(str(request.task_name), request.doc) for request in requests]


def is_gold(request: Instance) -> bool:
    """Whether a request scores the true choice, as the record itself says."""
    doc = request.doc
    match request.task_name:
        case "winogrande":
            return bool(request.idx == int(doc["answer"]) - 1)
        case "piqa":
            return bool(request.idx == doc["label"])
        case "arc_easy" | "arc_challenge":
            return bool(request.idx == doc["choices"]["label"].index(doc["answerKey"]))
        case "hellaswag":
            return bool(request.idx == int(doc["label"]))
    return bool(request.idx == doc["answer"])


def oracle(text: Text, *, right: bool = True) -> type[Oracle]:
    """Return an adapter class of its own."""
    return type("AnOracle", (Oracle,), {"right": right, "text": staticmethod(text), "asked": []})
