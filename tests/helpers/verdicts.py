"""Verdicts on records with chosen counts."""

from __future__ import annotations

from dataclasses import replace

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.records import Record
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.judge import Verdict, judge
from tests.helpers.records import make_record

LOSSLESS = Band("near-lossless", max_drop=2.5)
GRACEFUL = Band("graceful", 5.0, 15.0)
COLLAPSE = Band("collapse", min_drop=20.0)


def against(band: Band, now: Record, stored: Record | None = None) -> Verdict:
    return judge(now, replace(CellBaseline.from_record(stored or now), band=band))


def with_drop(lost: int, gained: int = 0, right: int = 900, items: int = 1000) -> Record:
    missed = items - right - gained
    return make_record(counts=(right - lost, lost, gained, missed))


def flipped(record: Record, lost: int, gained: int) -> Record:
    """The record with so many of its quantized answers turned, first ones first."""
    answers = list(record.quantized_correct)
    right = [n for n, value in enumerate(answers) if value][:lost]
    wrong = [n for n, value in enumerate(answers) if not value][:gained]
    for index in right + wrong:
        answers[index] = not answers[index]
    return replace(record, quantized_correct=tuple(answers))


def with_floor(stored: Record, band: Band = GRACEFUL, **moves: float) -> CellBaseline:
    """The record as a baseline whose platform's noise was measured."""
    cell = CellBaseline.from_record(stored)
    floor = replace(cell.platform, runs=3, what="threads", **moves)
    return replace(cell, band=band, platform=floor)
