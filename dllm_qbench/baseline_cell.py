"""What a baseline holds for one cell, as a value, and that value as JSON data and back.

No file is touched here (``baselines.py`` does) and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dllm_qbench.bitsets import decode, encode, item_checks, pack_bits, unpack_bits
from dllm_qbench.errors import BaselineError
from dllm_qbench.noise import DRAWS, PLATFORM, NoiseFloor
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band, propose
from dllm_qbench.verdict.statistics import Pairs, drop_interval, relative_drop

CHECKED: Final = 500
"""Full precision's answers are compared, by a check byte each, on at most so many items."""


@dataclass(frozen=True)
class CellBaseline:
    """What is stored for one cell. The tuples and ``item_checks`` have one entry per item.

    Two profiles in dB, in forward order; ``fidelity`` as in a record; ``sequence_match`` and
    ``commit_flips`` from its trajectory. ``platform`` and ``draws`` are the noise floors that the
    cell is judged by. ``source`` says where it was read, for messages.
    """

    model: str
    cell: str
    band: Band
    items_seed: int
    item_checks: bytes
    reference_checks: bytes
    reference_correct: tuple[bool, ...]
    quantized_correct: tuple[bool, ...]
    layer_sqnr: Mapping[str, float]
    local_sqnr: Mapping[str, float]
    fidelity: Mapping[str, Any]
    commit_flips: tuple[float, ...]
    first_divergence: Mapping[str, int]
    sequence_match: tuple[bool, ...]
    platform: NoiseFloor
    draws: NoiseFloor
    recipe: Mapping[str, Any]
    recipe_hash: str
    provenance: Mapping[str, Any]
    source: str = "baseline"

    @property
    def items(self) -> int:
        """Number of items it was measured on."""
        return len(self.reference_correct)

    @property
    def pairs(self) -> Pairs:
        """Full precision against quantized, item by item."""
        return Pairs.count(self.reference_correct, self.quantized_correct)

    def to_dict(self) -> dict[str, Any]:
        """The cell as the file holds it."""
        low, high = drop_interval(self.pairs)
        return {
            "band": self.band.to_dict(),
            "items": self.items,
            "items_seed": self.items_seed,
            "reference_accuracy": _accuracy(self.reference_correct),
            "quantized_accuracy": _accuracy(self.quantized_correct),
            "drop_percent": round(relative_drop(self.pairs), 3),
            "drop_interval": [round(low, 3), round(high, 3)],
            "reference_bits": pack_bits(self.reference_correct),
            "quantized_bits": pack_bits(self.quantized_correct),
            "item_checks": encode(self.item_checks),
            "reference_checks": encode(self.reference_checks),
            "layer_sqnr": {name: round(db, 3) for name, db in self.layer_sqnr.items()},
            "local_sqnr": {name: round(db, 3) for name, db in self.local_sqnr.items()},
            "fidelity": _rounded(self.fidelity),
            "trajectory": {
                "items": len(self.sequence_match),
                "commit_flips": [round(share, 4) for share in self.commit_flips],
                "first_divergence": dict(self.first_divergence),
                "sequence_match": pack_bits(self.sequence_match),
            },
            "noise": {"platform": self.platform.to_dict(), "draws": self.draws.to_dict()},
            "recipe": dict(self.recipe),
            "recipe_hash": self.recipe_hash,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, model: str, cell: str, data: Mapping[str, Any], source: str) -> CellBaseline:
        """Inverse of ``to_dict``, for data that the schema admits; ``BaselineError`` names the field."""
        field, items = "band", data["items"]
        try:
            band = Band.from_dict(data["band"])
            field = "item_checks"
            checks = decode(data[field], items)
            field = "reference_checks"
            reference_checks = decode(data[field], min(items, CHECKED))
            field = "reference_bits"
            reference = unpack_bits(data[field], items)
            field = "quantized_bits"
            quantized = unpack_bits(data[field], items)
            field = "trajectory.sequence_match"
            trajectory = data["trajectory"]
            match = unpack_bits(trajectory["sequence_match"], trajectory["items"])
            field = "reference_accuracy"
            _agree(data[field], _accuracy(reference), 1e-6, "the bits")
            field = "quantized_accuracy"
            _agree(data[field], _accuracy(quantized), 1e-6, "the bits")
            field = "drop_percent"
            drop = relative_drop(Pairs.count(reference, quantized))
            _agree(data[field], drop, 1e-3, "the bits")
            field = "drop_interval"
            low, high = data[field]
            if not low <= data["drop_percent"] <= high:
                raise ValueError(
                    f"[{low}, {high}] does not hold drop_percent {data['drop_percent']}"
                )
        except ValueError as error:
            raise BaselineError(f"{source}.{field}: {error}") from error
        return cls(
            model=model,
            cell=cell,
            band=band,
            items_seed=data["items_seed"],
            item_checks=checks,
            reference_checks=reference_checks,
            reference_correct=reference,
            quantized_correct=quantized,
            layer_sqnr=data["layer_sqnr"],
            local_sqnr=data["local_sqnr"],
            fidelity=data["fidelity"],
            commit_flips=tuple(data["trajectory"]["commit_flips"]),
            first_divergence=data["trajectory"]["first_divergence"],
            sequence_match=match,
            platform=NoiseFloor.from_dict(data["noise"]["platform"]),
            draws=NoiseFloor.from_dict(data["noise"]["draws"]),
            recipe=data["recipe"],
            recipe_hash=data["recipe_hash"],
            provenance=data["provenance"],
            source=source,
        )

    @classmethod
    def from_record(cls, record: Record, stored: CellBaseline | None = None) -> CellBaseline:
        """What to store for a record: ``stored`` gives band and noise floors; a new cell gets a
        proposed band and floors that nobody measured.
        """
        pairs = Pairs.count(record.reference_correct, record.quantized_correct)
        if pairs.before == 0:
            raise BaselineError(
                f"cell {record.cell}: full precision answers none of {record.items} items correctly; "
                "a baseline without a drop cannot be stored"
            )
        plain = record.to_dict()
        return cls(
            model=record.model,
            cell=record.cell,
            band=stored.band if stored else propose(drop_interval(pairs)),
            items_seed=record.seed,
            item_checks=item_checks(record.item_ids),
            reference_checks=item_checks(record.reference_answers[:CHECKED]),
            reference_correct=record.reference_correct,
            quantized_correct=record.quantized_correct,
            layer_sqnr=record.layer_sqnr,
            local_sqnr=record.local_sqnr,
            fidelity=plain["fidelity"],
            commit_flips=tuple(record.trajectory.get("commit_flips", ())),
            first_divergence=_histogram(record.trajectory.get("first_divergence", ())),
            sequence_match=tuple(record.trajectory.get("sequence_match", ())),
            platform=stored.platform if stored else PLATFORM,
            draws=stored.draws if stored else DRAWS,
            recipe=plain["recipe"],
            recipe_hash=record.recipe_hash,
            provenance={"source": "measured", **plain["provenance"]},
        )


def _rounded(value: Any) -> Any:
    """The same with numbers of at most three digits behind the point, small ones to three figures."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 3) if abs(value) >= 0.01 else float(f"{value:.3g}")
    return value


def _histogram(first_divergence: Sequence[int]) -> dict[str, int]:
    """How many items part ways at each step; ``never`` for those that do not."""
    names = ["never" if step < 0 else str(step) for step in sorted(first_divergence)]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _accuracy(correct: Sequence[bool]) -> float:
    return round(sum(correct) / len(correct), 6)


def _agree(stored: float, computed: float, tolerance: float, by: str) -> None:
    if abs(stored - computed) > tolerance:
        raise ValueError(f"{stored} contradicts {by}, which give {computed:.6g}")
