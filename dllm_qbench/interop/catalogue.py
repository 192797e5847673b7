"""What the other modules here wrap, listed: every cell that other libraries get, without importing them."""

from __future__ import annotations

from importlib import import_module, util

from dllm_qbench.interop.library import Foreign

# Module here -> what must be importable for it.
MODULES = {
    "llmcompressor": "llmcompressor",
    "torchao": "torchao",
    "modelopt": "modelopt",
    "quanto": "optimum.quanto",
    "bitsandbytes": "bitsandbytes",
    "hqq": "hqq",
}


def subjects() -> dict[str, Foreign]:
    """Return every subject by the name that ``--qbench-subject`` takes."""
    found = {}
    for module in MODULES:
        name = f"dllm_qbench.interop.{module}"
        for attribute, value in vars(import_module(name)).items():
            if isinstance(value, Foreign):
                found[f"{name}:{attribute}"] = value
    return found


def missing(subject: str) -> str | None:
    """Return why a subject cannot run here, ``None`` where it can."""
    module = subject.partition(":")[0].rpartition(".")[2]
    wanted = MODULES[module]
    # One part after the other: find_spec would fail on a package whose parent is missing.
    for end in range(1, wanted.count(".") + 2):
        part = ".".join(wanted.split(".")[:end])
        if util.find_spec(part) is None:
            return f"{part} is not installed"
    return None
