"""Noise floors: how far a cell's figures move when nothing is wrong. Measured, stored, judged by.

Two kinds, kept apart: *platform* (threads, batch size, global random states; same recipe, same class of
machine) and *draws* (another calibration draw, rotation seed, device or version of torch). What moves no
further than the platform's floor is the same; what moves further, but no further than the draws', is another
sound model; what leaves both is a fault until shown otherwise. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from dllm_qbench.records import Record
from dllm_qbench.verdict.statistics import Pairs

HEADROOM: Final = 2.0
"""A maximum over a handful of draws falls short of what the next draw shows; floors count this much more.
With 1.5, 3 of 603 cells of unchanged quantizers failed that the floors had not been taken from."""
LEAST_DB: Final = 0.25
"""No SQNR tolerance is below this: a twentieth of a bit is nobody's regression."""


@dataclass(frozen=True)
class NoiseFloor:
    """The largest movements seen between one cell's baseline and benign repetitions of it.

    Attributes:
        runs: repetitions it was measured on; 0 for a default that nobody measured.
        what: what was varied.
        flips: share of items whose right/wrong answer changed, 0..1.
        net_loss: share of items, right answers before minus after.
        reference_flips: like ``flips``, of full precision.
        match_loss: share of items whose final sequence matched before minus after.
        layer_sqnr, local_sqnr: dB, of the module that moved most.
        logit_sqnr: dB; nll: nats; log10_kl: decades; each of the mean over canvases.
    """

    runs: int
    what: str
    flips: float
    net_loss: float
    reference_flips: float
    match_loss: float
    layer_sqnr: float
    local_sqnr: float
    logit_sqnr: float
    nll: float
    log10_kl: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, rounded to what is known of them."""
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NoiseFloor:
        """Inverse of ``to_dict``."""
        return cls(**{entry.name: data[entry.name] for entry in fields(cls)})

    def tolerance_db(self, profile: str) -> float:
        """How far a module's ``"layer_sqnr"`` or ``"local_sqnr"`` may move, in dB."""
        return max(LEAST_DB, HEADROOM * float(getattr(self, profile)))


PLATFORM: Final = NoiseFloor(
    runs=0, what="not measured", flips=0.0, net_loss=0.0, reference_flips=0.0, match_loss=0.0,
    layer_sqnr=0.0, local_sqnr=0.0, logit_sqnr=0.0, nll=0.0, log10_kl=0.0,
)  # fmt: skip
"""For a cell whose platform noise nobody measured: none, so that every change is shown."""
DRAWS: Final = NoiseFloor(
    runs=0, what="not measured", flips=1.0, net_loss=0.01, reference_flips=0.0, match_loss=0.05,
    layer_sqnr=1.0, local_sqnr=0.7, logit_sqnr=1.0, nll=0.1, log10_kl=0.2,
)  # fmt: skip
"""For a cell whose draws nobody measured. The shipped cells that calibrate have medians of 1.05, 0.75 and
0.52 dB, 0.004 nats, 0.05 decades, and 1 % of answers lost; their
largest are 5.2, 1.8 and 1.5 dB, 0.09 nats, 0.22 decades, and 17 %."""


def floor(base: Record, repeats: Sequence[Record], what: str) -> NoiseFloor:
    """The largest movements of ``repeats`` against ``base``, all of one cell and the same items.

    Raises ``ValueError`` without repeats, or for records of another cell, other items, or other
    modules or canvases.
    """
    if not repeats:
        raise ValueError(f"{base.model} {base.cell}: no repetition to measure noise from")
    moves = [_moves(base, repeat) for repeat in repeats]
    largest = {name: max(move[name] for move in moves) for name in moves[0]}
    return NoiseFloor(runs=len(repeats), what=what, **largest)


def wider(floors: Sequence[NoiseFloor]) -> NoiseFloor:
    """One floor that covers all of these (the tasks of one quantized model share their draws).

    Raises ``ValueError`` without floors.
    """
    if not floors:
        raise ValueError("no noise floor to cover: give one or more")
    numbers = [f.name for f in fields(NoiseFloor) if f.name not in ("runs", "what")]
    largest = {name: max(getattr(floor, name) for floor in floors) for name in numbers}
    return NoiseFloor(runs=max(f.runs for f in floors), what=floors[0].what, **largest)


def _moves(base: Record, repeat: Record) -> dict[str, float]:
    if (base.model, base.cell, base.item_ids) != (repeat.model, repeat.cell, repeat.item_ids):
        raise ValueError(f"{repeat.model} {repeat.cell} does not repeat {base.model} {base.cell}")
    answers = Pairs.count(base.quantized_correct, repeat.quantized_correct)
    full = Pairs.count(base.reference_correct, repeat.reference_correct)
    match = Pairs.count(
        base.trajectory.get("sequence_match", ()), repeat.trajectory.get("sequence_match", ())
    )
    return {
        "flips": (answers.lost + answers.gained) / answers.items,
        "net_loss": max(0.0, (answers.lost - answers.gained) / answers.items),
        "reference_flips": (full.lost + full.gained) / full.items,
        "match_loss": max(0.0, (match.lost - match.gained) / max(match.items, 1)),
        "layer_sqnr": _furthest(base.layer_sqnr, repeat.layer_sqnr),
        "local_sqnr": _furthest(base.local_sqnr, repeat.local_sqnr),
        "logit_sqnr": _mean_shift(base, repeat, "logit_sqnr"),
        "nll": _mean_shift(base, repeat, "nll_difference"),
        "log10_kl": _mean_shift(base, repeat, "log10_kl"),
    }


def _furthest(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    if before.keys() != after.keys():
        (name, *_) = sorted(before.keys() ^ after.keys())
        raise ValueError(f"SQNR of {name!r} was measured in one of two repetitions only")
    return max((abs(after[name] - db) for name, db in before.items()), default=0.0)


def _mean_shift(base: Record, repeat: Record, metric: str) -> float:
    before, after = base.fidelity.get(metric, ()), repeat.fidelity.get(metric, ())
    if len(before) != len(after):
        raise ValueError(f"{metric}: {len(before)} canvases cannot be paired with {len(after)}")
    pairs = list(zip(before, after, strict=True))
    return abs(float(sum(b - a for a, b in pairs))) / max(len(pairs), 1)
