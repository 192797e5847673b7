"""Write docs/torch_versions.md: ``python tools/torch_versions.py RECORDS... --base 2.13``.

RECORDS are files that ``pytest -m quick --qbench-records=FILE`` wrote on several releases of torch, one or
more files a release. Each cell is set beside the base's record of the same cell and items: other answers,
other errors of modules, another verdict, and whether that is within the noise that the baselines hold.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dllm_qbench.baselines import read_baselines
from dllm_qbench.noise import HEADROOM, NoiseFloor, floor
from dllm_qbench.outcomes import Outcome
from dllm_qbench.records import Record
from dllm_qbench.summary_files import read_outcomes

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "torch_versions.md"
INTRO = """\
# Releases of torch

Written by `python tools/torch_versions.py`; see its help. The quick regression matrix on several releases,
all else alike: the same commit, machine, items, calibration and seeds, one thread. Every cell is set beside
its own on torch {base}, the release of the baselines.

`tox -m torch` runs the matrix on each release from 2.8 to 2.15 with each Python, `tox -e torch210-quick` on
one; `tox.ini` says how to get builds without CUDA. Not every release was measured here: the table has those
that were, and on how many cells.

{verdict}

*Other answers*: answers of the quantized model that are another text, and *wrong, right now* those that
became wrong or right. *Full precision*: its answers that became wrong or right. SQNR in dB: the largest
change of any module's error on its own, of any module's error with all before it quantized, and of the
logits. *Beyond noise*: cells whose answers or modules moved further than the baselines' own noise floor
({headroom:g} times the platform's, at least what a verdict calls a change).
"""
HEAD = (
    "| torch | cells | items a cell | other verdicts | other answers | wrong, right now | full precision"
    " | own SQNR | accumulated SQNR | logits | beyond noise |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class Moved:
    """One cell on another release, beside the base's.

    Attributes:
        texts: quantized answers that are another text; lost, gained: that became wrong, or right.
        moves: the largest movements of figures; beyond: of them, those that exceed stored noise.
    """

    now: Outcome
    before: str
    items: int
    texts: int
    lost: int
    gained: int
    full_precision: int
    moves: NoiseFloor
    beyond: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether a reader of the table needs to know of it."""
        return self.now.status != self.before or bool(self.texts or self.beyond)


def compare(now: Outcome, base: Outcome) -> Moved:
    """Set one cell beside the base's; ``ValueError`` where they are of other items."""
    ours, theirs = _record(now), _record(base)
    moves = floor(theirs, [ours], "torch")
    pairs = list(zip(theirs.quantized_correct, ours.quantized_correct, strict=True))
    return Moved(
        now=now,
        before=base.status,
        items=ours.items,
        texts=sum(
            a != b for a, b in zip(theirs.quantized_answers, ours.quantized_answers, strict=True)
        ),
        lost=sum(a and not b for a, b in pairs),
        gained=sum(b and not a for a, b in pairs),
        full_precision=sum(
            a != b for a, b in zip(theirs.reference_correct, ours.reference_correct, strict=True)
        ),
        moves=moves,
        beyond=_beyond(ours, moves),
    )


def _beyond(record: Record, moves: NoiseFloor) -> tuple[str, ...]:
    """Names of the movements that the stored floor of the platform does not cover."""
    stored = read_baselines(ROOT / "baselines" / f"{record.model}.json").cell(record.cell).platform
    found = [
        name
        for name in ("layer_sqnr", "local_sqnr")
        if getattr(moves, name) > stored.tolerance_db(name)
    ]
    return (*found, *(["flips"] if moves.flips > HEADROOM * stored.flips else []))


def _record(outcome: Outcome) -> Record:
    if outcome.record is None:
        raise SystemExit(f"{outcome.cell} on {outcome.model}: not measured: {outcome.error}")
    return Record.from_dict(outcome.record)


def release(outcome: Outcome) -> str:
    """The version of torch that a cell was measured with."""
    return str(_record(outcome).provenance["versions"]["torch"])


def row(name: str, cells: Sequence[Moved]) -> str:
    """One release."""
    sizes = sorted({cell.items for cell in cells})
    shown = [
        name,
        str(len(cells)),
        "-".join(str(size) for size in dict.fromkeys([sizes[0], sizes[-1]])),
        str(sum(cell.now.status != cell.before for cell in cells)),
        f"{sum(cell.texts for cell in cells)} of {sum(cell.items for cell in cells)}",
        f"{sum(cell.lost for cell in cells)}, {sum(cell.gained for cell in cells)}",
        str(sum(cell.full_precision for cell in cells)),
        *(
            f"{max(getattr(cell.moves, field) for cell in cells):.2g}"
            for field in ("local_sqnr", "layer_sqnr", "logit_sqnr")
        ),
        str(sum(bool(cell.beyond) for cell in cells)),
    ]
    return f"| {' | '.join(shown)} |"


def differing(found: dict[str, list[Moved]]) -> list[str]:
    """The cells that differ, the most answers first."""
    cells = [(name, cell) for name, moved in found.items() for cell in moved if cell.differs]
    if not cells:
        return [
            "No cell differs in a verdict or in an answer, and none moved beyond its noise floor."
        ]
    cells.sort(key=lambda pair: (-pair[1].texts, pair[1].now.cell, pair[0]))
    lines = [
        "| torch | model | cell | verdict | other answers | wrong, right now | own SQNR"
        " | accumulated SQNR | beyond noise |",
        "|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for name, cell in cells:
        status = cell.now.status
        told = status if status == cell.before else f"{cell.before}, now {status}"
        lines.append(
            f"| {name} | {cell.now.model} | {cell.now.cell} | {told} | {cell.texts} |"
            f" {cell.lost}, {cell.gained} | {cell.moves.local_sqnr:.2g} |"
            f" {cell.moves.layer_sqnr:.2g} | {', '.join(cell.beyond) or '-'} |"
        )
    return lines


def report(outcomes: Sequence[Outcome], base: str, note: str = "") -> str:
    """The page: ``base`` is a release, or how its version starts; ``note`` says what else is known."""
    releases: dict[str, dict[tuple[str, str], Outcome]] = {}
    for outcome in outcomes:
        releases.setdefault(release(outcome), {})[outcome.model, outcome.cell] = outcome
    named = [name for name in releases if name.startswith(base)]
    if len(named) != 1:
        raise SystemExit(f"--base {base}: one of {', '.join(sorted(releases))} is expected")
    stored = releases.pop(named[0])
    order = sorted(releases, key=lambda name: [int(part) for part in name.split("+")[0].split(".")])
    found = {
        name: [compare(cell, stored[key]) for key, cell in releases[name].items() if key in stored]
        for name in order
    }
    found = {name: cells for name, cells in found.items() if cells}
    if not found:
        raise SystemExit("no cell was measured on the base and on another release")
    changed = sum(cell.now.status != cell.before for cells in found.values() for cell in cells)
    total = sum(map(len, found.values()))
    verdict = (
        f"**{'No verdict' if not changed else f'{changed} verdicts'} of {total} changed.**"
        f" Python {_origin(stored, 'python')}, transformers {_origin(stored, 'transformers')},"
        f" {next(iter(stored.values())).record['provenance']['device']}."
    )
    lines = [INTRO.format(base=named[0], verdict=verdict, headroom=HEADROOM), *HEAD]
    lines += [row(name, cells) for name, cells in found.items()]
    lines += ["", *textwrap.wrap(note, 110)] if note else []
    return "\n".join([*lines, "", "## Cells that differ", "", *differing(found), ""])


def _origin(cells: dict[tuple[str, str], Outcome], name: str) -> str:
    return str(_record(next(iter(cells.values()))).provenance["versions"][name])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--base", default="2.13", help="release of the baselines")
    parser.add_argument("--note", default="", help="what else is known of these runs, a paragraph")
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    outcomes = [outcome for path in given.records for outcome in read_outcomes(path)]
    given.out.write_text(report(outcomes, given.base, given.note), encoding="utf-8")


if __name__ == "__main__":
    main()
