"""What this machine can run, and what is missing: one check a line, each with its remedy.

Notable: every check tries the thing itself (makes a tensor on the device, opens a namespace in a child,
looks for the weights where a run would look), and none of them downloads or loads anything large.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from dllm_qbench.errors import CheckpointError, QBenchError
from dllm_qbench.models.hub import (
    MODELS,
    PAPER_MODELS,
    MissingWeights,
    download_command,
    locate,
    read_json,
)

QUICK: Final = "quick"
FULL: Final = "full"
TIERS: Final = (QUICK, FULL)
_PACKAGE = "dllm-qbench"
_LIBRARIES = ("torch", "transformers", "lm-eval")
_EXTRAS = {
    "ray": "pip install 'ray'  (spreads the full tier over hosts)",
    "pytest-xdist": "pip install 'pytest-xdist'  (spreads tests over cores and GPUs)",
    "triton": "pip install 'triton'  (kernels on NVIDIA GPUs; comes with torch's CUDA builds)",
}
_GIB: Final = 2**30
_JAIL = Path(__file__).parent / "evaluation" / "sandbox" / "jail.py"
# What the sandbox itself does, tried out in a child of its own, which it changes for good.
_TRY_SANDBOX = """
import ctypes, json, runpy, sys
jail = runpy.run_path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
flags = jail["_NEW_USER"] | jail["_NEW_NET"] | jail["_NEW_PID"] | jail["_NEW_IPC"]
print(json.dumps([libc.unshare(flags) == 0, bool(jail["forbid_changes"](libc))]))
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as a run needs it.
        detail: what was found.
        remedy: what to do where it is not ok.
        tiers: which tiers cannot run without it; none: it is good to know.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    tiers: tuple[str, ...] = ()


def diagnose(
    models_dir: Path | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    store: Path | None = None,
) -> list[Check]:
    """Look at this machine.

    Args:
        models_dir: where released models are looked for, beside the Hugging Face cache.
        data_dir: where the paper's data sets are looked for.
        device: what the models will run on.
        store: the folder of results; by default the working folder's disk is looked at.
    """
    return [
        *_software(),
        *_hardware(device, store, _largest(models_dir)),
        *_models(models_dir),
        *_tasks(data_dir),
        *_sandbox(),
        *_extras(),
    ]


def ready(checks: Sequence[Check], tier: str) -> bool:
    """Whether nothing that a tier needs is missing.

    Raises:
        QBenchError: an unknown tier.
    """
    if tier not in TIERS:
        raise QBenchError(f"tier {tier!r} is unknown; tiers: {', '.join(TIERS)}")
    return all(check.ok for check in checks if tier in check.tiers)


