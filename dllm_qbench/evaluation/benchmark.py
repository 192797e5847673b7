"""What ``evaluate`` needs of a task, whichever data and scoring stand behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from dllm_qbench.diffusion.samplers import Commit
from dllm_qbench.evaluation.probe import Canvases
from dllm_qbench.evaluation.trajectory import Trace
from dllm_qbench.models.lm import DiffusionLM


@dataclass(frozen=True)
class Answers:
    """One model's answers to one task: one entry per item in each tuple, in the task's order.

    ``traces`` holds what each denoising step committed; it is empty where nothing is generated.
    ``scores`` holds the true choice's log-likelihood in nats, whose last bits depend on the batch: they
    play no part where answers are compared. It is empty where there are no choices.
    """

    ids: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()
    texts: tuple[str, ...] = ()
    traces: tuple[Trace, ...] = ()
    scores: tuple[float, ...] = field(default=(), compare=False)

    def __add__(self, more: Answers) -> Answers:
        """These items' answers, then those of ``more``."""
        names = [entry.name for entry in fields(self)]
        return Answers(*(getattr(self, name) + getattr(more, name) for name in names))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = {
            entry.name: list(getattr(self, entry.name))
            for entry in fields(self)
            if entry.name != "traces"
        }
        return plain | {"traces": traces_to_lists(self.traces)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answers:
        """Inverse of ``to_dict``."""
        names = [entry.name for entry in fields(cls) if entry.name != "traces"]
        plain = {name: tuple(data[name]) for name in names}
        return cls(**plain, traces=traces_from_lists(data["traces"]))


def traces_to_lists(traces: Sequence[Trace]) -> list[Any]:
    """Return ``[step, positions, tokens]`` for each commit of each trace."""
    return [
        [[commit.step, list(commit.positions), list(commit.tokens)] for commit in trace]
        for trace in traces
    ]


def traces_from_lists(data: Sequence[Any]) -> tuple[Trace, ...]:
    """Inverse of :func:`traces_to_lists`."""
    return tuple(
        tuple(Commit(step, tuple(positions), tuple(tokens)) for step, positions, tokens in trace)
        for trace in data
    )


class Benchmark(Protocol):
    """A task: items in a fixed order, and how a model answers them.

    Attributes:
        family: the short name, as in a cell's name.
        digest: sha256 over all that an answer can depend on beside the model: the task's definition, its
            settings, its data.
    """

    @property
    def family(self) -> str:
        """The short name, as in a cell's name."""
        ...

    @property
    def digest(self) -> str:
        """Sha256 over definition, settings and data."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What a record's provenance says of the task: settings, data; empty where the code is all."""
        ...

    def size(self) -> int:
        """Return how many items there are."""
        ...

    def answers(
        self,
        lm: DiffusionLM,
        start: int,
        end: int,
        seed: int,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answers:
        """Return a model's answers to the items from ``start`` up to, not including, ``end``."""
        ...

    def canvases(self, lm: DiffusionLM, seed: int, items: int) -> Canvases:
        """Return partly masked true answers of the first items, one canvas each."""
        ...

    def drafts(self, lm: DiffusionLM, seed: int, items: int) -> list[Trace]:
        """Let a model write the answers of the first items, where the task itself generates nothing."""
        ...
