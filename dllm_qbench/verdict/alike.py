"""``judge_like``: a quantizer without a baseline of its own, judged by that of one like it. No torch.

What is borrowed from the other one's baseline is what it may do, not what it did:

- its band: the drop against full precision, paired item by item;
- full precision's answers and items, which are the same model's;
- what the weakest of the stored quantizers of its scheme reaches in each linear alone, as a floor with
  :data:`ONE_BIT` to spare. Sound quantizers differ by more from each other (GPTQ's own SQNR is up to
  12 dB above that of rounding to nearest), but none need be a bit worse than all.

Answers, fidelity metrics and the accumulated profile of one quantizer say nothing of another: they are
compared as soon as a baseline is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baselines import Baselines, preview_cell, read_baselines, shipped_baselines
from dllm_qbench.errors import BaselineError
from dllm_qbench.records import Record
from dllm_qbench.verdict.evidence import TESTS_A_CELL
from dllm_qbench.verdict.findings import SEVERITY, Finding
from dllm_qbench.verdict.judge import Verdict, judge
from dllm_qbench.verdict.layers import LayerComparison, LayerShift
from dllm_qbench.verdict.localise import Localisation, contributors
from dllm_qbench.verdict.sequential import Watch

ONE_BIT: Final = 6.02
"""dB, 20 log10 2: the error of a grid with one bit less."""


@dataclass(frozen=True)
class Like:
    """Another quantizer's cell, and the floor that all stored quantizers of its scheme set.

    ``floor`` holds each linear's lowest own SQNR in dB, in forward order.
    """

    cell: CellBaseline
    floor: Mapping[str, float]


def find_like(like: str, task: str, model: str, baselines: Baselines | None = None) -> Like:
    """Return the stored cell that ``like`` and a task name, with its scheme's floor.

    Args:
        like: ``method/scheme``; a scheme without its group takes the stored one that has a group.
        task: the cell's.
        model: whose baselines.
        baselines: where to look; by default what comes with this package.

    Raises:
        BaselineError: no such cell, or several; names those there are.
    """
    known = read_baselines(shipped_baselines(model)) if baselines is None else baselines
    pairs = dict.fromkeys(name.rpartition("/")[0] for name in known.cells)
    found = [pair for pair in pairs if pair == like or pair.startswith(f"{like}-")]
    found = [like] if like in found else found
    if len(found) != 1 or f"{found[0]}/{task}" not in known.cells:
        what = f"{len(found)} cells are" if found[1:] else "no cell is"
        raise BaselineError(
            f"{known.path}: {what} like {like!r} on task {task!r}; expected method/scheme of one of:"
            f" {', '.join(pairs)}"
        )
    cell = known.cells[f"{found[0]}/{task}"]
    scheme = found[0].partition("/")[2]
    profiles = [c.local_sqnr for n, c in known.cells.items() if n.endswith(f"/{scheme}/{task}")]
    floor = {name: min(p[name] for p in profiles if name in p) for name in cell.local_sqnr}
    return Like(cell, floor)


def judge_like(record: Record, like: Like, tests_in_run: int = TESTS_A_CELL) -> Verdict:
    """Judge a record by another quantizer's cell, see this module.

    Raises:
        BaselineError: the cell is of another model, task, or other items.
    """
    cell = like.cell
    if cell.cell.rpartition("/")[2] != record.task:
        raise BaselineError(f"{cell.source}: is of another task than the record's {record.task!r}")
    verdict = judge(record, _borrowed(record, cell), tests_in_run)
    compared = _below(like.floor, record.local_sqnr)
    if not compared.shifts:
        return replace(verdict, local=compared)
    first = compared.shifts[0]
    scheme = cell.cell.split("/")[1]
    text = (
        f"own SQNR of {len(compared.shifts)} of {compared.modules} linears is more than"
        f" {ONE_BIT:g} dB (one bit) below that of every stored quantizer at {scheme}, first at"
        f" {first.module}"
    )
    finding = Finding("degraded", text, "layers")
    findings = sorted((finding, *verdict.findings), key=lambda found: -SEVERITY.index(found.status))
    return replace(
        verdict,
        status=findings[0].status,
        findings=tuple(findings),
        local=compared,
        place=_place(compared, scheme),
        items_needed=None,
    )


def judge_cell(
    record: Record,
    path: Path,
    like: Like | None,
    update: bool,
    tests_in_run: int = TESTS_A_CELL,
    watch: Watch | None = None,
) -> tuple[Verdict, CellBaseline | None]:
    """Judge a record by its own baseline, or, where it has none, by what it is like.

    Args:
        record: the cell, measured.
        path: the file of the model's baselines.
        like: whose band holds; ``None`` where the cell has a baseline, or nothing is alike.
        update: judge by the baseline that the record would become; ``like`` gives a new one its band.
        tests_in_run, watch: as of :func:`dllm_qbench.judge`.

    Returns:
        The verdict, and with ``update`` the baseline to write, ``None`` where nothing changed.

    Raises:
        BaselineError: as ``judge`` and ``judge_like``.
    """
    band = None if like is None else like.cell.band
    new = preview_cell(path, record, band) if update else None
    if like is not None and new is None:
        return judge_like(record, like, tests_in_run), None
    return judge(record, new or path, tests_in_run, watch), new


def _borrowed(record: Record, like: CellBaseline) -> CellBaseline:
    """The other cell under this one's name, without what it did."""
    plain = record.to_dict()
    stored_items = like.items
    answers = record.quantized_correct[:stored_items]
    filled = (*answers, *like.quantized_correct[len(answers) :])
    return replace(
        like,
        cell=record.cell,
        quantized_correct=filled,
        layer_sqnr={},
        local_sqnr={},
        fidelity={
            name: value for name, value in like.fidelity.items() if name == "reference_scores"
        },
        sequence_match=(),
        recipe=plain["recipe"],
        recipe_hash=record.recipe_hash,
        source=f"like {like.cell}: {like.source}",
    )


def _below(stored: Mapping[str, float], seen: Mapping[str, float]) -> LayerComparison:
    """Linears whose own SQNR is more than a bit below the floor, in forward order."""
    shifts = tuple(
        LayerShift(name, stored[name], value)
        for name, value in seen.items()
        if name in stored and stored[name] - value > ONE_BIT
    )
    return LayerComparison(shifts, len(seen), ONE_BIT)


def _place(compared: LayerComparison, scheme: str) -> Localisation:
    first = compared.shifts[0]
    why = (
        f"fed with full precision's inputs it is at {first.seen:.1f} dB, the lowest of the stored"
        f" quantizers at {scheme} is at {first.stored:.1f}; every linear before it is within {ONE_BIT:g}"
        " dB of that, or above"
    )
    moved = {s.module: (s.stored or 0.0, s.seen or 0.0) for s in compared.shifts}
    return Localisation(first.module, contributors(moved, ONE_BIT), "own error", why)
