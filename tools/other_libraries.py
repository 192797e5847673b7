"""Other libraries' quantizers beside ours: break them on purpose, and write the tables.

    python -m tools.other_libraries faults     in a library's environment: its wrong settings, measured
    python -m tools.other_libraries table      docs/other_libraries.md, from what is stored

Cells are measured by ``pytest -m others --qbench-update`` into ``baselines/others``; what became of the
wrong settings is kept in ``docs/other_libraries.json``. The table is made of these two and of our own
baselines, and of nothing else: it can be written on a machine that has none of the libraries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baselines import Baselines, baseline_path, read_baselines
from dllm_qbench.errors import QBenchError
from dllm_qbench.interop.catalogue import missing, subjects
from dllm_qbench.verdict.statistics import Pairs, drop_interval, relative_drop
from tools.library_faults import FAULTS, LibraryFault
from tools.other_libraries_text import TEXT

ROOT = Path(__file__).parents[1]
MODEL = "llada-embedded"
TASKS = ("general", "math", "code")
OTHERS = ROOT / "baselines" / "others"
FOUND = ROOT / "docs" / "other_libraries.json"
TABLE = ROOT / "docs" / "other_libraries.md"
FAULT_TASK, FAULT_ITEMS = "general", 200

# Ours on the same grid where there is one, else the nearest; and what is different.
NEAREST: Mapping[str, tuple[str, str]] = {
    "torchao-int8/W8A16": (
        "rtn/W8A16-sym",
        "symmetric by channel with -128 too: scale absmax / 127.5, ours absmax / 127",
    ),
    "torchao-int8-dynamic/W8A8": (
        "rtn/W8A8",
        "as above; activations by token as they come, as ours",
    ),
    "torchao-intx/W4A16-g64": (
        "rtn/W4A16-g64-sym",
        "symmetric with -8 too: scale absmax / 7.5, ours absmax / 7",
    ),
    "torchao-intx/W4A16-g64-asym": ("rtn/W4A16-g64", "asymmetric with whole zero points, as ours"),
    "quanto-qint8/W8A16": ("rtn/W8A16-sym", "symmetric by channel, scale absmax / 127, as ours"),
    "quanto-qint4/W4A16-g64": (
        "rtn/W4A16-g64",
        "asymmetric; the zero point is a real number, so 0 is no level and both ends are",
    ),
    "hqq/W4A16-g64": (
        "rtn/W4A16-g64",
        "asymmetric; real zero points, fitted to the weights (no calibration)",
    ),
    "bitsandbytes-nf4/W4A16-g64": (
        "rtn/W4A16-g64",
        "16 levels of a normal distribution, symmetric scale; not steps of a scale",
    ),
    "bitsandbytes-int8/W8A8": (
        "rtn/W8A8",
        "channels that hold 6 or more anywhere in the batch are multiplied in 16 bits",
    ),
    "llmcompressor-rtn/W4A16-g64": ("rtn/W4A16-g64", "asymmetric with whole zero points, as ours"),
    "llmcompressor-gptq/W4A16-g64": (
        "gptq/W4A16-g64",
        "columns by falling diagonal of H, group grids of the original weights, every token counts"
        " alike; ours from left to right, updated grids, massive tokens capped",
    ),
    "llmcompressor-smoothquant/W8A8": (
        "smoothquant/W8A8",
        "smooths behind the norms only, not before o_proj and down_proj as ours",
    ),
    "modelopt-int8/W8A8": (
        "rtn/W8A8",
        "static activations: one scale a linear, set by the massive tokens of calibration; ours by"
        " token",
    ),
    "modelopt-smoothquant/W8A8": (
        "smoothquant/W8A8",
        "static activations, one scale a linear; smooths every linear on its own",
    ),
    "modelopt-awq/W4A16-g64": (
        "awq/W4A16-g64",
        "symmetric; scales of each linear minimise the summed squared error, which massive tokens"
        " own; no clip search",
    ),
}


@dataclass(frozen=True)
class Side:
    """A quantizer's three cells, cut to the items that both sides have."""

    cells: Mapping[str, CellBaseline]

    def accuracy(self, task: str, items: int) -> str:
        """Accuracy in %, the relative drop and its 90 % interval."""
        cell = self.cells[task]
        pairs = Pairs.count(cell.reference_correct[:items], cell.quantized_correct[:items])
        low, high = drop_interval(pairs)
        drop = relative_drop(pairs)
        return f"{100 * pairs.after / pairs.items:.1f} ({drop:.1f} [{low:.1f}, {high:.1f}])"

    def own_sqnr(self) -> str:
        """Own SQNR in dB: the mean of all linears, and the lowest."""
        own = self.cells["math"].local_sqnr.values()
        return f"{sum(own) / len(own):.1f} / {min(own):.1f}"


def side(files: Iterable[Baselines], quantizer: str) -> Side | None:
    """Return a quantizer's cells from the first file that has all of them."""
    for stored in files:
        cells = {t: stored.cells[c] for t in TASKS if (c := f"{quantizer}/{t}") in stored.cells}
        if len(cells) == len(TASKS):
            return Side(cells)
    return None


