"""Where, when and with what a record was measured."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dllm_qbench import __version__
from dllm_qbench.models.lm import DiffusionLM

_PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "numpy")


def provenance(reference: DiffusionLM, seed: int) -> dict[str, Any]:
    """Return plain JSON values: date, commit, versions, device, dtype, threads, seeds, checkpoint."""
    return {
        "source": "measured",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "device": device_name(reference.device),
        "dtype": str(reference.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seeds": {"items": seed},
        "checkpoint_sha256": reference.fingerprint(),
    }


@cache
def commit() -> str:
    """Return the commit of the checkout that this package runs from, ``unknown`` where there is none."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "unknown"))
    return tuple(found)


def versions() -> dict[str, str]:
    """Return the versions of what a result can depend on."""
    return {"dllm_qbench": __version__, "python": platform.python_version(), **dict(_installed())}


def device_name(device: torch.device) -> str:
    """Return the device's kind and model: results of one machine class compare bit by bit."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {_processor()}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
