"""Everything that the page of a run shows, as plain JSON values: :func:`build`. No torch, no HTML.

The page is made from this and from nothing else, so it can be made anywhere, later, from a file of
outcomes. The values are other people's texts and numbers: all of them are checked here, none is
escaped here, none is NaN, and every text can be written as UTF-8.

What :func:`build` returns (ReportData)::

    version 1, generated (ISO time), package (version of this one)
    notes       [text...]: what a reader should know of the data themselves (cells measured twice,
                prompts or baselines that cannot be read)
    verdict     fails, failing, cells (counts), counts {status: n} the worst first, headline,
                whole_run [text...], first [[module, n]...]: where failing cells begin to fail
    models      the one with the worst cell first: name, items "500" or "100-500", tasks [str...],
                rows [{method, scheme, cells: [place in "cells" or null, one a task]}]: methods in a
                fixed order, of each method's schemes the gentlest first
    profiles    {model: [module...]} in forward order: of all its cells and their baselines
    items       {task: {item id: {prompt, expected}}}: what the discordant lists need, where it is known
    cells       the worst first; described in ``cells.py`` and below
    environments  [[[name, value]...]...]: distinct ones; a cell's ``versions`` is a place in it
    comparison  null, or what ``compared.py`` says
    outliers [], roofline null: a caller that has them puts them there

    a cell      id, model, method, scheme, task, status, fails, items, band, reference and quantized
                (percent right), drop, interval, error, message, text, place, symptom, findings,
                audits, audit_findings, discordant {lost, gained, against_baseline, shown [...]},
                kinds, mask_ratio [{bin, ratio, ends, tokens, log10_kl: [q25, q50, q75]}],
                fidelity {canvases, masked_tokens, logit_sqnr, nll_difference, log10_kl, agreement},
                trajectory {items, flips, diverged, sequence_match}, layers {sqnr, local, baseline,
                local_baseline, suspect}, recipe, provenance, seconds, versions

Of a cell without a record (it could not be measured) ``reference``, ``quantized``, ``trajectory``,
``seconds``, ``versions`` and every number in ``layers`` are null, its other lists and ``fidelity`` empty.
``fidelity`` has those of its names that were measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dllm_qbench import __version__
from dllm_qbench.errors import QBenchError
from dllm_qbench.outcomes import Outcome
from dllm_qbench.report import origins
from dllm_qbench.report.cells import cell_data, discordant_items
from dllm_qbench.report.compared import comparison
from dllm_qbench.report.grid import models
from dllm_qbench.report.profiles import modules_of, stored_of
from dllm_qbench.report.prompts import Items, Wanted, find_items
from dllm_qbench.report.reading import Cell, read_cells
from dllm_qbench.run_view import rank
from dllm_qbench.run_view import whole_run as whole_run_of

VERSION: Final = 1
_FIRST: Final = 5  # modules that the verdict names


def build(
    outcomes: Sequence[Outcome],
    *,
    base: Sequence[Outcome] | None = None,
    base_name: str = "",
    baselines: Path | None = None,
    data_dir: Path | None = None,
    whole_run: Sequence[str] = (),
    discordant: int = 20,
) -> dict[str, Any]:
    """The data of a run's report; see the head of this file for its shape.

    Args:
        outcomes: the run's cells; of one that occurs more than once the last counts.
        base: the cells of the run to compare with.
        base_name: what to call that run.
        baselines: folder of the models' baseline files; a model without one there has the shipped one.
        data_dir: folder with the paper's tasks, for their prompts.
        whole_run: what fails the run as a whole, beside what its cells' tests show together.
        discordant: how many items of a cell are listed of those that only one of the two models got
            right.

    Raises:
        QBenchError: an outcome holds a value of another kind than it should; names cell and field.
    """
    if discordant < 0:
        raise QBenchError(f"discordant is {discordant}, expected a number of items, zero or more")
    run, notes = read_cells(outcomes)
    ranked = sorted(run, key=lambda cell: rank(cell.outcome))
    stored, unread = stored_of(run, baselines)
    profiles = {
        model: modules_of((cell for cell in run if cell.outcome.model == model), stored)
        for model in dict.fromkeys(cell.outcome.model for cell in ranked)
    }
    places, environments = _environments(ranked)
    items, unasked = _items(ranked, discordant, data_dir)
    data = {
        "version": VERSION,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "package": __version__,
        "notes": [*notes, *unread, *unasked],
        "verdict": _verdict(ranked, whole_run),
        "models": models(ranked, run),
        "profiles": profiles,
        "items": items,
        "cells": [
            cell_data(
                cell,
                modules=profiles[cell.outcome.model],
                stored=stored.get((cell.outcome.model, cell.outcome.cell)),
                environment=place,
                discordant=discordant,
            )
            for cell, place in zip(ranked, places, strict=True)
        ],
        "environments": environments,
        "comparison": None if base is None else comparison(ranked, base, base_name or "base"),
        "outliers": [],
        "roofline": None,
    }
    return _sound(data)


def _verdict(ranked: Sequence[Cell], whole_run: Sequence[str]) -> dict[str, Any]:
    outcomes = [cell.outcome for cell in ranked]
    failing = [cell for cell in ranked if cell.outcome.fails]
    found = [finding.text for finding in whole_run_of(outcomes)]
    whole = list(dict.fromkeys([*found, *whole_run]))
    if not ranked:
        headline = "No cell was measured"
    elif failing:
        headline = f"{len(failing)} of {len(ranked)} cells fail"
    else:
        headline = "No cell fails alone, the run as a whole does" if whole else "No cell fails"
    named = ((cell.verdict.get("place") or {}).get("first") for cell in failing)
    return {
        "fails": bool(failing or whole),
        "failing": len(failing),
        "cells": len(ranked),
        "counts": dict(Counter(outcome.status for outcome in outcomes)),
        "headline": headline,
        "whole_run": whole,
        "first": [[name, n] for name, n in Counter(filter(None, named)).most_common(_FIRST)],
    }


def _environments(ranked: Sequence[Cell]) -> tuple[list[int | None], list[origins.Pairs]]:
    """Each cell's place among the distinct environments, and these in the order of their cells."""
    known: dict[str, int] = {}
    found: list[origins.Pairs] = []
    places: list[int | None] = []
    for cell in ranked:
        if cell.record is None:
            places.append(None)
            continue
        environment = origins.environment(cell.record)
        place = known.setdefault(json.dumps(environment), len(found))
        if place == len(found):
            found.append(environment)
        places.append(place)
    return places, found


def _items(
    cells: Iterable[Cell], discordant: int, data_dir: Path | None
) -> tuple[dict[str, Items], list[str]]:
    """The items that the cells' discordant lists show."""
    wanted: dict[str, Wanted] = {}
    for cell in cells:
        record = cell.record
        if record is None:
            continue
        asked = wanted.setdefault(record.task, Wanted())
        asked.seeds[record.seed] = None
        asked.ids |= dict.fromkeys(record.item_ids[n] for n in discordant_items(record, discordant))
    return find_items({task: asked for task, asked in wanted.items() if asked.ids}, data_dir)


def _sound(data: dict[str, Any]) -> dict[str, Any]:
    """The same as can be written as UTF-8: a model's answer may hold half a surrogate pair."""
    try:
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        whole: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
        return whole
    return data
