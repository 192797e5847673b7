"""A run of the kernels' benchmarks as points under the machine's measured roofs. No torch.

A run is what ``pytest tests/benchmarks --benchmark-json=RUN.json`` saves: a file, what such a file holds, or
the session that would save it. A point's roof is the least time that copying and multiplying at the machine's
own rates allow for what the kernel has to move and to compute, so a share of 1 is the best that there is;
data that fits a cache is held against copies in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.benchmarks.limits import Roofs
from dllm_qbench.benchmarks.outcome import KEY, Outcome
from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import parse_json

if TYPE_CHECKING:
    import pytest

GIGA: Final = 1e9


@dataclass(frozen=True)
class _Rival:
    """What a rival reads, writes and multiplies: bytes an element of x, W and y, and the data type."""

    x: float
    w: float
    y: float
    kind: str


RIVALS: Final[Mapping[str, _Rival]] = {
    "dense bf16": _Rival(2.0, 2.0, 2.0, "bfloat16"),
    "dense fp32": _Rival(4.0, 4.0, 4.0, "float32"),
    "torch._int_mm alone": _Rival(1.0, 1.0, 4.0, "int8"),
    "torch int4pack_mm": _Rival(2.0, 0.5, 2.0, "bfloat16"),
}
"""The rivals whose bytes are known; others are in no roofline."""


@dataclass(frozen=True)
class SavedRun:
    """A run of the benchmarks as pytest-benchmark saves it.

    Attributes:
        outcomes: by case, in the order of the run.
        machine: what it was measured on.
        roofs: that machine's limits.
        date, commit: of the run.
    """

    outcomes: Sequence[Outcome]
    machine: Mapping[str, Any]
    roofs: Roofs
    date: str
    commit: str


@dataclass(frozen=True)
class Point:
    """A kernel of a case, ours or a rival's.

    Attributes:
        name: of the operation, or of the rival; ``kind``: the data type that it multiplies in.
        shape: ``M 512, 1024 -> 4096``, or without a weight ``M 512, 1024``.
        intensity: additions and multiplications a byte that has to be moved; ``rate``: the same a second.
        share: the roof's least time over the time that was taken.
    """

    name: str
    kind: str
    shape: str
    intensity: float
    rate: float
    share: float
    rival: bool


def roofline(run: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``roofline`` of the report's data, in 10^9 operations and bytes a second.

    Args:
        run: pytest-benchmark's file, or what it holds.

    Raises:
        QBenchError: naming the file and the field that is not as a run of these benchmarks has it.
    """
    found = parse_run(run) if isinstance(run, Mapping) else read_run(Path(run))
    return roofline_of(found.outcomes, found.machine, found.roofs)


def roofline_of(
    outcomes: Sequence[Outcome], machine: Mapping[str, Any], roofs: Roofs
) -> dict[str, Any]:
    """Return the same of outcomes at hand; ``machine`` is what ``benchmarks.machine.describe`` says."""
    return {
        "machine": f"{machine['processor']}, class {machine['machine_class']}",
        "roofs": {
            "GB/s": roofs.memory / GIGA,
            "peaks": {kind: rate / GIGA for kind, rate in roofs.operations.items()},
        },
        "points": [
            {
                "name": point.name,
                "kind": point.kind,
                "shape": point.shape,
                "intensity": point.intensity,
                "performance": point.rate / GIGA,
                "share": point.share,
                "rival": point.rival,
            }
            for point in points(outcomes, roofs)
        ],
    }


def points(outcomes: Sequence[Outcome], roofs: Roofs) -> list[Point]:
    """Return a point of every case, and behind it one of each rival whose bytes are known."""
    found = []
    for o in outcomes:
        shape = f"M {o.M}, {o.I} -> {o.O}" if o.O else f"M {o.M}, {o.I}"
        found.append(
            _point(o.operation, o.kind, shape, (o.moved, o.operations), o.ours_s, roofs, False)
        )
        # GPTQ's rival solves another way: its bytes are not those of a product.
        if not o.O or o.operation == "gptq-g128":
            continue
        for name, seconds in o.rivals_s.items():
            if name in RIVALS:
                r = RIVALS[name]
                moved = r.x * o.M * o.I + r.w * o.I * o.O + r.y * o.M * o.O
                found.append(
                    _point(name, r.kind, shape, (moved, o.operations), seconds, roofs, True)
                )
    return found


def _point(
    name: str,
    kind: str,
    shape: str,
    work: tuple[float, int],
    seconds: float,
    roofs: Roofs,
    rival: bool,
) -> Point:
    moved, operations = work
    least = roofs.seconds(int(moved), operations, kind)
    return Point(
        name, kind, shape, operations / moved, operations / seconds, least / seconds, rival
    )


# --- where a run comes from --------------------------------------------------------------------


def read_run(path: Path) -> SavedRun:
    """Read a saved run; ``QBenchError`` names the file and the field that is not as it should be."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    return parse_run(parse_json(text, str(path)), str(path))


def parse_run(data: Any, place: str = "the run of the benchmarks") -> SavedRun:
    """Read what a saved run holds; ``QBenchError`` names the place and the field."""
    try:
        machine = data["machine_info"]["qbench"]
        roofs = Roofs(**machine["roofs"])
        _ = machine["processor"], machine["machine_class"]
        found = [
            Outcome.from_dict(one["extra_info"][KEY], f"{place}: {one['fullname']}")
            for one in data["benchmarks"]
            if KEY in one["extra_info"]
        ]
        commit = data.get("commit_info", {}).get("id", "unknown")[:12]
        run = SavedRun(found, machine, roofs, data["datetime"][:10], commit)
    except (KeyError, TypeError, AttributeError) as error:
        raise QBenchError(
            f"{place}: not a saved run of these benchmarks ({error!r}); make one with: pytest"
            " tests/benchmarks --qbench-every-shape --benchmark-json=RUN.json"
        ) from error
    if not found:
        raise QBenchError(f"{place}: no benchmark ran")
    _check_numbers(run, place)
    return run


def _check_numbers(run: SavedRun, place: str) -> None:
    """Raise where something is divided by that is no number above 0."""
    roofs = run.roofs
    if not isinstance(roofs.operations, Mapping):
        raise QBenchError(f"{place}: machine_info.qbench.roofs.operations is no object of rates")
    told: dict[str, Any] = {"roofs.cached": roofs.cached, "roofs.memory": roofs.memory}
    told |= {f"roofs.operations[{kind!r}]": rate for kind, rate in roofs.operations.items()}
    told = {f"machine_info.qbench.{name}": value for name, value in told.items()}
    for one in run.outcomes:
        told |= {
            f"{one.case}: {name}": getattr(one, name) for name in ("moved", "operations", "ours_s")
        }
        told |= {f"{one.case}: rivals_s[{name!r}]": value for name, value in one.rivals_s.items()}
    for name, value in told.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise QBenchError(f"{place}: {name} is {value!r:.60}, expected a number above 0")


def session_run(config: pytest.Config) -> dict[str, Any] | None:
    """Return what pytest-benchmark would save of this session's kernels; ``None`` where none was timed.

    To be asked in ``pytest_sessionfinish`` or later: by then pytest-benchmark has put its results together.
    """
    session: Any = getattr(config, "_benchmarksession", None)
    done = [one for one in getattr(session, "benchmarks", ()) if KEY in one.extra_info]
    if session is None or not done:
        return None
    saved: dict[str, Any] = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=done,
        include_data=False,
        machine_info=session.get_machine_info(),
        commit_info=config.hook.pytest_benchmark_generate_commit_info(config=config),
    )
    return saved
