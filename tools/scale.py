"""A dry run at a true size: load, quantize, audit, save, reload and evaluate random weights.

Weights are random (:mod:`dllm_qbench.models.synthetic`), so no score means anything; time and memory do.
Each stage is timed, and its peak memory is read from the kernel (``VmHWM``, reset before every stage)
and, on CUDA, from torch.

Run: ``python -m tools.scale --size 1b --methods rtn,gptq --sequences 8 --length 256``, with
``--markdown docs/scale.md`` to put the table where it belongs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import dllm_qbench as qb
from dllm_qbench.diffusion.by_model import log_likelihoods
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.synthetic import write_checkpoint
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.checkpoint import load_quantized, save_quantized

GIB = 2**30
SCHEMES = {"rtn": "W4A16-g128", "gptq": "W4A16-g128", "awq": "W4A16-g128",
           "smoothquant": "W8A8", "quarot": "W4A4", "duquant": "W4A4"}  # fmt: skip
START, END = "<!-- measured -->", "<!-- end of measured -->"
# The released vocabulary: the two matrices that no method quantizes are a third of a model of this size.
VOCABULARY = {"vocab_size": 126464, "mask_token_id": 126336, "eos_token_id": 126081,
              "pad_token_id": 126081}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage's cost.

    Attributes:
        name: what was done.
        seconds: wall clock.
        peak: bytes that the process held at most meanwhile, all of it.
        before: bytes that it held when the stage began.
        device_peak: bytes on the CUDA device, ``None`` without one.
    """

    name: str
    seconds: float
    peak: int
    before: int
    device_peak: int | None = None


@dataclass
class Run:
    """All stages of a dry run, and where it ran."""

    parameters: int = 0
    stages: list[Stage] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside, and watch its memory."""
        gc.collect()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = reset_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        on_device = torch.cuda.max_memory_allocated() if cuda else None
        made = Stage(name, seconds, peak_since(before), before, on_device)
        self.stages.append(made)
        print(f"{name:<28} {seconds:9.1f} s {made.peak / GIB:8.2f} GiB", flush=True)


def status(field_: str) -> int:
    """Return a line of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_ + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field_}: peak memory is read from Linux")


def reset_peak() -> int:
    """Start a new peak, and return the bytes held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak_since(before: int) -> int:
    """Return the most bytes held since :func:`reset_peak` returned ``before``.

    The kernel sums a process's pages from counters that its processors bring up to date in batches, so a
    peak may read a few pages less than what was held a moment earlier; it is never below either reading.
    """
    return max(before, status("VmHWM"), status("VmRSS"))


def evaluate(lm: DiffusionLM, items: int = 4, length: int = 24, samples: int = 8) -> dict[str, Any]:
    """Estimate likelihoods of a few random requests and generate once: ids in, ids out."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(8, int(lm.config.vocab_size) - 256, (items, length), generator=generator)
    drawn = torch.where(drawn == lm.mask_id, 7, drawn)
    half = length // 2
    requests = [(row[:half].tolist(), row[half:].tolist(), seed) for seed, row in enumerate(drawn)]
    scores = log_likelihoods(lm, requests, samples=samples)
    made = lm.generate(drawn[0, :half].tolist(), gen_length=8, steps=4, block_length=8)
    if not all(score < 0 for score in scores) or lm.mask_id in made.tolist():
        raise RuntimeError(f"evaluation of {lm.name}: scores {scores}, generated {made.tolist()}")
    return {"scores": scores, "generated": made[half:].tolist()}


