"""``qbench baseline show``: what is stored for a model, or for one cell, as a person reads it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baselines import Baselines
from dllm_qbench.noise import NoiseFloor

_SHORT = 12  # characters of a digest


def show_all(baselines: Baselines) -> list[str]:
    """The model's cells, in the file's order."""
    sha = baselines.checkpoint_sha256[:_SHORT]
    rows: list[Sequence[str]] = [("cell", "items", "full", "quant.", "drop in % of full", "band")]
    rows += [_row(cell) for cell in baselines.cells.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"{baselines.path}: {baselines.model}, checkpoint {sha}..., {len(baselines.cells)} cells",
        *("  ".join(_aligned(row, widths)).rstrip() for row in rows),
    ]


def show_cell(cell: CellBaseline) -> list[str]:
    """All of a cell but its answers, which are bits."""
    data = cell.to_dict()
    fidelity = [f"{name} {value}" for name, value in summary_of(cell.fidelity).items()]
    return [
        f"{cell.source}",
        f"  band         {cell.band}",
        f"  items        {cell.items}, seed {cell.items_seed}",
        f"  accuracy     full precision {100 * data['reference_accuracy']:.1f} %, quantized"
        f" {100 * data['quantized_accuracy']:.1f} %",
        f"  drop         {_drop(cell)} % of full precision",
        f"  fidelity     {', '.join(fidelity) or 'none'}",
        f"  trajectory   {sum(cell.sequence_match)} of {len(cell.sequence_match)} items keep their sequence",
        f"  noise        platform: {_noise(cell.platform)}",
        f"               draws: {_noise(cell.draws)}",
        f"  recipe       {cell.recipe_hash[:_SHORT]}...",
        *(f"    {name:<24}  {value}" for name, value in flat(cell.recipe)),
        "  provenance",
        *(f"    {name:<24}  {value}" for name, value in flat(cell.provenance)),
        "  SQNR in dB of each module's output: accumulated, and of each linear alone",
        *_profiles(cell),
    ]


def summary_of(fidelity: Mapping[str, Any]) -> dict[str, float]:
    """The fidelity metrics that are one number, or the mean of a list of numbers.

    >>> summary_of({"agreement": 0.9, "logit_sqnr": [20.0, 21.0], "kl": {"high": {"q50": 0.1}}})
    {'agreement': 0.9, 'logit_sqnr': 20.5}
    """
    found = {}
    for name, value in fidelity.items():
        if isinstance(value, int | float):
            found[name] = round(value, 4)
        elif name != "reference_scores" and isinstance(value, Sequence) and value:
            found[name] = round(fmean(value), 4)
    return found


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as names with dots, and their text.

    >>> list(flat({"a": 1, "b": {"c": None}}))
    [('a', '1'), ('b.c', 'None')]
    """
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _row(cell: CellBaseline) -> tuple[str, ...]:
    data = cell.to_dict()
    accuracies = [f"{100 * data[f'{name}_accuracy']:.1f}" for name in ("reference", "quantized")]
    return (cell.cell, str(cell.items), *accuracies, _drop(cell), str(cell.band))


def _drop(cell: CellBaseline) -> str:
    data = cell.to_dict()
    low, high = data["drop_interval"]
    return f"{data['drop_percent']:.1f} [{low:.1f}, {high:.1f}]"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        yield f"{text:>{width}}" if 0 < column < len(row) - 1 else f"{text:<{width}}"


def _noise(floor: NoiseFloor) -> str:
    if not floor.runs:
        return f"not measured; net loss {100 * floor.net_loss:.2g} % allowed for"
    return (
        f"{floor.what} ({floor.runs} runs): {100 * floor.flips:.2g} % of answers flip, net loss"
        f" {100 * floor.net_loss:.2g} %, {floor.local_sqnr:.2g} dB of a linear alone"
    )


def _profiles(cell: CellBaseline) -> Iterator[str]:
    width = max(map(len, cell.layer_sqnr), default=0)
    for name, value in cell.layer_sqnr.items():
        alone = cell.local_sqnr.get(name)
        yield f"    {name:<{width}}  {value:6.2f}{'' if alone is None else f'  {alone:6.2f}'}"
