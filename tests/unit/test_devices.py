"""One GPU a worker: which one, from what a machine says of its GPUs, and without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dllm_qbench.engine import devices
from dllm_qbench.engine.devices import choose_device, parse_listing, visible_gpus
from dllm_qbench.errors import QBenchError

MODULE = "dllm_qbench.pytest_plugin"
ROOT = Path(__file__).parents[2]
A, B = "GPU-11111111-aaaa-0000-0000-000000000001", "GPU-22222222-bbbb-0000-0000-000000000002"
PART = "MIG-33333333-cccc-0000-0000-000000000003"
# As the tool prints it (form from NVIDIA's manual).
TWO = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\nGPU 1: NVIDIA GeForce (TM) X (UUID: {B})\n"
DIVIDED = (
    f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})\n"
    f"  MIG 3g.20gb     Device  0: (UUID: {PART})\n"
    f"  MIG 3g.20gb     Device  1: (UUID: MIG-{A}/2/0)\n"
    f"GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})\n"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the tool and without the driver; its folder of programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "_PROC", tmp_path / "none")
    monkeypatch.setattr(devices._from_driver, "__defaults__", (tmp_path / "none",))
    return tmp_path


def tool(folder: Path, prints: str, status: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{prints}END\nexit {status}\n"
    )
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("0", ["0"]),
        ("2,0,1", ["2", "0", "1"]),
        (f"{B}, {A}", [B, A]),
        (f"GPU-2222,{PART}", ["GPU-2222", PART]),
        ("0,-1,1", ["0"]),
        ("1,x,0", ["1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        (" ", []),
    ],
)
def test_visible_gpus_are_read_as_cuda_reads_them(visible: str, gpus: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == (tuple(gpus), {})


def test_worker_n_gets_the_nth_visible_gpu() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": f"3,{A},1"}
    chosen = [choose_device(f"gw{n}", 3, environ) for n in range(3)]
    assert chosen == [{"CUDA_VISIBLE_DEVICES": name} for name in ("3", A, "1")]
    assert choose_device("gw1", 2, environ) == {"CUDA_VISIBLE_DEVICES": A}
    # The fourth worker of three: one had crashed.
    assert choose_device("gw3", 3, environ) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_without_the_variable_the_tool_is_asked(machine: Path) -> None:
    tool(machine, TWO)
    assert [choose_device(f"gw{n}", 2, {})["CUDA_VISIBLE_DEVICES"] for n in (0, 1)] == [A, B]
    tool(machine, TWO, status=9)
    assert visible_gpus({}) == ((), {})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (TWO, [A, B]),
        (DIVIDED, [PART, f"MIG-{A}/2/0", B]),
        ("GPU 0: Old One\nGPU 1: Old One\n", ["0", "1"]),
        ("No devices found.\n", []),
        ("", []),
    ],
)
def test_listing_of_the_tool(text: str, names: list[str]) -> None:
    assert parse_listing(text) == names


def driver(folder: Path, *uuids: str) -> Path:
    for n, uuid in enumerate(uuids):
        home = folder / f"0000:{n + 1:02x}:00.0"
        home.mkdir(parents=True)
        text = f"Model: \t\t NVIDIA X\nIRQ:   \t\t 9\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
        (home / "information").write_text(text)
    return folder


def test_without_the_tool_the_driver_is_asked(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = driver(machine / "gpus", A, B)
    monkeypatch.setattr(devices._from_driver, "__defaults__", (home,))
    assert visible_gpus({}) == ((A, B), {})


def test_gpus_without_uuids_are_counted_by_bus(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = driver(machine / "gpus", A, "GPU-????????-????-????-????-????????????")
    monkeypatch.setattr(devices._from_driver, "__defaults__", (home,))
    expected = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert choose_device("gw1", 2, {}) == expected


def test_more_workers_than_gpus_is_an_error_unless_asked_for() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    with pytest.raises(QBenchError, match=r"3 workers, and 2 GPUs \(4, 5\): use at most -n 2"):
        choose_device("gw0", 3, environ)
    shared = [choose_device(f"gw{n}", 5, environ, oversubscribe=True) for n in range(5)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shared] == ["4", "5", "4", "5", "4"]


def test_no_gpu_says_what_hides_them(machine: Path) -> None:
    with pytest.raises(QBenchError, match="no GPU is visible here: use the device 'cpu'"):
        choose_device("gw0", 1, {})
    with pytest.raises(QBenchError, match="CUDA_VISIBLE_DEVICES is ''"):
        choose_device("gw0", 1, {"CUDA_VISIBLE_DEVICES": ""})


def test_there_is_nothing_to_choose_without_workers_or_without_cuda(machine: Path) -> None:
    assert choose_device("master", 1, {}) == {}
    assert choose_device("gw0", 4, {}, device="cpu") == {}
    assert choose_device("gw0", 4, {}, device="mps:0") == {}


def test_one_device_is_not_shared_unless_asked_for() -> None:
    assert choose_device("gw0", 1, {}, device="cuda:1") == {}
    with pytest.raises(QBenchError, match="device cuda:1 is one GPU, and 2 workers"):
        choose_device("gw0", 2, {}, device="cuda:1")
    assert choose_device("gw0", 2, {}, device="cuda:1", oversubscribe=True) == {}


@pytest.mark.parametrize("worker", ["x", "gw", "gw-1", "", "1"])
def test_name_of_a_worker_is_checked(worker: str) -> None:
    with pytest.raises(QBenchError, match="expected pytest-xdist's names, gw0 on"):
        choose_device(worker, 2, {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_choosing_does_not_import_torch() -> None:
    code = (
        "import sys; from dllm_qbench.engine.devices import choose_device\n"
        "print(choose_device('gw1', 2, {'CUDA_VISIBLE_DEVICES': '0,7'}), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["{'CUDA_VISIBLE_DEVICES':", "'7'}", "False"]


def test_each_of_xdists_workers_has_its_gpu_before_torch_comes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist", reason="workers are pytest-xdist's")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{B},{A}")
    pytester.makepyfile(
        """
        import os, sys, time
        import pytest

        @pytest.mark.parametrize("n", range(2))
        def test_device(n, tmp_path_factory):
            assert "torch" not in sys.modules
            home = tmp_path_factory.getbasetemp().parent
            worker = os.environ["PYTEST_XDIST_WORKER"]
            (home / worker).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        """
    )
    installed = any(point.value == MODULE for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", MODULE]
    arguments = [*plugin, "-n2", "--dist=each", "--qbench-device=cuda", "--basetemp=base"]
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=4)
    found = {
        path.name: path.read_text() for path in (pytester.path / "base").iterdir() if path.is_file()
    }
    assert found == {"gw0": B, "gw1": A}
