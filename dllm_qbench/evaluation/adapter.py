"""A diffusion model as lm-eval sees a language model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dllm_qbench.diffusion.by_model import generate, log_likelihoods
from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.errors import TaskError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.seeding import derive


@dataclass(frozen=True)
class Manner:
    """How prompts and answers of a released model differ from the embedded models'.

    Attributes:
        chat: prompts of generated answers come from the tokenizer's chat template, which writes every
            special token itself.
        begin: prompts of generated answers start with the begin-of-text token.
        clean: special tokens are left out of generated answers.
        cut: a prompt that is too long for the model loses its beginning; otherwise it is an error.
        forbidden_ids, unconfident_ids: of the sampler.
    """

    chat: bool = False
    begin: bool = False
    clean: bool = False
    cut: bool = False
    forbidden_ids: tuple[int, ...] = ()
    unconfident_ids: tuple[int, ...] = ()

    def suppressed(self) -> dict[str, Any]:
        """Return the sampler's keyword arguments."""
        given = {"forbidden_ids": self.forbidden_ids, "unconfident_ids": self.unconfident_ids}
        return {name: ids for name, ids in given.items() if ids}


PLAIN = Manner()
# Of Dream's sampler; a task's generation_kwargs may name them.
_ALGORITHM = ("algorithm", "top_p", "top_k", "alg_temp")
_Settings = tuple[tuple[str, Any], ...]


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
        manner: of prompts and answers; by default the embedded models'.

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
        manner: Manner = PLAIN,
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
        self.manner = manner
        self.traces: dict[str, list[Commit]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, in nats.

        The second value, whether greedy decoding would give the continuation, is not computed and is
        always false: a masked diffusion model has no one order of decoding.
        """
        room = int(self.lm.config.max_position_embeddings) - int(self.lm.closed_targets)
        scored, cut = [], 0
        for request in requests:
            context, target = self.encode_pair(*request.args)
            kept = self._fitted(context, room - len(target), request)
            cut += len(kept) < len(context)
            scored.append((kept, target, self._seed(request, "masks")))
        self._tell(cut, requests)
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
        and, if wanted, ``temperature``, ``until`` (strings that end the answer) and what Dream's
        sampler has beside.
        """
        answers = [""] * len(requests)
        groups: dict[_Settings, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_settings(request), []).append(index)
        finished = cut = 0
        for given, members in groups.items():
            settings = dict(given)
            whole = [self.prompt(requests[index].args[0]) for index in members]
            room = int(self.lm.config.max_position_embeddings) - settings["gen_length"]
            prompts = [
                self._fitted(prompt, room, requests[index])
                for prompt, index in zip(whole, members, strict=True)
            ]
            cut += sum(len(a) < len(b) for a, b in zip(prompts, whole, strict=True))
            traces: list[list[Commit]] = []
            rows = generate(
                self.lm,
                prompts,
                seeds=[self._seed(requests[index], "sampler") for index in members],
                batch_size=self.batch_size,
                labels=[_label(requests[index]) for index in members],
                progress=self._from(finished, len(requests)),
                trace=traces,
                **settings,
                **self.manner.suppressed(),
            )
            for index, prompt, row, trace in zip(members, prompts, rows, traces, strict=True):
                answers[index] = self._text(row[len(prompt) :], requests[index].args[1]["until"])
                self.traces[_document(requests[index])] = trace
            finished += len(members)
        self._tell(cut, requests)
        return answers

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, as lm-eval asks where a chat template is used."""
        return self.lm.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's own template: no other one is used."""
        return str(self.tokenizer.chat_template) if self.manner.chat else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as the model was taught to read it; its end is the model's to continue.

        Raises:
            TaskError: the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise TaskError(
                f"{self.lm.name}: the tokenizer has no chat template, which a chat model's prompts need:"
                " put the release's tokenizer_config.json or chat_template.jinja beside the checkpoint"
            )
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt whose answer is generated."""
        if self.manner.chat:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids, begin = self._encode(text), self.tokenizer.bos_token_id
        if self.manner.begin and begin is not None and ids[:1] != [begin]:
            return [int(begin), *ids]
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """Return the token ids of an answer that follows a prompt."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _fitted(self, prompt: list[int], room: int, request: Instance) -> list[int]:
        """Return as much of a prompt's end as there is room for."""
        if not self.manner.cut or len(prompt) <= room:
            return prompt
        if room < 1:
            raise TaskError(
                f"{_label(request)}: the answer alone fills the"
                f" {self.lm.config.max_position_embeddings} positions of {self.lm.name}; take a model with"
                " more, or a profile with shorter answers"
            )
        return prompt[-room:]

    def _tell(self, cut: int, requests: Sequence[Instance]) -> None:
        """Warn, once for all requests, of prompts that lost their beginning."""
        if cut:
            # Not from this module's own line: it is about the task and the model, and nobody's mistake.
            warnings.warn_explicit(
                f"task {requests[0].task_name}: {cut} of {len(requests)} prompts are longer than"
                f" {self.lm.name} takes; their beginning was cut",
                UserWarning,
                filename=str(requests[0].task_name),
                lineno=0,
                module="qbench_task",
            )

    def _from(self, offset: int, total: int) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, _: progress(offset + done, total)

    def _seed(self, request: Instance, draw: str) -> int:
        return derive(self.seed, draw, str(request.task_name), _document(request))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
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
        if self.manner.clean:  # after the stops: some of them are special tokens
            for token in self._special():
                text = text.replace(token, "")
        return text

    def _special(self) -> set[str]:
        """Return the texts of the tokenizer's special tokens."""
        added = self.tokenizer.added_tokens_decoder.values()
        return {*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)}


def _settings(request: Instance) -> _Settings:
    """Return what a request says to the sampler, as names and values."""
    given: Mapping[str, Any] = request.args[1]
    missing = [name for name in ("gen_length", "steps", "block_length") if name not in given]
    if missing:
        raise TaskError(
            f"task {request.task_name}: generation_kwargs lacks {', '.join(missing)}, which a diffusion"
            " sampler needs"
        )
    return (
        *((name, int(given[name])) for name in ("gen_length", "steps", "block_length")),
        ("temperature", float(given.get("temperature", 0.0))),
        *((name, given[name]) for name in _ALGORITHM if given.get(name) is not None),
    )


def _document(request: Instance) -> str:
    """Name a request's document: its own id, or its place in the data set."""
    return str(request.doc["id"]) if "id" in request.doc else f"#{request.doc_id}"


def _label(request: Instance) -> str:
    return f"task {request.task_name}, item {_document(request)}"
