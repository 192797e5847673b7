"""What a timing may be compared with: the class of a machine, its processor, its clocks. No torch."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from dllm_qbench import __version__

CPUINFO: Final = Path("/proc/cpuinfo")
STAT: Final = Path("/proc/stat")
_PACKAGES: Final = ("torch", "numpy", "numba", "triton", "pytest-benchmark")
# The widest level whose flag the processor has; kernels and torch choose their code by these.
_LEVELS: Final = (
    ("amx", ("amx_int8", "amx_tile")),
    ("avx512_bf16", ("avx512_bf16",)),
    ("avx512_vnni", ("avx512_vnni",)),
    ("avx512", ("avx512f",)),
    ("avx_vnni", ("avx_vnni",)),
    ("avx2", ("avx2",)),
    ("sve", ("sve",)),
    ("i8mm", ("i8mm",)),
    ("neon", ("asimd", "neon")),
)


@dataclass(frozen=True)
class Machine:
    """A machine as far as ratios depend on it.

    Attributes:
        architecture: as ``platform.machine`` says; of a GPU ``cuda``.
        level: widest instructions (``avx512_bf16``, ``avx2``, ``neon``); of a GPU its model.
        cores: that this process may run on; 0 for a GPU.
        threads: that torch runs.
        processor: model with family and model number, for people and to know another chip by.
    """

    architecture: str
    level: str
    cores: int
    threads: int
    processor: str

    @property
    def name(self) -> str:
        """The class, which names the file of stored ratios: ``x86_64-avx512_bf16-2cores``.

        Fewer threads than cores make a class of their own: ratios are others then.
        """
        if not self.cores:
            return f"{self.architecture}-{self.level}"
        threads = "" if self.threads == self.cores else f"-{self.threads}threads"
        return f"{self.architecture}-{self.level}-{self.cores}cores{threads}"


def this_machine(threads: int, gpu: str | None = None, cpuinfo: Path = CPUINFO) -> Machine:
    """Describe the machine that this runs on, or its GPU of this name."""
    facts = _facts(cpuinfo)
    processor = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        processor += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    if gpu is not None:
        plain = re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")
        return Machine("cuda", plain, 0, threads, gpu)
    return Machine(platform.machine() or "unknown", _level(facts), _cores(), threads, processor)


def megahertz(cpuinfo: Path = CPUINFO) -> float | None:
    """Return the mean clock of the cores just now, where the system says it."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return None
    found = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([0-9.]+)", text, re.MULTILINE)]
    return sum(found) / len(found) if found else None


class Neighbours:
    """How many cores other processes keep busy, between two looks at the system's own account.

    Linux counts what all processes (and, as stolen, other virtual machines) took of the processor, in
    hundredths of a second; what this process took is taken off.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._before = self._look()

    def cores(self) -> float | None:
        """Return the mean since the last look; ``None`` where the system does not tell."""
        now, before = self._look(), self._before
        self._before = now
        if now is None or before is None or now[0] - before[0] < 0.1:
            return None
        others = (now[1] - before[1]) - (now[2] - before[2])
        return max(0.0, others / (now[0] - before[0]))

    def _look(self) -> tuple[float, float, float] | None:
        """Return seconds of the clock, of all processes, and of this one."""
        try:
            first = self._stat.read_text(encoding="utf-8").splitlines()[0].split()
            busy = sum(
                int(first[place]) for place in (1, 2, 3, 6, 7, 8)
            )  # all but idle and waiting
            ticks = os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return None
        return time.monotonic(), busy / ticks, time.process_time()


def package_versions() -> dict[str, str]:
    """Return the versions that a timing depends on; packages that are not installed are left out."""
    found = {"dllm_qbench": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(machine: Machine) -> dict[str, Any]:
    """Return what a saved run says of the machine, as plain JSON values."""
    return {
        "machine_class": machine.name,
        "processor": machine.processor,
        "cores": machine.cores,
        "threads": machine.threads,
        "megahertz": megahertz(),
        "versions": package_versions(),
    }


def _facts(cpuinfo: Path) -> Mapping[str, str]:
    """Return what the first core says of itself."""
    try:
        first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _level(facts: Mapping[str, str]) -> str:
    flags = {*facts.get("flags", facts.get("Features", "")).split()}
    for level, wanted in _LEVELS:
        if flags & {*wanted}:
            return level
    return "plain"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
