"""Faults run when asked for; the kill matrix is printed at the end."""

from __future__ import annotations

import pytest

from tests.meta.faults.fault import Fault

FAULT = "qbench-fault"
"""Name of the user property that says which check caught a fault; it survives pytest-xdist."""
_seen: dict[str, tuple[str, str | None]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out all faults but the first of each area, unless ``-m`` or a test's name asks for them."""
    marked = [item for item in items if item.get_closest_marker("faults")]
    asked = "faults" in str(config.getoption("markexpr")) or any("::" in a for a in config.args)
    if asked or not marked:
        return
    from tests.meta.faults.catalogue import AREAS  # brings torch

    kept = {faults[0].name for faults in AREAS.values()}
    left_out = [item for item in marked if _fault(item).name not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _fault(item: pytest.Item) -> Fault:
    fault: Fault = item.callspec.params["fault"]  # type: ignore[attr-defined]
    return fault


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect what caught each fault."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name == FAULT:
                fault, severity, check = value  # type: ignore[misc]
                _seen[fault] = (severity, check)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The kill matrix: fault by first check."""
    if not _seen or terminalreporter.config.get_verbosity() < 0:
        return
    from tests.meta.faults.kill import CHECKS  # brings torch

    terminalreporter.write_sep("=", "kill matrix: fault by first check that caught it")
    width = max(map(len, _seen))
    for check in (*CHECKS, None):
        for fault, (severity, found) in sorted(_seen.items()):
            if found == check and (severity == "harmful" or found):
                shown = check or "NOT CAUGHT"
                terminalreporter.write_line(f"{fault:<{width}}  {severity:<8}  {shown}")
    harmful = [found for severity, found in _seen.values() if severity == "harmful"]
    benign = [found for severity, found in _seen.values() if severity == "benign"]
    counts = ", ".join(f"{check} {harmful.count(check)}" for check in CHECKS if check in harmful)
    caught = len(harmful) - harmful.count(None)
    terminalreporter.write_line(f"harmful: {caught} of {len(harmful)} caught ({counts})")
    flagged = len(benign) - benign.count(None)
    terminalreporter.write_line(f"benign: {flagged} of {len(benign)} flagged")
