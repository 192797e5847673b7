"""Options of the benchmarks, when they run, and what a run says of them. No torch until one runs.

They take minutes and a quiet machine, so they run where they are asked for: ``pytest tests/benchmarks``
or ``pytest -m bench``. Any other run that comes across them leaves them out and says so at its end.
pytest-benchmark times nothing under pytest-xdist or with ``--benchmark-disable``, and would pass all
the same: a run that asks for benchmarks and cannot time them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from dllm_qbench.baseline_paths import in_ci

if TYPE_CHECKING:
    from dllm_qbench.benchmarks.gate import Bar, Expected
    from dllm_qbench.benchmarks.limits import Roofs
    from dllm_qbench.benchmarks.machine import Machine
    from dllm_qbench.benchmarks.outcome import Outcome
    from dllm_qbench.benchmarks.stored import StoredCase, StoredRatios

HERE: Final = Path(__file__).parent
COMMAND: Final = "pytest tests/benchmarks"
ADD, ANEW = "add", "anew"
_LEFT_OUT: Final = "qbench_benchmarks_left_out"
_STATE: Final = pytest.StashKey["Benchmarks"]()


@dataclass
class Benchmarks:
    """State of one session.

    Attributes:
        device: ``cpu`` or ``cuda``.
        every_shape: whether the whole table runs.
        updates: ``add`` this run to what is stored, store it ``anew``, or ``""``.
        folder: of the baselines.
        asked: whether benchmarks were asked for; otherwise ``left_out`` counts them.
        outcomes: of the cases that ran.
        roofs: the machine's limits as far as they were asked for.
        keeps_memory: whether freed memory is used again, see :mod:`dllm_qbench.benchmarks.memory`.
    """

    device: str
    every_shape: bool
    updates: str
    folder: Path
    asked: bool
    left_out: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    roofs: Roofs | None = None
    keeps_memory: bool = False

    @cached_property
    def machine(self) -> Machine:
        """The machine that benchmarks run on; brings torch."""
        import torch

        from dllm_qbench.benchmarks.machine import this_machine

        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        return this_machine(torch.get_num_threads(), gpu)

    @property
    def path(self) -> Path:
        """The file of stored ratios of this class of machine."""
        from dllm_qbench.benchmarks.stored import path_of

        return path_of(self.folder, self.machine)

    @cached_property
    def known(self) -> StoredRatios | None:
        """What is stored of this class of machine, ``None`` where nothing is, or of another chip."""
        from dllm_qbench.benchmarks.stored import read_ratios

        if not self.path.exists():
            return None
        found = read_ratios(self.path)
        return found if found.processor == self.machine.processor else None

    def expected(self, name: str, bars: Sequence[Bar]) -> Expected | None:
        """Return what a case may be; ``None`` where it is not gated. An update reads nothing."""
        return None if self.updates or self.known is None else self.known.expected(name, bars)

    def store(self, outcome: Outcome, case: StoredCase) -> Outcome:
        """Write a run of a case."""
        from dllm_qbench.benchmarks.stored import write_case

        write_case(self.path, self.machine, outcome.case, case, anew=self.updates == ANEW)
        return replace(outcome, stored=True)

    def limits(self, kind: str) -> Roofs:
        """Return what the machine copies at most, and multiplies in a data type; each measured once."""
        from dllm_qbench.benchmarks.limits import measure_roofs, with_peak

        self.roofs = with_peak(self.roofs or measure_roofs(self.device), kind, self.device)
        return self.roofs

    def notes(self) -> list[str]:
        """Lines below the table: what it was held against."""
        if self.updates:
            return [f"written to {self.path}: review the change"]
        if self.known is not None:
            new = [one.case for one in self.outcomes if one.expected is None and one.gated]
            told = [f"not stored there yet, so not gated: {', '.join(new)}"] if new else []
            busy = [one for one in self.outcomes if one.finding.status == "busy"]
            told += [f"NOT TOLD: {one.case}: {one.finding.text}" for one in busy]
            return [f"held against {self.path}", *told]
        why = "this is another chip" if self.path.exists() else "no such file"
        return [
            f"no baseline for this machine class: not gated ({self.machine.name},"
            f" {self.machine.processor}; {self.path.name}: {why})"
        ]


def state_of(config: pytest.Config) -> Benchmarks:
    """Return the session's state."""
    return config.stash[_STATE]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that only benchmarks know."""
    group = parser.getgroup("qbench benchmarks", "kernel benchmarks (tests/benchmarks)")
    group.addoption(
        "--qbench-every-shape",
        action="store_true",
        help="time every kernel at every layer shape and M, not the gated cases alone: some 30 minutes",
    )
    group.addoption(
        "--qbench-update-benchmarks",
        nargs="?",
        choices=(ADD, ANEW),
        const=ADD,
        help="add this run to the stored ratios of this class of machine, or store them anew, and fail so"
        " that the change is reviewed; refused under CI=true",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read the options, and refuse a run that asks for benchmarks and would time nothing."""
    given = config.getoption("qbench_device", None) or config.getini("qbench_device") or "cpu"
    folder = config.getoption("qbench_baselines", None) or config.getini("qbench_baselines")
    config.stash[_STATE] = state = Benchmarks(
        device="cuda" if str(given).startswith("cuda") else "cpu",
        every_shape=bool(config.getoption("qbench_every_shape")),
        updates=config.getoption("qbench_update_benchmarks") or "",
        folder=config.rootpath / str(folder or "baselines"),
        asked=_asked(config),
    )
    if not state.asked or hasattr(config, "workerinput") or config.getoption("collectonly"):
        return
    if state.updates and in_ci():
        raise pytest.UsageError(
            "--qbench-update-benchmarks is refused under CI=true, where nobody reviews what it writes"
        )
    why = _switched_off(config)
    if why:
        raise pytest.UsageError(f"benchmarks were asked for, but {why}; run: {COMMAND}")
    if not config.getoption("benchmark_verbose", False):
        config.option.benchmark_quiet = True  # its table of absolute times; ours says more