def comparison() -> list[str]:
    """The table of cells: theirs, ours below, and what is different."""
    others = read_baselines(baseline_path(OTHERS, MODEL))
    ours = read_baselines(baseline_path(ROOT / "baselines", MODEL))
    lines = [
        f"| quantizer | {' | '.join(TASKS)} | own SQNR | answers that differ | difference |",
        f"|---|{'---:|' * (len(TASKS) + 2)}---|",
    ]
    for name, (nearest, why) in NEAREST.items():
        theirs, near = side([others], name), side([ours, others], nearest)
        if theirs is None or near is None:
            continue
        items = min(cell.items for half in (theirs, near) for cell in half.cells.values())
        library = theirs.cells["math"].recipe["parameters"]["library"]
        values = [theirs.accuracy(task, items) for task in TASKS]
        only = [_only(theirs.cells[task], near.cells[task], items) for task in TASKS]
        right, wrong = (sum(column) for column in zip(*only, strict=True))
        lines.append(
            f"| **{name}** ({library}) | {' | '.join(values)} | {theirs.own_sqnr()} |"
            f" +{right} -{wrong} | {why} |"
        )
        lines.append(_ours(near, nearest, items))
        again = side([others], nearest)
        if again is not None and again.cells != near.cells:
            lines.append(_ours(again, nearest, items))
    return lines


def _ours(near: Side, name: str, items: int) -> str:
    """One of our rows, with the parameters that are not the method's defaults."""
    from dllm_qbench.quant.quantize import METHODS

    recipe = near.cells["math"].recipe
    usual = METHODS[recipe["method"]].parameters
    set_ = [f"{k}={v}" for k, v in recipe["parameters"].items() if v != usual.get(k)]
    label = f"ours: {name}" + (f", {', '.join(set_)}" if set_ else "")
    values = [near.accuracy(task, items) for task in TASKS]
    return f"| {label} | {' | '.join(values)} | {near.own_sqnr()} | | |"


def _only(theirs: CellBaseline, ours: CellBaseline, items: int) -> tuple[int, int]:
    """Count the items that only they have right, and those that only we do."""
    pairs = zip(theirs.quantized_correct[:items], ours.quantized_correct[:items], strict=True)
    both = list(pairs)
    return sum(a and not b for a, b in both), sum(b and not a for a, b in both)


def faults_table(found: Mapping[str, Any]) -> list[str]:
    """The table of wrong settings, from what was measured."""
    lines = [
        "| quantizer | wrong setting | caught by | names | what it says |",
        "|---|---|---|---|---|",
    ]
    for key, said in found.items():
        lines.append(
            f"| {key.partition(': ')[0]} | {said['wrong']} | {said['check']} |"
            f" `{said['where']}` | {said['text']} |"
        )
    return lines


def measure(fault: LibraryFault) -> dict[str, Any]:
    """Plant a wrong setting, measure one cell, judge it by the sound one's baseline."""
    import dllm_qbench as qb
    from dllm_qbench.engine.cells import CellRunner

    runner = CellRunner(MODEL, FAULT_ITEMS)
    said = {
        "wrong": fault.wrong,
        "library": fault.quantizer().parameters["library"],
        "items": FAULT_ITEMS,
    }
    try:
        broken = runner.subject(fault.quantizer(), fault.scheme)
    except QBenchError as error:  # a cell ends here: nothing that could be measured came back
        _method, where, text = str(error).split(": ", 2)
        return said | {"verdict": "infra", "check": "adoption", "where": where, "text": text}
    record = runner.measure(broken, FAULT_TASK)
    verdict = qb.judge(record, baseline_path(OTHERS, MODEL))
    first = verdict.findings[0].text if verdict.findings else ""
    said |= {"verdict": verdict.status, "check": "nothing", "where": "", "text": first}
    if record.audit_findings:
        audit, where, text = record.audit_findings[0].split(": ", 2)
        said |= {"check": f"audit: {audit}", "where": where, "text": text}
    elif verdict.place is not None and verdict.place.first is not None:
        said |= {"check": verdict.place.by, "where": verdict.place.first}
    return said


def faults() -> None:
    """Measure the wrong settings of the libraries that are installed here, and keep what they say."""
    for fault in FAULTS:
        reason = missing(fault.subject)
        if reason is not None:
            continue
        said = measure(fault)
        found = _read_found() | {key_of(fault): said}
        FOUND.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
        print(f"{key_of(fault)}: {said['check']}: {said['where']}")


def key_of(fault: LibraryFault) -> str:
    """Return what a wrong setting is stored under."""
    return f"{subjects()[fault.subject].method}/{fault.scheme}: {fault.name}"


def _read_found() -> dict[str, Any]:
    return dict(json.loads(FOUND.read_text("utf-8"))) if FOUND.exists() else {}


def write_table() -> None:
    """Write the document."""
    TABLE.write_text(document(), encoding="utf-8")


def document() -> str:
    """The document's text."""
    text = TEXT.replace("{{comparison}}", "\n".join(comparison()))
    text = text.replace("{{items}}", str(FAULT_ITEMS))
    return text.replace("{{faults}}", "\n".join(faults_table(_read_found())))


def main() -> None:
    """Command line."""
    commands = {"faults": faults, "table": write_table}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    commands[sys.argv[1]]()


if __name__ == "__main__":
    main()