def dry_run(
    folder: Path, family: str, size: str, methods: dict[str, str], sequences: int, length: int,
    dtype: torch.dtype, device: str | None = None, audits: str = "cheap", **overrides: Any,
) -> Run:  # fmt: skip
    """Go through all stages, once a method; ``folder`` takes the checkpoints.

    Args:
        folder: an empty folder; what is written is removed as soon as it has been read.
        family, size, **overrides: of the checkpoint, see ``official_config``.
        methods: method -> scheme.
        sequences, length: calibration, of random tokens.
        dtype: the model's.
        device: where to compute; the model lives on the CPU.
        audits: ``"cheap"`` leaves out those that quantize again, ``"all"`` does not.
    """
    run = Run()
    checkpoint = folder / f"{family}-{size}"
    with run.stage("write the checkpoint"):
        write_checkpoint(checkpoint, family, size=size, dtype=dtype, **overrides)
    with run.stage("load"):
        lm = qb.load(checkpoint, dtype=dtype)
    shutil.rmtree(checkpoint)
    run.parameters = sum(p.numel() for p in lm.model.parameters())
    with run.stage("calibration data"):
        data = qb.calibration(lm, sequences=sequences, length=length)
    with run.stage("evaluate full precision"):
        evaluate(lm)
    for method, scheme in methods.items():
        with run.stage(f"{method} {scheme}: quantize"):
            made = qb.quantize(lm, method, scheme, data, device=device)
        with run.stage(f"{method}: audit"):
            skip = EXPENSIVE if audits == "cheap" else ()
            findings = qb.audit(made, lm, data, skip=skip)
        place = folder / method
        with run.stage(f"{method}: save"):
            save_quantized(made, place)
        before = evaluate(made)
        del made
        with run.stage(f"{method}: reload"):
            again = load_quantized(place)
        with run.stage(f"{method}: evaluate"):
            after = evaluate(again)
        del again
        if before != after:
            raise RuntimeError(f"{method}: the reloaded model does not do what the saved one did")
        raw = json.loads((place / "recipe.json").read_text())
        run.notes[method] = {
            "findings": [str(finding) for finding in findings],
            "bits_per_weight": raw["bits_per_weight"],
            "bytes": sum(path.stat().st_size for path in place.iterdir()),
        }
        shutil.rmtree(place)
    return run


def table(run: Run, title: str) -> str:
    """Return the stages as Markdown."""
    device = any(stage.device_peak is not None for stage in run.stages)
    head = "| stage | time | peak memory |" + (" device |" if device else "")
    rows = [title, "", head, "|---|---:|---:|" + ("---:|" if device else "")]
    for stage in run.stages:
        row = f"| {stage.name} | {stage.seconds:.1f} s | {stage.peak / GIB:.2f} GiB |"
        if device:
            row += f" {(stage.device_peak or 0) / GIB:.2f} GiB |"
        rows.append(row)
    whole = sum(stage.seconds for stage in run.stages)
    most = max(stage.peak for stage in run.stages)
    rows += [f"| **all** | **{whole:.0f} s** | **{most / GIB:.2f} GiB** |", ""]
    for method, note in run.notes.items():
        found = "; ".join(note["findings"]) or "none"
        rows.append(
            f"- {method}: {note['bits_per_weight']:.3f} bits a weight, {note['bytes'] / GIB:.2f} GiB"
            f" on disk; findings of the audits: {found}"
        )
    return "\n".join(rows) + "\n"


def put_table(path: Path, text: str) -> None:
    """Replace what stands between the marks of a Markdown file."""
    whole = path.read_text(encoding="utf-8")
    before, _, rest = whole.partition(START)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{path}: expected the lines {START} and {END}")
    path.write_text(f"{before}{START}\n\n{text}\n{END}{after}", encoding="utf-8")


def main(argv: list[str] | None = None, out: Callable[[str], None] = print) -> Run:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="llada", choices=["llada", "illada", "Dream"])
    parser.add_argument("--size", default="tiny", choices=["tiny", "1b", "8b"])
    parser.add_argument(
        "--methods", default="rtn,gptq", help="comma-separated; method=scheme to choose"
    )
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", help="where to compute; the model lives on the CPU")
    parser.add_argument("--audits", default="cheap", choices=["cheap", "all"])
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--markdown", type=Path, help="a file with the marks, such as docs/scale.md"
    )
    args = parser.parse_args(argv)
    methods = {}
    for asked in args.methods.split(","):
        method, _, scheme = asked.partition("=")
        methods[method] = scheme or SCHEMES[method]
    # The 1b size is given the released vocabulary: the two matrices outside the blocks weigh the most.
    vocabulary = VOCABULARY if (args.family, args.size) == ("llada", "1b") else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = dry_run(
            Path(folder), args.family, args.size, methods, args.sequences, args.length,
            getattr(torch, args.dtype), args.device, args.audits, **vocabulary,
        )  # fmt: skip
    title = (
        f"{args.family} {args.size}: {run.parameters / 1e9:.2f} B parameters in {args.dtype},"
        f" calibration {args.sequences} x {args.length} tokens; {time.strftime('%Y-%m-%d')},"
        f" torch {torch.__version__}, {torch.get_num_threads()} threads on {_processor()}"
        + (f", computed on {args.device}" if args.device else "")
    )
    text = table(run, title)
    out(text)
    if args.json is not None:
        args.json.write_text(json.dumps({"title": title, **asdict(run)}, indent=1) + "\n")
    if args.markdown is not None:
        put_table(args.markdown, text)
    return run


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    main()
