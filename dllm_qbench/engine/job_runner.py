"""Runs the jobs of one model: finds it, quantizes it once for all its tasks, keeps what was measured.

Notable:
- the record of a job is looked up before anything is loaded but the full-precision model;
- a quantized model is written to the store, packed, and read from there by whoever needs it next;
- where a device does not hold full precision and the quantized model at once, they take turns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from dllm_qbench.engine.cells import CALIBRATION_SEED, ITEMS_SEED, AuditReport, CellRunner
from dllm_qbench.engine.jobs import Job, Setup
from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.benchmark import Benchmark
from dllm_qbench.evaluation.evaluate import Progress, find_benchmark
from dllm_qbench.evaluation.provenance import device_name, versions
from dllm_qbench.models.hub import ModelSpec, find_model, locate
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import EMBEDDED, load
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.calibration import Calibration, calibration
from dllm_qbench.quant.checkpoint import load_quantized, save_quantized
from dllm_qbench.quant.quantize import METHODS, quantize
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.records import Record
from dllm_qbench.tasks import TASKS
from dllm_qbench.tasks.calibration_text import calibration_texts, packed

if TYPE_CHECKING:
    from dllm_qbench.engine.store import Store

_SPARE: Final = 4 * 2**30  # bytes of a device beside two models' weights: activations and logits


class JobRunner(CellRunner):
    """Measures jobs of one model under one setup."""

    def __init__(self, model: str, setup: Setup, store: Store | None = None) -> None:
        super().__init__(model, 0, setup.device)
        self.setup = setup
        spec = find_model(model)
        if spec is not None and setup.profile == "paper":
            spec = spec.as_in_paper()
        self.spec: ModelSpec | None = spec
        self._keep = None if store is None else _Kept(store, setup.device)
        self._store = store
        self._both_fit = True

    def fits(self, job: Job) -> bool:
        """Whether the job is of this runner's model and setup."""
        return (job.model, job.setup) == (self.model, self.setup)

    @cached_property
    def lm(self) -> DiffusionLM:
        """The full-precision model, under the name that cells know it by."""
        folder = locate(self.model, _path(self.setup.models_dir))
        place = self.model if self.model in EMBEDDED else folder
        files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        self._both_fit = _hold(self.device, 2 * files + _SPARE)
        home = self.device if self._both_fit else "cpu"
        found = load(place, getattr(torch, self.setup.dtype), home)
        if self.spec is not None:
            found = replace(found, name=self.spec.name)
        found.fingerprint()
        return found

    @cached_property
    def stands_in(self) -> bool:
        """Whether the checkpoint has another size than the model whose name it bears."""
        return self.spec is not None and not self.spec.is_real(self.lm.config)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration data that every method gets: real text for a real model."""
        if self.spec is None:
            return calibration(self.lm, seed=CALIBRATION_SEED)
        count, length = (8, 64) if self.setup.profile == "brief" else (128, 2048)
        length = min(length, int(self.lm.config.max_position_embeddings))
        texts, source = calibration_texts(_path(self.setup.data_dir))
        data = calibration(
            self.lm, CALIBRATION_SEED, count, ids=packed(self.lm, texts, count, length)
        )
        return replace(data, recipe={**data.recipe, "source": source})

    def benchmark(self, task: str) -> Benchmark:
        """Return the task: one of the embedded families, or one of the paper's."""
        if task in TASKS:
            return find_benchmark(task)
        from dllm_qbench.evaluation.paper_benchmark import paper_benchmark

        return paper_benchmark(
            task,
            data_dir=_path(self.setup.data_dir),
            model=None if self.spec is None else self.spec.fitted_to(self.lm),
            profile="brief" if self.setup.profile == "brief" else "paper",
            run_programs=self.setup.run_programs,
        )

    def run(self, job: Job, progress: Progress | None = None) -> Record:
        """Return the job's record: the store's, or measured now.

        Raises:
            QBenchError: weights or data are missing or unusable, or memory does not suffice.
        """
        if job.method not in METHODS:
            raise QBenchError(f"method {job.method!r} is unknown; methods: {', '.join(METHODS)}")
        try:
            benchmark = self.benchmark(job.task)
            self.items = min(benchmark.size(), self.setup.items or benchmark.size())
            if self._keep is None:
                return self._measured(job, benchmark, progress)
            key = {**self._subject(job), "items": self.items, "items_seed": ITEMS_SEED}
            key |= {"task": benchmark.family, "task_sha256": benchmark.digest}
            made = self._keep.compute(
                "records", key, lambda: self._measured(job, benchmark, progress).to_dict()
            )
            return Record.from_dict(made, f"{self._store}: record of {job.cell}")
        except torch.OutOfMemoryError as error:
            raise QBenchError(
                f"{job.model} {job.cell}: out of memory on {self.device}:"
                f" {str(error).splitlines()[0]}; what was measured is kept: free the device, or take"
                " another, and run again"
            ) from error

    def release_quantized(self) -> None:
        """Let go of quantized models: the next group has another one."""
        self._quantized.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def quantized(self, method: str, scheme: str | Scheme, **parameters: Any) -> DiffusionLM:
        """The model quantized by a method; read from the store if it is there."""
        key = (method, str(Scheme.parse(scheme)), *sorted(parameters.items()))
        if self._store is None or self._keep is None or parameters:
            return super().quantized(method, scheme, **parameters)
        if key not in self._quantized:
            subject = self._keep.key(self._subject(Job(self.model, method, str(scheme), "")))
            place = self._store.folder_for("quantized", subject)
            while not place.is_dir():
                with self._store.lease("quantized", subject, wait=True) as ours:
                    if ours and not place.is_dir():
                        self._quantize_into(place, method, scheme)
            # What others read is what this process goes on with.
            home = self.device if self._both_fit else "cpu"
            self._quantized[key] = load_quantized(place, home, source=self.lm.fingerprint())
        return self._quantized[key]

    def _quantize_into(self, place: Path, method: str, scheme: str | Scheme) -> None:
        if not self._both_fit:
            self.lm.model.to("cpu")  # the method takes it to the device block by block
        made = quantize(self.lm, method, scheme, calibration=self.calibration, device=self.device)
        save_quantized(made, place, source=self.lm.fingerprint())
        del made
        gc.collect()

    def audited(self, quantized: DiffusionLM) -> AuditReport:
        """Audit a quantized model, once; with ``cheap`` audits, by those that do not quantize again."""
        if quantized not in self._audited and self.setup.audits == "cheap":
            self._audited[quantized] = self._audit(quantized, EXPENSIVE)
        return super().audited(quantized)

    def _measured(self, job: Job, benchmark: Benchmark, progress: Progress | None) -> Record:
        told = progress or _nothing_said
        told(0, 0, f"{job.cell}: quantizing")
        quantized = self.quantized(job.method, job.scheme)
        told(0, 0, f"{job.cell}: auditing")
        self.audited(quantized)
        told(0, 0, f"{job.cell}: measuring")
        record = self.measure(
            quantized,
            benchmark,
            progress,
            keep=self._keep,
            bring=self._bring,
        )
        if self.spec is None:
            return record
        origin = {
            "hub_id": self.spec.hub_id,
            "revision": self.spec.revision,
            "profile": self.setup.profile,
            "stands_in": self.stands_in,
        }
        return replace(record, provenance={**record.provenance, "model": origin})

    def _subject(self, job: Job) -> dict[str, Any]:
        """Name all that a quantized model depends on, but for code and device."""
        chosen = METHODS[job.method]
        return {
            "model": self.lm.name,
            "weights_sha256": self.lm.fingerprint(),
            "dtype": self.setup.dtype,
            "method": job.method,
            "scheme": str(Scheme.parse(job.scheme)),
            "parameters": chosen.parameters,
            "calibration": dict(self.calibration.recipe) if chosen.calibrates else None,
            "audits": self.setup.audits,
        }

    def _bring(self, lm: DiffusionLM) -> None:
        """Move a model to the device, and the others off it where they do not fit together."""
        if not self._both_fit:
            for other in (self.lm, *self._quantized.values()):
                if other is not lm:
                    other.model.to("cpu")
            torch.cuda.empty_cache()
            lm.model.to(self.device)


class _Kept:
    """The store, with what every key says beside: code, libraries, class of device."""

    def __init__(self, store: Store, device: str) -> None:
        from dllm_qbench.engine.store import code_version

        self._store = store
        self._environment = {
            "code": code_version(),
            "versions": versions(),
            "device": device_name(torch.device(device)),
        }

    def key(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return a key with its environment."""
        return {**key, "environment": self._environment}

    def compute(self, kind: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return what is kept; made once, by one of all processes that share the store."""
        whole = self.key(key)
        kept = self._store.get(kind, whole)
        while kept is None:
            with self._store.lease(kind, whole, wait=True) as ours:
                kept = self._store.get(kind, whole)
                if kept is None and ours:
                    kept = make()
                    self._store.put(kind, whole, kept)
        return kept


def _hold(device: str, wanted: int) -> bool:
    """Whether a device has so many bytes in all; a CPU's memory is taken to suffice."""
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        return True
    return int(torch.cuda.get_device_properties(place).total_memory) >= wanted


def _nothing_said(done: int, total: int, label: str) -> None:
    """Progress that nobody looks at."""


def _path(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder)
