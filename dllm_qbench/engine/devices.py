"""One GPU a worker, chosen by the environment before torch is imported. No torch here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dllm_qbench.errors import QBenchError

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"

_PROC: Final = Path("/proc/driver/nvidia/gpus")
_WORKER: Final = re.compile(r"gw(\d+)")
_GPU: Final = re.compile(r"GPU (\d+): .*?(?:\(UUID: (GPU-[\w-]+)\))?\s*")
_PART: Final = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)\s]+)\)\s*")


def choose_device(
    worker_id: str,
    worker_count: int,
    environ: Mapping[str, str],
    *,
    device: str = "cuda",
    oversubscribe: bool = False,
) -> dict[str, str]:
    """Return what a worker has to set in its environment, before torch is imported, to have its GPU.

    Args:
        worker_id: pytest-xdist's name of the worker, ``gw0`` on; ``master`` (no workers) sees all GPUs.
            One that replaces a crashed worker has a number past the count, and may share a GPU.
        worker_count: how many workers there are.
        environ: the environment as it is.
        device: as torch names it. ``cuda``: worker n gets the n-th GPU that is visible. Without CUDA
            there is nothing to choose.
        oversubscribe: let workers share GPUs, in turn.

    Raises:
        QBenchError: no GPU, more workers than GPUs, or a device that all workers would share.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or worker_id == "master":
        return {}
    found = _WORKER.fullmatch(worker_id)
    if found is None:
        raise QBenchError(f"worker {worker_id!r}: expected pytest-xdist's names, gw0 on")
    if number:
        if worker_count > 1 and not oversubscribe:
            raise QBenchError(
                f"device {device} is one GPU, and {worker_count} workers would share it: use 'cuda', and"
                " each gets its own"
            )
        return {}
    gpus, settings = visible_gpus(environ)
    if not gpus:
        hides = f" ({VISIBLE} is {environ[VISIBLE]!r})" if VISIBLE in environ else ""
        raise QBenchError(
            f"no GPU is visible here{hides}: use the device 'cpu', or another machine"
        )
    if worker_count > len(gpus) and not oversubscribe:
        raise QBenchError(
            f"{worker_count} workers, and {len(gpus)} GPUs ({', '.join(gpus)}): use at most"
            f" -n {len(gpus)}, so that each worker has its own"
        )
    return {**settings, VISIBLE: gpus[int(found[1]) % len(gpus)]}


def visible_gpus(environ: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the GPUs that CUDA would show, as ``CUDA_VISIBLE_DEVICES`` names them.

    Beside them, what else has to be set for the names to mean that: numbers from outside CUDA count by
    bus, CUDA's own by speed.
    """
    if VISIBLE in environ:
        gpus = []
        for name in environ[VISIBLE].split(","):
            # As CUDA reads it: what follows on the first name that is none is not seen.
            if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", name.strip()):
                break
            gpus.append(name.strip())
        return tuple(gpus), {}
    listed = _from_tool() or _from_driver()
    if all(name.isdecimal() for name in listed):
        return tuple(listed), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if listed else {}
    return tuple(listed), {}


def _from_tool() -> list[str]:
    try:
        run = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_listing(run.stdout)


def parse_listing(text: str) -> list[str]:
    """Return the names in what ``nvidia-smi -L`` prints: the parts of a GPU that is divided, else it.

    Numbers, if any GPU comes without its UUID.
    """
    gpus: list[tuple[str, str, list[str]]] = []
    for line in text.splitlines():
        if gpu := _GPU.fullmatch(line):
            gpus.append((gpu[1], gpu[2] or "", []))
        elif (part := _PART.fullmatch(line)) and gpus:
            gpus[-1][2].append(part[1])
    if not all(uuid for _, uuid, _ in gpus):
        return [number for number, _, _ in gpus]
    return [name for _, uuid, parts in gpus for name in parts or [uuid]]


def _from_driver(folder: Path = _PROC) -> list[str]:
    """Return the driver's own list, by bus address; numbers, where it does not know the UUIDs yet."""
    try:
        homes = sorted(folder.iterdir())
    except OSError:
        return []
    names = []
    for home in homes:
        try:
            text = (home / "information").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        found = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)\s*$", text, re.MULTILINE)
        names.append(found[1] if found else "")
    return names if all(names) else [str(n) for n in range(len(names))]