def _asked(config: pytest.Config) -> bool:
    paths = [
        (config.invocation_params.dir / argument.split("::")[0]).resolve()
        for argument in config.args
    ]
    if any(path == HERE or HERE in path.parents for path in paths):
        return True
    return bool(re.search(r"(?<!not )\bbench\b", str(config.getoption("markexpr"))))


def _switched_off(config: pytest.Config) -> str | None:
    """Return what keeps pytest-benchmark from timing anything."""
    if config.getoption("dist", "no") != "no":
        return "pytest-xdist is on, and times taken beside other tests say nothing"
    if not config.pluginmanager.hasplugin("benchmark"):
        return "pytest-benchmark is not loaded (-p no:benchmark, or not installed)"
    if config.getoption("benchmark_skip") and not config.getoption("benchmark_only"):
        return "--benchmark-skip leaves all of them out"
    if config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"):
        return "--benchmark-disable times nothing"
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark counts them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the benchmarks that nobody asked for."""
    state = state_of(config)
    ours = [item for item in items if HERE in item.path.parents]
    if state.asked or not ours:
        return
    if not (config.getoption("markexpr") or config.getoption("keyword")):
        state.left_out += len(ours)  # a run that chose its tests knows what it did not choose
    config.hook.pytest_deselected(items=ours)
    gone = {*map(id, ours)}
    items[:] = [item for item in items if id(item) not in gone]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells how many it left out."""
    output: Any = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_LEFT_OUT] = state_of(session.config).left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take in what a worker left out; all of them collect the same tests."""
    state = state_of(node.config)
    state.left_out = max(state.left_out, getattr(node, "workeroutput", {}).get(_LEFT_OUT, 0))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Say what a saved run was measured on; the host's name is nobody's business."""
    from dllm_qbench.benchmarks.machine import describe

    state = state_of(config)
    machine_info.pop("node", None)
    machine_info["qbench"] = {
        **describe(state.machine),
        "keeps_memory": state.keeps_memory,
        "roofs": None if state.roofs is None else state.roofs.to_dict(),
    }


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table of what ran, or, loudly, what did not."""
    state = state_of(config)
    if state.left_out:
        terminalreporter.write_sep("=", "BENCHMARKS DID NOT RUN", yellow=True, bold=True)
        terminalreporter.write_line(
            f"{state.left_out} kernel benchmarks were left out: they need minutes and a quiet machine."
            f" Run: {COMMAND}",
            yellow=True,
        )
    if not state.outcomes:
        return
    from dllm_qbench.benchmarks.table import LEGEND, table

    terminalreporter.write_sep("=", f"kernels: {state.machine.name}")
    for text, color in table(state.outcomes):
        terminalreporter.write_line(text, **({color: True} if color else {}))
    terminalreporter.write_line("")
    left_out = {
        f"{name}: {why}" for outcome in state.outcomes for name, why in outcome.left_out.items()
    }
    saved = config.getoption("benchmark_json")
    for line in (
        *LEGEND,
        *(f"not timed: {line}" for line in sorted(left_out)),
        *state.notes(),
        *([f"saved: {saved}"] if saved else []),
    ):
        terminalreporter.write_line(line)
