"""``qbench baseline diff``: what is different between two sets of baselines, cell by cell. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dllm_qbench.baseline_cell import CellBaseline
from dllm_qbench.baseline_show import flat, summary_of
from dllm_qbench.baselines import Baselines
from dllm_qbench.verdict.statistics import Pairs

Name = tuple[str, str]
_STORED_DB: Final = 0.001
"""Files hold SQNR to so many dB."""


@dataclass(frozen=True)
class Flips:
    """Answers right before and wrong now, and the reverse."""

    lost: int
    gained: int


@dataclass(frozen=True)
class Moved:
    """A profile of two baselines side by side.

    Attributes:
        modules: how many are elsewhere; ``most``: the one that moved furthest, and ``db``: how far.
        gone, new: modules that only the first, or only the second, has.
    """

    modules: int
    most: str
    db: float
    gone: int = 0
    new: int = 0


@dataclass(frozen=True)
class CellDiff:
    """What is different of a cell that both have.

    Attributes:
        values: pairs of before and now by name: bands, items, accuracies, drops, fidelity.
        quantized, full_precision: answers that flipped on the common items; ``None``: not the same items.
        layers, local: accumulated SQNR, and each linear's own.
        recipe: pairs of before and now by the recipe's names with dots; ``noise``: of the noise floors.
    """

    model: str
    cell: str
    values: Mapping[str, tuple[Any, Any]]
    quantized: Flips | None
    full_precision: Flips | None
    layers: Moved | None
    local: Moved | None
    recipe: Mapping[str, tuple[str, str]]
    noise: Mapping[str, tuple[str, str]]

    @property
    def any(self) -> bool:
        """Whether anything is different: provenance alone is nothing."""
        flipped = [side for side in (self.quantized, self.full_precision) if side is not None]
        return bool(
            self.values
            or self.recipe
            or self.noise
            or self.layers
            or self.local
            or self.quantized is None
            or any(flips.lost or flips.gained for flips in flipped)
        )

    def lines(self) -> list[str]:
        """What a person reads, under the cell's name."""
        lines = [f"{self.cell} on {self.model}"]
        lines += [f"  {name:<12} {old} -> {new}" for name, (old, new) in self.values.items()]
        if self.quantized is None:
            lines.append("  answers      of other items: they cannot be paired")
        for what, flips in (("answers", self.quantized), ("full prec.", self.full_precision)):
            if flips is not None and (flips.lost or flips.gained):
                lines.append(
                    f"  {what:<12} {flips.lost} right ones wrong, {flips.gained} wrong right"
                )
        for what, moved in (("SQNR", self.layers), ("own SQNR", self.local)):
            if moved is not None:
                lines.append(f"  {what:<12} {_moved_text(moved)}")
        lines += [
            f"  recipe       {name}: {old} -> {new}" for name, (old, new) in self.recipe.items()
        ]
        lines += [
            f"  noise        {name}: {old} -> {new}" for name, (old, new) in self.noise.items()
        ]
        return lines


@dataclass(frozen=True)
class Diff:
    """Two sets of baselines: cells that differ, and those that only one of them has."""

    both: int
    changed: tuple[CellDiff, ...]
    gone: tuple[Name, ...]
    new: tuple[Name, ...]

    @property
    def any(self) -> bool:
        """Whether they differ."""
        return bool(self.changed or self.gone or self.new)

    def lines(self) -> list[str]:
        """What a person reads."""
        lines = [line for cell in self.changed for line in cell.lines()]
        lines += [f"{cell} on {model}: only in the first" for model, cell in self.gone]
        lines += [f"{cell} on {model}: only in the second" for model, cell in self.new]
        lines.append(f"{len(self.changed)} of {self.both} cells that both have differ")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"differ": self.any, **asdict(self)}


def diff(first: Iterable[Baselines], second: Iterable[Baselines]) -> Diff:
    """Compare two sets of baselines by model and cell."""
    old, new = _cells(first), _cells(second)
    both = [name for name in old if name in new]
    found = [diff_cell(old[name], new[name]) for name in both]
    return Diff(
        len(both),
        tuple(cell for cell in found if cell.any),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name not in old),
    )


def diff_cell(old: CellBaseline, new: CellBaseline) -> CellDiff:
    """Compare two baselines of one cell."""
    size = min(old.items, new.items)
    paired = old.items_seed == new.items_seed and old.item_checks[:size] == new.item_checks[:size]
    return CellDiff(
        model=new.model,
        cell=new.cell,
        values=_different(_values(old), _values(new)),
        quantized=_flips(old.quantized_correct, new.quantized_correct, size) if paired else None,
        full_precision=(
            _flips(old.reference_correct, new.reference_correct, size) if paired else None
        ),
        layers=_moved(old.layer_sqnr, new.layer_sqnr),
        local=_moved(old.local_sqnr, new.local_sqnr),
        recipe=_different(dict(flat(old.recipe)), dict(flat(new.recipe))),
        noise=_different(_noise(old), _noise(new)),
    )


def _cells(sets: Iterable[Baselines]) -> dict[Name, CellBaseline]:
    return {(one.model, name): cell for one in sets for name, cell in one.cells.items()}


def _values(cell: CellBaseline) -> dict[str, Any]:
    data = cell.to_dict()
    low, high = data["drop_interval"]
    values = {
        "band": str(cell.band),
        "items": cell.items,
        "seed": cell.items_seed,
        "full prec. %": round(100 * data["reference_accuracy"], 2),
        "quantized %": round(100 * data["quantized_accuracy"], 2),
        "drop in %": f"{data['drop_percent']:.2f} [{low:.2f}, {high:.2f}]",
        "checkpoint": str(cell.provenance.get("checkpoint_sha256", ""))[:12],
        "sequences": sum(cell.sequence_match),
    }
    return values | summary_of(data["fidelity"])


def _noise(cell: CellBaseline) -> dict[str, str]:
    floors = {"platform": cell.platform.to_dict(), "draws": cell.draws.to_dict()}
    return dict(flat(floors))


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*old, *new))
    pairs = {name: (old.get(name, "none"), new.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flips(old: tuple[bool, ...], new: tuple[bool, ...], size: int) -> Flips:
    pairs = Pairs.count(old[:size], new[:size])
    return Flips(pairs.lost, pairs.gained)


def _moved(old: Mapping[str, float], new: Mapping[str, float]) -> Moved | None:
    by = {name: new[name] - old[name] for name in old if name in new}
    moved = {name: change for name, change in by.items() if abs(change) >= _STORED_DB}
    gone, added = len(old.keys() - new.keys()), len(new.keys() - old.keys())
    if not (moved or gone or added):
        return None
    most = max(moved, key=lambda name: abs(moved[name]), default="")
    return Moved(len(moved), most, round(moved.get(most, 0.0), 3), gone, added)


def _moved_text(moved: Moved) -> str:
    parts = []
    if moved.modules:
        what = "module" if moved.modules == 1 else "modules"
        parts.append(f"{moved.modules} {what} moved, the most {moved.most} by {moved.db:+.2f} dB")
    if moved.gone:
        parts.append(f"{moved.gone} modules are gone")
    if moved.new:
        parts.append(f"{moved.new} modules are new")
    return "; ".join(parts)
