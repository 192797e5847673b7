"""One cell as the report shows it when it is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.records import Record
from dllm_qbench.report import inside, origins
from dllm_qbench.report.profiles import layers
from dllm_qbench.report.reading import Cell, cut, listed, mapping, number, words
from dllm_qbench.summary import why

_MESSAGE: Final = 6000
_SENTENCE: Final = 2000
_LINES: Final = 50


def cell_data(
    cell: Cell,
    *,
    modules: Sequence[str],
    stored: CellBaseline | None,
    environment: int | None,
    discordant: int,
) -> dict[str, Any]:
    """What ``dllm_qbench.report.data`` describes under ``cells``.

    Args:
        cell: the outcome.
        modules: of its model, in forward order.
        stored: its baseline, for the profiles' sake.
        environment: its place among the report's.
        discordant: how many items to list at most.
    """
    outcome, record, verdict = cell.outcome, cell.record, cell.verdict
    method, scheme, task = cell.parts
    drop, interval = verdict.get("drop"), verdict.get("interval")
    return {
        "id": cell.id,
        "model": outcome.model,
        "method": method,
        "scheme": scheme,
        "task": task,
        "status": outcome.status,
        "fails": outcome.fails,
        "items": outcome.items,
        "band": outcome.band,
        "reference": round(100 * record.reference_accuracy, 4) if record else None,
        "quantized": round(100 * record.quantized_accuracy, 4) if record else None,
        "drop": None if drop is None else round(float(drop), 4),
        "interval": [round(float(end), 4) for end in interval] if interval else None,
        "error": None if outcome.error is None else cut(outcome.error, _MESSAGE),
        "message": _message(cell),
        "text": _optional(verdict, "text", f"{cell.place}: verdict"),
        "place": _place(verdict, f"{cell.place}: verdict.place"),
        "symptom": _optional(verdict, "symptom", f"{cell.place}: verdict"),
        "findings": list(_findings(verdict, f"{cell.place}: verdict.findings")),
        "audits": list(record.audits[:_LINES]) if record else [],
        "audit_findings": [cut(text, _SENTENCE) for text in record.audit_findings[:_LINES]]
        if record
        else [],
        "discordant": _discordant(cell, discordant),
        "kinds": _kinds(record) if record else [],
        "mask_ratio": inside.by_mask_ratio(record.fidelity, cell.place) if record else [],
        "fidelity": inside.fidelity_means(record.fidelity if record else {}, cell.place),
        "trajectory": inside.trajectory(record.trajectory, cell.place) if record else None,
        "layers": layers(cell, modules, stored),
        "recipe": origins.recipe(record) if record else [],
        "provenance": origins.provenance(record) if record else [],
        "seconds": round(number(record.seconds, f"{cell.place}: seconds"), 3) if record else None,
        "versions": environment,
    }


def discordant_items(record: Record, most: int) -> list[int]:
    """Places of items that only one of the two models gets right, those that were lost first."""
    pairs = list(zip(record.reference_correct, record.quantized_correct, strict=True))
    lost = [n for n, (full, quantized) in enumerate(pairs) if full and not quantized]
    gained = [n for n, (full, quantized) in enumerate(pairs) if quantized and not full]
    return [*lost, *gained][:most]


def _discordant(cell: Cell, most: int) -> dict[str, Any]:
    record, tests = cell.record, cell.outcome.tests
    against = None if tests is None else {"lost": tests.lost, "gained": tests.gained}
    if record is None:
        return {"lost": 0, "gained": 0, "against_baseline": against, "shown": []}
    pairs = zip(record.reference_correct, record.quantized_correct, strict=True)
    moves = [quantized - full for full, quantized in pairs]
    return {
        "lost": moves.count(-1),
        "gained": moves.count(1),
        "against_baseline": against,
        "shown": [
            {
                "item": record.item_ids[n],
                "kind": record.kinds[n] if record.kinds else "",
                "reference": cut(record.reference_answers[n]),
                "quantized": cut(record.quantized_answers[n]),
                "reference_correct": record.reference_correct[n],
                "quantized_correct": record.quantized_correct[n],
            }
            for n in discordant_items(record, most)
        ],
    }


def _kinds(record: Record) -> list[dict[str, Any]]:
    """Items and right answers of each kind, in order of appearance; none where the task has no kinds."""
    found: dict[str, dict[str, Any]] = {}
    rows = zip(record.kinds, record.reference_correct, record.quantized_correct, strict=False)
    for kind, reference, quantized in rows:
        row = found.setdefault(kind, {"kind": kind, "items": 0, "reference": 0, "quantized": 0})
        row["items"] += 1
        row["reference"] += reference
        row["quantized"] += quantized
    return list(found.values())


def _message(cell: Cell) -> str:
    """The outcome's own message, or, where its verdict brings no text, what it found."""
    told = cell.outcome.message
    if told.endswith("\n"):
        told += why(cell.outcome)
    return cut(told, _MESSAGE)


def _optional(given: Mapping[str, Any], name: str, field: str) -> str | None:
    value = given.get(name)
    return None if value is None else words(value, f"{field}.{name}", _SENTENCE)


def _place(verdict: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    given = verdict.get("place")
    if given is None:
        return None
    parts = listed(given.get("contributors", []), f"{field}.contributors")[:_LINES]
    return {
        "first": given.get("first"),
        "why": cut(given.get("why") or "", _SENTENCE),
        "by": words(given.get("by", ""), f"{field}.by"),
        "contributors": [_part(one, f"{field}.contributors[{n}]") for n, one in enumerate(parts)],
    }


def _part(given: Any, field: str) -> dict[str, Any]:
    part = mapping(given, field)
    return {
        "module": words(part.get("module"), f"{field}.module"),
        **{
            name: round(number(part.get(name), f"{field}.{name}"), 4)
            for name in ("share", "stored", "seen")
        },
    }


def _findings(verdict: Mapping[str, Any], field: str) -> Iterator[dict[str, str]]:
    for n, finding in enumerate(verdict.get("findings", [])[:_LINES]):
        yield {
            "status": words(finding.get("status", ""), f"{field}[{n}].status"),
            "check": words(finding.get("check", ""), f"{field}[{n}].check"),
            "text": words(finding["text"], f"{field}[{n}].text", _SENTENCE),
        }