def render(checks: Sequence[Check]) -> str:
    """Return the checks as text, with a verdict for each tier at the end."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = "ok" if check.ok else "MISSING" if check.tiers else "no"
        lines.append(f"{mark:<8}{check.name:<{width}}  {check.detail}")
        if check.remedy and not check.ok:
            lines.append(f"{'':<8}{'':<{width}}  -> {check.remedy}")
    for tier in TIERS:
        lacking = [check.name for check in checks if tier in check.tiers and not check.ok]
        verdict = f"missing {', '.join(lacking)}" if lacking else "ready"
        lines.append(f"{tier} tier: {verdict}")
    return "\n".join(lines)


def _software() -> Iterator[Check]:
    required = _requirements()
    yield Check("python", True, platform.python_version(), tiers=TIERS)
    for name in _LIBRARIES:
        wanted = required.get(name)
        spelled = f"pip install '{wanted or name}'"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, False, "not installed", spelled, TIERS)
            continue
        fits = wanted is None or wanted.specifier.contains(found, prereleases=True)
        detail = found if fits else f"{found}, expected {wanted.specifier if wanted else ''}"
        yield Check(name, fits, detail, spelled, TIERS)


def _requirements() -> dict[str, Requirement]:
    """Return what the installed package asks for; nothing where it runs from its source tree alone."""
    try:
        lines = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in lines]
    return {each.name: each for each in found if each.marker is None}


def _hardware(device: str, store: Path | None, needed: int) -> Iterator[Check]:
    import torch

    from dllm_qbench.models.loading import usable_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cpu", True, f"{cores} core(s), {torch.get_num_threads()} torch thread(s)")
    memory = available_memory()
    yield Check("memory", True, f"{_gib(memory)} available")
    free: dict[str, int] = {"cpu": memory}
    for index in range(torch.cuda.device_count()):
        left, whole = torch.cuda.mem_get_info(index)
        free[f"cuda:{index}"] = left
        name = torch.cuda.get_device_name(index)
        yield Check(f"cuda:{index}", True, f"{name}, {_gib(left)} of {_gib(whole)} free")
    if len(free) == 1:
        remedy = "the quick tier needs none; the full tier is meant for one"
        yield Check("cuda", False, "no CUDA device", remedy)
    try:
        place = usable_device(device)
    except QBenchError as error:
        yield Check("device", False, str(error), "name another with --qbench-device", TIERS)
    else:
        yield Check("device", True, str(place), tiers=TIERS)
        key = f"cuda:{place.index or 0}" if place.type == "cuda" else "cpu"
        yield Check(
            "device memory",
            free[key] >= needed,
            f"{_gib(free[key])} free on {key}; the largest model takes {_gib(needed)} in bf16, and what"
            " it computes comes on top",
            "take a device with more memory, or free this one",
            (FULL,),
        )
    where = (store or Path.cwd()).absolute()
    while not where.exists():
        where = where.parent
    left = shutil.disk_usage(where).free
    yield Check(
        "disk",
        left >= needed,
        f"{_gib(left)} free at {where}; each quantized model that is kept takes up to {_gib(needed)}",
        "put the store on a larger disk",
        (FULL,),
    )


def _largest(models_dir: Path | None) -> int:
    """Return the bytes of the paper's largest model in bf16, as found: a stand-in is small."""
    sizes = []
    for name in PAPER_MODELS:
        try:
            files = locate(name, models_dir).glob("*.safetensors")
            sizes.append(sum(path.stat().st_size for path in files))
        except CheckpointError:
            sizes.append(MODELS[name].bytes)
    return max(sizes)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take, as its control group limits it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        table = dict(line.split(":", 1) for line in lines)
        left = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (group / name).read_text(encoding="ascii").strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return left
    return left if limit == "max" else min(left, max(0, int(limit) - int(used)))


def _models(models_dir: Path | None) -> Iterator[Check]:
    for spec in MODELS.values():
        tiers = (FULL,) if spec.name in PAPER_MODELS else ()
        name = f"model {spec.name}"
        size = f"{_gib(spec.bytes)} in bf16"
        command = download_command(spec, models_dir)
        try:
            folder = locate(spec.name, models_dir)
            different = spec.differences(read_json(folder / "config.json"))
        except MissingWeights as error:
            partly = [place for place in error.looked if "incomplete" in place]
            found = "; ".join(partly) or f"{spec.hub_id} is not here"
            yield Check(name, False, f"{found}; {size}", command, tiers)
        except CheckpointError as error:
            yield Check(name, False, str(error), f"remove it, then {command}", tiers)
        else:
            found = f"STAND-IN ({'; '.join(different[:2])})" if different else size
            yield Check(name, True, f"{found}, at {folder}", tiers=tiers)


def _tasks(data_dir: Path | None) -> Iterator[Check]:
    from dllm_qbench.tasks.calibration_text import COMMAND as CALIBRATION_COMMAND
    from dllm_qbench.tasks.calibration_text import calibration_status
    from dllm_qbench.tasks.paper import PAPER_TASKS, data_status

    there, detail = calibration_status(data_dir)
    yield Check("calibration text", there, detail, CALIBRATION_COMMAND, (FULL,))
    for task in PAPER_TASKS:
        there, detail = data_status(task, data_dir)
        yield Check(f"data {task}", there, detail, tiers=(FULL,))  # the detail says how to get it


def _sandbox() -> Iterator[Check]:
    remedy = (
        "programs still run with limits and an audit hook; a container or a newer kernel adds this"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TRY_SANDBOX, str(_JAIL)],
        capture_output=True,
        text=True,
        check=False,
    )
    layers = json.loads(run.stdout) if run.returncode == 0 else [False, False]
    for name, there in zip(("namespaces", "Landlock"), layers, strict=True):
        detail = "available" if there else "the kernel does not offer it to this user"
        yield Check(f"sandbox {name}", there, detail, remedy)


def _extras() -> Iterator[Check]:
    for name, remedy in _EXTRAS.items():
        try:
            yield Check(f"extra {name}", True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(f"extra {name}", False, "not installed", remedy)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.0f} MiB"
