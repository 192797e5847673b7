"""A diffusion model as lm-eval sees a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dllm_qbench.diffusion.by_model import generate, log_likelihoods
from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.errors import TaskError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive


class DiffusionAdapter(LM):  # type: ignore[misc, unused-ignore]
    """Answers lm-eval's requests with Monte Carlo likelihood and the model's sampler.

    Every document has its own seed, derived from its id, its task and ``seed``: an answer does not
    depend on which other documents are asked. Errors name the task and the document.

    Args:
        lm: a model with a tokenizer.
        samples: masks per scored target.
        seed: of the masks and of the sampler's noise.
        batch_size: canvases in one forward pass; by default a token budget.
        progress: called with (done, total) during a run.

    Attributes:
        traces: what each denoising step of each generated answer committed, by document.

    Raises:
        TaskError: the model has no tokenizer.
    """

    def __init__(
        self,
        lm: DiffusionLM,
        samples: int = 128,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if lm.tokenizer is None:
            raise TaskError(
                f"{lm.name} has no tokenizer; a task needs one: put the tokenizer's files beside the"
                " checkpoint"
            )
        self.lm = lm
        self.tokenizer = lm.tokenizer
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.progress = progress
        self.traces: dict[str, list[Commit]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, in nats.

        The second value, whether greedy decoding would give the continuation, is not computed and is
        always false: a masked diffusion model has no one order of decoding.
        """
        scored = [
            (*self._encode_pair(*request.args), self._seed(request, "masks"))
            for request in requests
        ]
        values = log_likelihoods(
            self.lm,
            scored,
            self.samples,
            batch_size=self.batch_size,
            labels=[_label(request) for request in requests],
            progress=self.progress,
        )
        return [(value, False) for value in values]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refuse: perplexity of running text is not defined for a masked diffusion model here."""
        raise TaskError(
            f"task {requests[0].task_name}: rolling log-likelihood (perplexity of a whole text) is not"
            " available for masked diffusion models; use a loglikelihood or generate_until task"
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate for (context, settings) pairs; an answer ends before the first end of text.

        The settings are the task's ``generation_kwargs``: ``gen_length``, ``steps``, ``block_length``
        and, if wanted, ``temperature`` and ``until`` (strings that end the answer).
        """
        answers = [""] * len(requests)
        groups: dict[tuple[int, int, int, float], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_settings(request), []).append(index)
        finished = 0
        for settings, members in groups.items():
            prompts = [self._encode(requests[index].args[0]) for index in members]
            traces: list[list[Commit]] = []
            rows = generate(
                self.lm,
                prompts,
                *settings,
                seeds=[self._seed(requests[index], "sampler") for index in members],
                batch_size=self.batch_size,
                labels=[_label(requests[index]) for index in members],
                progress=self._from(finished, len(requests)),
                trace=traces,
            )
            for index, prompt, row, trace in zip(members, prompts, rows, traces, strict=True):
                answers[index] = self._text(row[len(prompt) :], requests[index].args[1]["until"])
                self.traces[_document(requests[index])] = trace
            finished += len(members)
        return answers

    def _from(self, offset: int, total: int) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, _: progress(offset + done, total)

    def _seed(self, request: Instance, draw: str) -> int:
        return derive(self.seed, draw, str(request.task_name), _document(request))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split the tokens of the whole text where the context's own tokens end (lm-eval's rule)."""
        blank = len(context) - len(context.rstrip())
        if blank:
            context, continuation = context[:-blank], context[-blank:] + continuation
        before = self._encode(context)
        return before, self._encode(context + continuation)[len(before) :]

    def _text(self, ids: Sequence[int], until: Sequence[str]) -> str:
        eos = self.lm.eos_id
        ended = list(ids[: ids.index(eos)] if eos in ids else ids)
        text = str(self.tokenizer.decode(ended))
        for stop in until:
            text = text.split(stop)[0]
        return text


def _settings(request: Instance) -> tuple[int, int, int, float]:
    """Return (gen_length, steps, block_length, temperature) of a request."""
    given: dict[str, Any] = request.args[1]
    missing = [name for name in ("gen_length", "steps", "block_length") if name not in given]
    if missing:
        raise TaskError(
            f"task {request.task_name}: generation_kwargs lacks {', '.join(missing)}, which a diffusion"
            " sampler needs"
        )
    return (
        int(given["gen_length"]),
        int(given["steps"]),
        int(given["block_length"]),
        float(given.get("temperature", 0.0)),
    )


def _document(request: Instance) -> str:
    """Name a request's document: its own id, or its place in the data set."""
    return str(request.doc["id"]) if "id" in request.doc else f"#{request.doc_id}"


def _label(request: Instance) -> str:
    return f"task {request.task_name}, item {_document(request)}"
