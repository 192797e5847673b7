"""How often an unchanged quantizer fails: ``python tools/false_alarms.py FOLDER [FOLDER ...] --from N``.

FOLDERs are what ``tools/reruns.py --vary seeds`` wrote. Every record of a run numbered N or higher is
judged against ``baselines/`` exactly as the quick matrix judges it, each run is judged as a whole, and
``docs/false_alarms.md`` is written. Runs below N are left to ``tools/noise_floors.py``: what a floor was
taken from says nothing about it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.verdict.evidence import most_tests
from dllm_qbench.verdict.judge import judge
from dllm_qbench.verdict.matrix import judge_matrix
from tests.meta.faults.kill import QUICK_CELLS
from tools.reruns import read

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "false_alarms.md"


def judged(records: Sequence[Record]) -> list[Outcome]:
    """Judge records as cells of one whole quick matrix."""
    tests = most_tests(QUICK_CELLS)
    verdicts = [(record, judge(record, ROOT / "baselines", tests)) for record in records]
    return [Outcome.of_verdict(record, verdict, verdict.fails()) for record, verdict in verdicts]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="N")
    given = parser.parse_args()
    runs: dict[tuple[str, int], dict[tuple[str, str], Record]] = {}
    for folder in given.folders:
        for record in read(folder):
            if record.provenance["vary"] == "seeds" and record.provenance["run"] >= given.first:
                device = record.provenance["device"].partition(":")[0]
                run = runs.setdefault((device, record.provenance["run"]), {})
                run[record.model, record.cell] = record
    rows, failing, statuses = [], [], Counter[str]()
    for (device, number), cells in sorted(runs.items()):
        outcomes = judged(list(cells.values()))
        wrong = [outcome for outcome in outcomes if outcome.fails]
        whole = judge_matrix([o.tests for o in outcomes if o.tests is not None])
        statuses.update(outcome.status for outcome in outcomes)
        failing += [(device, number, o) for o in wrong]
        versions = next(iter(cells.values())).provenance["versions"]
        rows.append(
            f"| {number} | {device}, torch {versions['torch']} | {len(cells)} | {len(wrong)} |"
            f" {len(whole)} |"
        )
    total = sum(statuses.values())
    counted = ", ".join(f"{n} {status}" for status, n in statuses.most_common())
    text = [
        "# False alarms",
        "",
        "Written by `python tools/false_alarms.py`; see its help. An unchanged quantizer, with everything",
        "varied that must not matter: rotation seeds of QuaRot and DuQuant, threads (1, 2, 4), batch size",
        "(default, 16, 64), every global random state, and here also the machine.",
        "",
        f"**{len(failing)} of {total} judged cells failed** ({total / QUICK_CELLS:.1f} times the quick"
        f" matrix of {QUICK_CELLS} cells): {counted}.",
        "",
        "| run | machine | cells | failing cells | whole-run findings |",
        "|---:|---|---:|---:|---:|",
        *rows,
        "",
    ]
    if failing:
        text += ["## What failed", ""]
        for device, number, outcome in failing:
            reason = (outcome.verdict or {})["findings"][0]["text"]
            text.append(f"- run {number} ({device}), {outcome.model} {outcome.cell}: {reason}")
        text.append("")
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
