"""What the page's templates and its script need beside the data: steps of the scale, bars, labels. No markup.

A status is never told by a colour alone: each has a sign (a symbol in the template), a word and a sentence.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

STATUSES: Final[Mapping[str, tuple[str, str]]] = {
    "infra": ("fails", "Could not be measured: a missing file, a NaN. Never counted as accuracy."),
    "degraded": (
        "fails",
        "An audit's finding, a moved layer, lost fidelity, a drop outside the band, worse answers than the"
        " baseline's, or another full precision.",
    ),
    "improved": (
        "fails",
        "Better than the band allows: it is stale, or something is not quantized.",
    ),
    "inconclusive": ("passes", "Too few items to tell; the cell's message says how many would do."),
    "changed": (
        "passes",
        "Inside the band, but more answers differ than noise explains, or the recipe or the checkpoint is"
        " another one.",
    ),
    "informational": ("passes", "There is nothing to judge it by: it is only told."),
    "equivalent": ("passes", "As the band says, with the baseline's own answers."),
}
"""What each verdict does to a test, and what it says; as in the README."""

STEPS: Final = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
"""Where one shade of the heat map ends and the next begins, in percent of full precision."""

# What encodeURIComponent leaves as it is, and the slash, which a fragment may hold.
_PLAIN = "/!'()*~"
_BAND = re.compile(
    r"(?:near-lossless|graceful|collapse) "
    r"(?:<=(?P<most>\S+)|>=(?P<least>\S+)|(?P<low>\S+)\.\.(?P<high>\S+))"
)


def step(drop: float | None) -> int | None:
    """The shade of a drop, from 0; ``None`` where there is none."""
    return None if drop is None else bisect_right(STEPS, drop)


def steps() -> list[tuple[int, str]]:
    """Each shade with the drops that it stands for, for the legend."""
    names = [f"< {STEPS[0]:g}"]
    names += [f"{low:g}" for low in STEPS[:-1]]
    return [*enumerate(names), (len(STEPS), f"≥ {STEPS[-1]:g}")]


def sign_of(status: str) -> str:
    """The symbol's name; one for whatever the statuses above do not know."""
    return status if status in STATUSES else "unknown"


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], bool]]:
    """Each row with whether a new group starts there, after the first: of a method, or of a scheme.

    Whichever changes less often from row to row makes the groups; where each row is another one, neither.
    """
    pairs = list(pairwise(rows))
    by = min(("method", "scheme"), key=lambda name: sum(a[name] != b[name] for a, b in pairs))
    starts = [False, *(a[by] != b[by] for a, b in pairs)]
    return list(zip(rows, starts if sum(starts) < len(pairs) else [False] * len(rows), strict=True))


def number(value: float | None, digits: int = 1) -> str:
    """With a real minus, and never a negative zero."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def interval(ends: Sequence[float] | None) -> str:
    """As the terminal shows it; empty where there is none."""
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


def p_value(value: float | None) -> str:
    """Two digits, or what it means that there is none."""
    return "other items" if value is None else f"{value:.2g}"


def shown_time(text: str) -> str:
    """``2026-11-26T21:04:00+00:00`` as a person writes it; other text as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(Z|\+00:00)?", text)
    if not found or found.end() != len(text):
        return text
    return f"{found[1]} {found[2]}{' UTC' if found[3] else ''}"


def described(cell: Mapping[str, Any]) -> str:
    """A cell of the heat map in one sentence, for those who do not see it."""
    said = [f"{cell['method']} {cell['scheme']}, {cell['task']}: {cell['status']}"]
    if cell["drop"] is not None:
        said.append(f"drop {number(cell['drop'])} %")
    if cell["interval"] is not None:
        low, high = cell["interval"]
        said.append(f"interval {number(low)} to {number(high)}")
    if cell["band"]:
        said.append(f"band {cell['band']}")
    return ", ".join(said)


def fragment(name: str) -> str:
    """The part of an address that opens a cell; as the page's script writes it."""
    return f"#cell={quote(name, safe=_PLAIN)}"


def bar(cell: Mapping[str, Any]) -> dict[str, Any] | None:
    """The band with the drop and its interval in it, as positions from 0 to 100; ``None`` without a drop.

    ``allowed``: the band's two ends (an open end is the bar's); ``limits``: the band's stated limits, each
    with its label; ``zero``: where no drop is.
    """
    drop, ends = cell["drop"], cell["interval"]
    if drop is None:
        return None
    limits = _limits(cell["band"])
    stated = [limit for limit in limits or () if limit is not None]
    marks = [0.0, drop, *(ends or ()), *stated]
    low, high = min(marks), max(marks)
    room = max(high - low, 1.0) * 0.12
    low, high = low - room, high + room

    def at(value: float) -> float:
        return round(float(100 * (value - low) / (high - low)), 2)

    allowed = None
    if limits is not None:
        allowed = [
            0.0 if limits[0] is None else at(limits[0]),
            100.0 if limits[1] is None else at(limits[1]),
        ]
    return {
        "zero": at(0.0),
        "drop": at(drop),
        "interval": [at(end) for end in ends] if ends else None,
        "allowed": allowed,
        "limits": [[at(limit), f"{limit:g}".replace("-", "−")] for limit in stated],
    }


def _limits(band: str) -> tuple[float | None, float | None] | None:
    """Least and most that a band allows, from its text; ``None`` where that names no band."""
    found = _BAND.fullmatch(band)
    if not found:
        return None
    try:
        values = {name: float(text) for name, text in found.groupdict().items() if text}
    except ValueError:
        return None
    if not all(map(math.isfinite, values.values())):
        return None
    return values.get("least", values.get("low")), values.get("most", values.get("high"))


def failing(cells: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Cells that fail with their positions, the worst first; those that name a module before all others."""
    found = [(index, cell) for index, cell in enumerate(cells) if cell["fails"]]
    return sorted(found, key=lambda one: not (one[1]["place"] and one[1]["place"]["first"]))


def reason(cell: Mapping[str, Any]) -> str:
    """Why a cell fails, in one sentence: the module's, or the worst finding, or the error."""
    if cell["error"]:
        return str(cell["error"])
    place = cell["place"]
    if place and place["first"]:
        return str(place["why"])
    findings = cell["findings"] or [{"text": text} for text in cell["audit_findings"]]
    if findings:
        return str(findings[0]["text"])
    return str(cell["text"] or (place or {}).get("why") or "")


def environments(sets: Sequence[Sequence[Sequence[str]]]) -> list[dict[str, Any]]:
    """A table's rows: each name with its value in every environment, and whether these differ."""
    names = dict.fromkeys(name for one in sets for name, _ in one)
    tables = [{row[0]: row[1] for row in one} for one in sets]
    rows = []
    for name in names:
        values = [table.get(name, "–") for table in tables]
        rows.append({"name": name, "values": values, "differ": len(set(values)) > 1})
    return rows
