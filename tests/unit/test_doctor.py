"""What the doctor says of a machine: with everything, with nothing, and with something wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from dllm_qbench import doctor
from dllm_qbench.doctor import Check, available_memory, diagnose, ready, render
from dllm_qbench.errors import QBenchError
from dllm_qbench.models.hub import MODELS, PAPER_MODELS, download_command
from dllm_qbench.models.synthetic import write_stand_ins
from dllm_qbench.tasks import paper


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which tasks have data; the test may change it."""
    there = dict.fromkeys(paper.PAPER_TASKS, True)
    monkeypatch.setattr(
        paper, "data_status", lambda task, folder: (there[task], f"{task} in {folder}")
    )
    return there


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that holds the real models."""
    monkeypatch.setattr(doctor, "available_memory", lambda: 64 * 2**30)
    usage = SimpleNamespace(free=500 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)


def named(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_an_empty_machine_is_ready_for_the_quick_tier_only(
    tmp_path: Path, data: dict[str, bool]
) -> None:
    data.update(dict.fromkeys(data, False))
    checks = diagnose(tmp_path, tmp_path / "data")
    assert ready(checks, "quick")
    assert not ready(checks, "full")
    found = named(checks)
    for name, spec in MODELS.items():
        check = found[f"model {name}"]
        assert not check.ok
        assert check.remedy == download_command(spec, tmp_path)
        assert f"{spec.bytes / 2**30:.1f} GiB in bf16" in check.detail
        assert (doctor.FULL in check.tiers) == (name in PAPER_MODELS)
    text = render(checks)
    assert "quick tier: ready" in text
    assert "full tier: missing" in text
    for name in (*(f"model {name}" for name in PAPER_MODELS), "data mmlu"):
        assert name in text.splitlines()[-1]
    assert "model llada-1.5" not in text.splitlines()[-1]


@pytest.mark.usefixtures("roomy")
def test_with_weights_and_data_the_full_tier_is_ready(
    tmp_path: Path, data: dict[str, bool]
) -> None:
    write_stand_ins(tmp_path)
    without_text = diagnose(tmp_path, tmp_path, store=tmp_path)
    assert not ready(without_text, "full")
    assert "datasets.load_dataset" in named(without_text)["calibration text"].remedy
    (tmp_path / "calibration.txt").write_text("words", encoding="utf-8")
    checks = diagnose(tmp_path, tmp_path, store=tmp_path / "not" / "yet" / "there")
    assert ready(checks, "full"), render(checks)
    found = named(checks)
    # a stand-in runs, but nobody should take it for the model
    assert "STAND-IN (d_model 128, expected 4096" in found["model llada-8b-base"].detail
    assert str(tmp_path / "LLaDA-8B-Base") in found["model llada-8b-base"].detail
    assert found["data gsm8k"].detail == f"gsm8k in {tmp_path}"
    assert f"at {tmp_path}" in found["disk"].detail
    assert "the largest model takes 1 MiB in bf16" in found["device memory"].detail
    assert render(checks).endswith("quick tier: ready\nfull tier: ready")
    data["gsm8k"] = False
    checks = diagnose(tmp_path, tmp_path)
    assert not ready(checks, "full")
    assert render(checks).endswith("full tier: missing data gsm8k")


@pytest.mark.usefixtures("data", "roomy")
def test_an_incomplete_checkpoint_is_not_ready(tmp_path: Path) -> None:
    folder = write_stand_ins(tmp_path)["dream-7b-base"]
    (folder / "model-00001-of-00002.safetensors").unlink()
    checks = diagnose(tmp_path)
    check = named(checks)["model dream-7b-base"]
    assert f"{folder} (incomplete: model-00001-of-00002.safetensors)" in check.detail
    assert check.remedy == download_command(MODELS["dream-7b-base"], tmp_path)
    assert not ready(checks, "full")


@pytest.mark.usefixtures("data", "roomy")
def test_another_model_in_the_place_of_one_is_not_ready(tmp_path: Path) -> None:
    made = write_stand_ins(tmp_path)
    (made["dream-7b-base"] / "config.json").write_bytes(
        (made["llada-8b-base"] / "config.json").read_bytes()
    )
    check = named(diagnose(tmp_path))["model dream-7b-base"]
    assert not check.ok
    assert "this is not Dream-org/Dream-v0-Base-7B: model_type 'llada'" in check.detail
    assert check.remedy.startswith("remove it, then hf download Dream-org/Dream-v0-Base-7B")


@pytest.mark.usefixtures("data")
def test_too_little_memory_or_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    found = named(diagnose(tmp_path))
    assert "8.0 GiB free on cpu; the largest model takes 14.9 GiB" in found["device memory"].detail
    assert not found["device memory"].ok
    assert not found["disk"].ok
    assert ready(list(found.values()), "quick")


@pytest.mark.usefixtures("data")
def test_a_device_that_is_not_there_is_said() -> None:
    checks = diagnose(device="cuda:77")
    found = named(checks)
    assert "device 'cuda:77' cannot be used" in found["device"].detail
    assert not ready(checks, "quick")


@pytest.mark.usefixtures("data")
def test_gpus_are_listed_with_their_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: ((10 + 20 * at) * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: f"GPU {at}")
    monkeypatch.setattr(
        "dllm_qbench.models.loading.usable_device", lambda device: torch.device(device)
    )
    for device, fits in (("cuda:0", False), ("cuda:1", True), ("cuda", False)):
        found = named(diagnose(device=device))
        assert found["cuda:0"].detail == "GPU 0, 10.0 GiB of 80.0 GiB free"
        assert found["cuda:1"].detail == "GPU 1, 30.0 GiB of 80.0 GiB free"
        assert found["device memory"].ok == fits
        assert "cuda" not in found


@pytest.mark.usefixtures("data")
def test_versions_are_compared_with_what_the_package_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = named(diagnose())
    assert found["torch"].ok
    assert found["torch"].detail == metadata.version("torch")
    real = metadata.version

    def other(name: str) -> str:
        if name == "lm-eval":
            raise metadata.PackageNotFoundError(name)
        return "4.40.0" if name == "transformers" else real(name)

    monkeypatch.setattr(metadata, "version", other)
    checks = diagnose()
    found = named(checks)
    assert found["transformers"].detail == "4.40.0, expected <6,>=5.5"
    assert found["transformers"].remedy == "pip install 'transformers<6,>=5.5'"
    assert (found["lm-eval"].ok, found["lm-eval"].detail) == (False, "not installed")
    assert not ready(checks, "quick")


@pytest.mark.usefixtures("data")
def test_sandbox_layers_are_those_that_a_child_gets(tmp_path: Path) -> None:
    found = named(diagnose())
    program = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found["sandbox namespaces"].ok == (run.stdout.strip() == "0")
    assert "sandbox Landlock" in found
    (tmp_path / "file").write_text("looking must not shut this process in")


@pytest.mark.usefixtures("data")
def test_a_sandbox_that_cannot_even_start_has_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_JAIL", Path("/nowhere/jail.py"))
    found = named(diagnose())
    assert not found["sandbox namespaces"].ok
    assert not found["sandbox Landlock"].ok
    assert ready(list(found.values()), "quick")


def test_memory_is_what_the_kernel_and_the_control_group_leave() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < available_memory() <= total


def test_marks_tell_what_is_needed_from_what_is_good_to_know() -> None:
    checks = [
        Check("one", True, "fine", "never shown"),
        Check("two", False, "lacking", "do this", ("full",)),
        Check("three", False, "absent", "or that"),
    ]
    assert render(checks) == (
        "ok      one    fine\n"
        "MISSING two    lacking\n"
        "               -> do this\n"
        "no      three  absent\n"
        "               -> or that\n"
        "quick tier: ready\n"
        "full tier: missing two"
    )
    assert (ready(checks, "quick"), ready(checks, "full")) == (True, False)
    with pytest.raises(QBenchError, match="tier 'slow' is unknown; tiers: quick, full"):
        ready(checks, "slow")


def test_extras_are_looked_up_as_installed(
    data: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = metadata.version

    def other(name: str) -> str:
        if name == "triton":
            return "3.4.0"
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return str(real(name))

    monkeypatch.setattr(metadata, "version", other)
    found = named(diagnose())
    assert (found["extra triton"].ok, found["extra triton"].detail) == (True, "3.4.0")
    assert (found["extra ray"].ok, found["extra ray"].tiers) == (False, ())
    assert "ray" in found["extra ray"].remedy
