"""A cell as a job: named by strings alone, so that it can be run here, elsewhere, or again.

A job says what to measure (model, method, scheme, task) and how (:class:`Setup`). What is true of a
job's record on one machine is true on every machine of its class: the record depends on nothing else.

No torch here: a scheduler can make, split and compare jobs without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from dllm_qbench.errors import QBenchError

if TYPE_CHECKING:
    from dllm_qbench.engine.job_runner import JobRunner
    from dllm_qbench.engine.store import Store
    from dllm_qbench.evaluation.evaluate import Progress
    from dllm_qbench.records import Record

Profile = Literal["paper", "release", "brief"]
Audits = Literal["all", "cheap"]
DTYPES: Final = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Setup:
    """How the jobs of one run are measured.

    Attributes:
        device: where models run, as torch names it.
        dtype: of the weights in full precision.
        items: at most how many items of each task, from the first; ``None`` means all of them.
        models_dir, data_dir: folders with checkpoints and with data; ``None``: the hub's local caches.
        profile: ``paper`` runs models and tasks as the quantization paper did; ``release`` runs the models
            as their makers did (chat template, suppressed ends of text); ``brief`` does so with few Monte
            Carlo samples and denoising steps: the whole path in little time, no figure to compare.
        run_programs: whether generated programs may be run, in the sandbox.
        audits: ``all``, or only the ``cheap`` ones, which do not quantize again.
    """

    device: str = "cpu"
    dtype: str = "float32"
    items: int | None = None
    models_dir: str | None = None
    data_dir: str | None = None
    profile: Profile = "paper"
    run_programs: bool = False
    audits: Audits = "all"

    def __post_init__(self) -> None:
        for name, known in (
            ("dtype", DTYPES),
            ("profile", get_args(Profile)),
            ("audits", get_args(Audits)),
        ):
            if getattr(self, name) not in known:
                raise QBenchError(
                    f"setup: {name} is {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )
        if self.items is not None and (type(self.items) is not int or self.items < 1):
            raise QBenchError(
                f"setup: items is {self.items!r}, expected a count of at least 1, or None for all"
            )


@dataclass(frozen=True)
class Job:
    """One cell to be measured.

    Attributes:
        model: an embedded model, one of ``models.hub.MODELS``, or a checkpoint folder.
        method, scheme, task: the parts of the cell's name.
    """

    model: str
    method: str
    scheme: str
    task: str
    setup: Setup = field(default_factory=Setup)

    @property
    def cell(self) -> str:
        """``method/scheme/task``."""
        return f"{self.method}/{self.scheme}/{self.task}"

    @property
    def subject(self) -> tuple[str, str, str]:
        """What the jobs share that need the same quantized model."""
        return self.model, self.method, self.scheme

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Inverse of ``to_dict``; a missing or unknown field is an error that names it."""
        values = dict(data)
        setup = values.get("setup", {})
        for where, given, wanted in (("job", values, cls), ("setup", setup, Setup)):
            known = {entry.name for entry in fields(wanted)}
            if odd := sorted(set(given) - known):
                raise QBenchError(f"{where}: unknown field {odd[0]!r}")
        if missing := sorted({"model", "method", "scheme", "task"} - set(values)):
            raise QBenchError(f"job: field {missing[0]!r} is missing")
        return cls(**{**values, "setup": Setup(**setup)})


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs by quantized model, models together, each in the order of first appearance."""
    subjects = {job.subject: n for n, job in reversed(list(enumerate(jobs)))}
    models = {job.model: n for n, job in reversed(list(enumerate(jobs)))}
    ranked = sorted(jobs, key=lambda job: (models[job.model], subjects[job.subject]))
    return [list(group) for _, group in groupby(ranked, key=lambda job: job.subject)]


def execute(
    jobs: Sequence[Job],
    store: Store | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Job, Record | Exception]]:
    """Run jobs in this process, those of one quantized model after each other.

    Yields each job with its record as soon as it is measured, or with the error that prevented it: one
    job's error does not keep the others from running. What ``store`` holds is not measured again.
    """
    runner: JobRunner | None = None
    for group in grouped(jobs):
        for job in group:
            if runner is None or not runner.fits(job):
                from dllm_qbench.engine.job_runner import JobRunner

                runner = JobRunner(job.model, job.setup, store)
            try:
                yield job, runner.run(job, progress)
            except Exception as error:
                yield job, error
        if runner is not None:
            runner.release_quantized()


def execute_dicts(
    jobs: Sequence[Mapping[str, Any]], store_folder: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run jobs given as ``Job.to_dict`` writes them, for engines that send them elsewhere as JSON.

    Yields the job's index with ``{"record": ...}``, or with ``{"error": text, "kind": class}``.
    """
    from dllm_qbench.engine.store import Store

    parsed = [Job.from_dict(job) for job in jobs]
    places = {job: n for n, job in enumerate(parsed)}
    store = None if store_folder is None else Store(Path(store_folder))
    for job, result in execute(parsed, store):
        if isinstance(result, Exception):
            yield places[job], {"error": str(result), "kind": type(result).__name__}
        else:
            yield places[job], {"record": result.to_dict()}
