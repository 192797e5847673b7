"""The roofline's data: by hand, from a file, from the session that would write it; and what is no run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm_qbench.benchmarks.gate import Finding
from dllm_qbench.benchmarks.limits import Roofs
from dllm_qbench.benchmarks.outcome import Outcome
from dllm_qbench.errors import QBenchError
from dllm_qbench.report.roofline import points, read_run, roofline

# 100 GB/s in a cache, 20 GB/s beyond it, 10^12 int8 operations a second.
ROOFS = Roofs(100e9, 20e9, {"int8": 1e12})
MACHINE = {"processor": "a chip", "machine_class": "x86_64-avx2-2cores", "roofs": ROOFS.to_dict()}


def outcome(**given: Any) -> Outcome:
    values: dict[str, Any] = {
        "case": "w8a8-M512-1024-4096",
        "operation": "w8a8",
        "M": 512,
        "I": 1024,
        "O": 4096,
        "dtype": "bfloat16",
        "backend": "cpu",
        "moved": 20_000_000,
        "operations": 4_000_000_000,
        "kind": "int8",
        "ours_s": 0.008,
        "rivals_s": {},
        "ratios": {},
        "left_out": {},
        "limit_s": 0.004,
        "error": 0.0,
        "bars": (),
        "expected": None,
        "finding": Finding("not gated", "", None),
        "attempts": 1,
        "rounds": 7,
        "megahertz": None,
        "gated": False,
    }
    return Outcome(**{**values, **given})


def saved(*outcomes: Outcome) -> dict[str, Any]:
    return {
        "machine_info": {"qbench": MACHINE},
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05+00:00",
        "benchmarks": [
            {"fullname": f"t.py::{one.case}", "extra_info": {"qbench": one.to_dict()}}
            for one in outcomes
        ],
    }


def test_a_point_is_what_its_numbers_say() -> None:
    (point,) = points([outcome()], ROOFS)
    # 4e9 operations on 2e7 bytes; in 8 ms. Multiplying takes 4 ms at the peak, copying 1 ms.
    assert (point.intensity, point.rate, point.share) == (200.0, 5e11, 0.5)
    assert (point.name, point.kind, point.rival) == ("w8a8", "int8", False)
    assert point.shape == "M 512, 1024 -> 4096"


def test_roofs_are_those_of_the_bytes_and_of_the_type() -> None:
    small = outcome(operation="hadamard", O=0, moved=10_000_000, operations=1, kind="float32")
    large = replace(small, moved=40_000_000)
    of_small, of_large = points([small, large], ROOFS)
    # in a cache 0.1 ms, in memory 2 ms; no peak of float32 was measured, so copying is the roof
    assert of_small.share == pytest.approx(1e-4 / 8e-3)
    assert of_large.share == pytest.approx(2e-3 / 8e-3)
    assert of_small.shape == "M 512, 1024"


def test_a_share_is_the_inverse_of_the_times_over_the_limit_that_was_judged() -> None:
    one = outcome()
    judged = replace(one, limit_s=ROOFS.seconds(one.moved, one.operations, one.kind))
    (point,) = points([judged], ROOFS)
    assert point.share == pytest.approx(1 / judged.over_limit)


def test_rivals_stand_behind_ours_with_their_own_bytes() -> None:
    rivals = {"dense bf16": 0.02, "torch._int_mm alone": 0.01, "somebody else's": 0.001}
    ours, dense, alone = points([outcome(rivals_s=rivals)], ROOFS)
    assert not ours.rival
    x, w, y = 512 * 1024, 1024 * 4096, 512 * 4096
    assert dense.intensity == 4e9 / (2 * (x + w + y))
    assert alone.intensity == 4e9 / (x + w + 4 * y)
    assert (dense.rate, alone.rate) == (2e11, 4e11)
    assert (dense.kind, alone.kind) == ("bfloat16", "int8")
    assert dense.rival
    assert alone.rival
    # another way to solve is no product of these sizes
    assert len(points([outcome(operation="gptq-g128", rivals_s=rivals)], ROOFS)) == 1


def test_a_file_and_what_it_holds_give_the_pages_shape(tmp_path: Path) -> None:
    data = saved(outcome(), outcome(case="again", M=4))
    data["benchmarks"].append({"fullname": "t.py::of_somebody_else", "extra_info": {}})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    found = roofline(path)
    assert found == roofline(data) == roofline(str(path))
    assert found["machine"] == "a chip, class x86_64-avx2-2cores"
    assert found["roofs"] == {"GB/s": 20.0, "peaks": {"int8": 1000.0}}
    assert [point["shape"] for point in found["points"]] == [
        "M 512, 1024 -> 4096",
        "M 4, 1024 -> 4096",
    ]
    assert found["points"][0] == {
        "name": "w8a8",
        "kind": "int8",
        "shape": "M 512, 1024 -> 4096",
        "intensity": 200.0,
        "performance": 500.0,
        "share": 0.5,
        "rival": False,
    }
    run = read_run(path)
    assert (run.date, run.commit) == ("2026-01-02", "0123456789ab")


def set_at(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


ONE = ("benchmarks", 0, "extra_info", "qbench")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_at("machine_info", to={}),
            r"not a saved run of these benchmarks \(KeyError\('qbench'\)",
        ),
        (set_at("machine_info", "qbench", "roofs", to=None), "not a saved run of these benchmarks"),
        (set_at("benchmarks", to=[]), "no benchmark ran"),
        (set_at("benchmarks", to=None), "not a saved run of these benchmarks"),
        (
            set_at(*ONE, "ratios", to=3),
            r"t\.py::w8a8-M512-1024-4096: not a benchmark of this version",
        ),
        (
            set_at(*ONE, "ours_s", to=0),
            "w8a8-M512-1024-4096: ours_s is 0, expected a number above 0",
        ),
        (set_at(*ONE, "moved", to="1"), "w8a8-M512-1024-4096: moved is '1', expected a number"),
        (
            set_at("machine_info", "qbench", "roofs", "operations", "int8", to=-1),
            r"machine_info.qbench.roofs.operations\['int8'\] is -1, expected a number above 0",
        ),
        (
            set_at("machine_info", "qbench", "roofs", "operations", to=4),
            "machine_info.qbench.roofs.operations is no object of rates",
        ),
    ],
)
def test_what_is_no_run_is_refused_by_file_and_field(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    data = copy.deepcopy(saved(outcome()))
    data = json.loads(json.dumps(data))
    change(data)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    with pytest.raises(QBenchError, match=message) as error:
        roofline(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(QBenchError, match=message):
        roofline(data)


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(QBenchError, match=r"nothing\.json: cannot be read"):
        roofline(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"machine_info": ')
    with pytest.raises(QBenchError, match=r"half\.json: not JSON"):
        roofline(tmp_path / "half.json")


def test_a_session_gives_what_its_file_would_hold(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-benchmark times nothing in a process that it takes for a worker.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makeconftest(
        f"""
        import json, pathlib, pytest
        from dllm_qbench.report.roofline import session_run

        @pytest.hookimpl(optionalhook=True)
        def pytest_benchmark_update_machine_info(config, machine_info):
            machine_info["qbench"] = {MACHINE!r}

        def pytest_sessionfinish(session):
            pathlib.Path("session.json").write_text(json.dumps(session_run(session.config)))
        """
    )
    data = outcome(rivals_s={"dense bf16": 0.02}).to_dict()
    pytester.makepyfile(
        f"""
        def test_kernel(benchmark):
            benchmark.extra_info["qbench"] = {data!r}
            benchmark.pedantic(lambda: None, rounds=1)

        def test_of_somebody_else(benchmark):
            benchmark.pedantic(lambda: None, rounds=1)

        def test_nothing():
            pass
        """
    )
    pytester.runpytest_subprocess("--benchmark-json=run.json").assert_outcomes(passed=3)
    session = json.loads((pytester.path / "session.json").read_text())
    assert roofline(session) == roofline(pytester.path / "run.json")
    assert len(roofline(session)["points"]) == 2

    for arguments in (("-k", "somebody"), ("-p", "no:benchmark", "-k", "nothing")):
        pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=1, deselected=2)
        assert (pytester.path / "session.json").read_text() == "null", arguments
