"""How the kernels' benchmarks time: ratios, rounds, classes of machines, and the cases there are."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.benchmarks.machine import this_machine
from dllm_qbench.benchmarks.ratios import ratio
from dllm_qbench.benchmarks.rounds import OURS, Rounds
from tests.benchmarks.cases import GATED, cases

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)
factors = st.floats(0.01, 100)


# --- ratios ------------------------------------------------------------------------------------


@given(times, factors)
def test_ratio_of_a_scaled_copy_is_the_scale(seconds: list[float], factor: float) -> None:
    found = ratio(seconds, [factor * second for second in seconds])
    assert (found.median, found.low, found.high) == pytest.approx((factor,) * 3, rel=1e-9)
    assert found.rounds == len(seconds)


@given(st.data())
def test_interval_holds_the_median_and_lies_in_the_range(data: st.DataObject) -> None:
    ours = data.draw(times)
    rival = data.draw(st.lists(st.floats(1e-6, 1e3), min_size=len(ours), max_size=len(ours)))
    found = ratio(ours, rival)
    rounds = [b / a for a, b in zip(ours, rival, strict=True)]
    assert found.low <= found.median <= found.high
    assert min(rounds) * (1 - 1e-9) <= found.low
    assert found.high <= max(rounds) * (1 + 1e-9)
    assert found == ratio(ours, rival)


def test_interval_covers_the_true_median() -> None:
    """95 % nominal; a percentile interval of a median of 15 is a little short of or above it."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        rounds = np.exp(0.1 * generator.standard_normal(15))
        found = ratio([1.0] * 15, [float(value) for value in rounds], seed)
        covered += found.low <= 1.0 <= found.high
    assert 0.90 <= covered / 400 <= 0.99


@pytest.mark.parametrize(("ours", "rival"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_ratio_refuses_rounds_that_do_not_match(ours: list[float], rival: list[float]) -> None:
    with pytest.raises(ValueError, match="ratio: "):
        ratio(ours, rival)


# --- rounds ------------------------------------------------------------------------------------


def test_every_round_times_every_contender_once_in_changing_order() -> None:
    called: list[str] = []
    rivals = {name: lambda name=name: called.append(name) for name in "abc"}
    rounds = Rounds(lambda: called.append(OURS), rivals, at_least_s=1e-9)
    called.clear()
    rounds.run(40)
    assert {name: len(found) for name, found in rounds.seconds.items()} == dict.fromkeys(
        (OURS, *"abc"), 40
    )
    orders = {tuple(called[start : start + 4]) for start in range(0, 160, 4)}
    assert all(sorted(order) == sorted([OURS, *"abc"]) for order in orders)
    assert {order.index(OURS) for order in orders} == {0, 1, 2, 3}


def test_a_short_call_is_repeated_until_a_timer_can_see_it() -> None:
    rounds = Rounds(lambda: None, {"also short": lambda: None}, at_least_s=1e-2)
    assert all(calls > 50 for calls in rounds.calls.values())
    rounds.run(3)
    assert all(0 < second < 1e-4 for second in rounds.shortest.values())


def test_rivals_that_refuse_or_take_long_are_left_out_and_named() -> None:
    def refuses() -> None:
        raise RuntimeError("int8 needs M > 16\nand more lines")

    waiting = {"slow": lambda: _wait(0.02), "needed": lambda: _wait(0.02), "refuses": refuses}
    rounds = Rounds(lambda: None, waiting, too_long_s=0.01, needed={"needed"})
    assert set(rounds.seconds) == {OURS, "needed"}
    assert rounds.left_out["refuses"] == "refuses: int8 needs M > 16"
    assert rounds.left_out["slow"].startswith("one call takes")
    with pytest.raises(RuntimeError, match="M > 16"):
        Rounds(refuses, {})


def _wait(seconds: float) -> None:
    time.sleep(seconds)


# --- machines and cases ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_tile", "amx"),
        ("flags : fpu avx2 avx512f avx512_vnni avx512_bf16", "avx512_bf16"),
        ("flags : fpu avx2 avx512f avx512_vnni", "avx512_vnni"),
        ("flags : fpu avx2", "avx2"),
        ("Features : fp asimd i8mm bf16", "i8mm"),
        ("Features : fp asimd", "neon"),
        ("flags : fpu", "plain"),
    ],
)
def test_class_is_the_widest_instructions(tmp_path: Path, flags: str, level: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name : Chip\ncpu family : 1\nmodel : 2\n{flags}\n\nmodel name : x")
    machine = this_machine(10_000, cpuinfo=cpuinfo)
    assert machine.level == level
    assert machine.processor == "Chip (family 1, model 2)"
    assert machine.name.endswith("cores-10000threads")
    assert this_machine(machine.cores, cpuinfo=cpuinfo).name.endswith(f"{machine.cores}cores")
    gpu = this_machine(1, "NVIDIA H100 80GB HBM3", cpuinfo)
    assert gpu.name == "cuda-nvidia_h100_80gb_hbm3"


def test_the_issue_bars_are_gated() -> None:
    """The acceptance bars of the kernels: a time of at most f times is a speed of 1/f."""
    bars = {(case.name, bar.rival): bar.at_least for case in GATED for bar in case.bars}
    assert bars == pytest.approx(
        {
            ("hadamard-M512-4096-float32", "dense rotation"): 25,
            ("hadamard-M512-4096-float32", "copy"): 1 / 6,
            ("hadamard-M512-12288-float32", "copy"): 1 / 10,
            ("hadamard-M512-18944-float32", "copy"): 1 / 10,
            ("rotate_quantize8-M512-4096-float32", "hadamard alone"): 1 / 1.4,
            ("w8a8-M128-4096x4096-bfloat16", "dense bf16"): 1.2,
            ("w8a8-M512-4096x4096-bfloat16", "dense bf16"): 1.3,
            ("gptq-g128-M2048-4096x4096-float32", "textbook loop"): 5,
            ("hessian-M2048-4096-bfloat16", "plain matmul"): 0.7,
        }
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_whole_table_has_every_shape_at_every_M(device: str) -> None:
    found = cases(device, every_shape=True)
    names = [case.name for case in found]
    assert len(names) == len(set(names))
    assert {*cases(device, every_shape=False)} <= {*found}
    for operation in ("w8a8", "w4a16-g128", "w4a8-g128"):
        shapes = {(c.I, c.O, c.M) for c in found if c.operation == operation}
        assert len(shapes) == 7 * 5, operation
    for operation in ("hadamard", "rotate_quantize8", "quantize8", "quantize4-g128"):
        assert len({(c.I, c.M) for c in found if c.operation == operation}) == 4 * 5, operation
    assert all(f"-M{case.M}-" in case.name for case in found)


def test_nothing_brings_torch_until_something_is_timed() -> None:
    modules = "machine rounds ratios limits gate stored outcome table memory".split()
    imports = "; ".join(f"import dllm_qbench.benchmarks.{name}" for name in modules)
    code = f"import sys; {imports}; import tests.benchmarks.plugin, tests.benchmarks.cases; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
