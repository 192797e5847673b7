"""A cell beside its score in the paper and, where the tables support one, against a band. No torch.

A cell without a band is *informational* and never fails. Findings that compare cells are in
``paper_findings.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from scipy.stats import binomtest

from dllm_qbench.outcomes import INFORMATIONAL
from dllm_qbench.paper import Claim, Paper, PaperCell
from dllm_qbench.paper_files import read_paper
from dllm_qbench.records import Record
from dllm_qbench.verdict.averages import (
    Difference,
    TaskAnswers,
    TaskScores,
    compare_drops,
)
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.findings import Status, judge_drop
from dllm_qbench.verdict.matrix import cell_alpha
from dllm_qbench.verdict.statistics import (
    LEVEL,
    Pairs,
    drop_interval,
    drop_p_value,
    relative_drop,
)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """Right answers in percent, of so many items, with a Wilson interval for the sampling of items."""

    percent: float
    items: int
    interval: Interval

    @classmethod
    def of(cls, right: int, items: int) -> Score:
        """Of a count."""
        found = binomtest(right, items).proportion_ci(LEVEL, method="wilson")
        return cls(100 * right / items, items, (100 * float(found.low), 100 * float(found.high)))

    @classmethod
    def printed(cls, percent: float, items: int) -> Score:
        """Of a percentage that a paper printed of so many items."""
        interval = cls.of(round(percent * items / 100), items).interval
        return cls(percent, items, interval)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}]"


@dataclass(frozen=True)
class PaperVerdict:
    """One measured cell beside its printed score. Drops are relative, in percent.

    ``status`` is a verdict's where the tables support a band for this cell, else ``informational``,
    which never fails. ``difference`` is the measured drop minus the printed one: the items of the two
    are not paired, since the paper's own answers are not known.
    """

    status: Status | Literal["informational"]
    text: str
    printed: PaperCell
    band: Band | None
    full_precision: Score
    quantized: Score
    printed_full_precision: Score
    printed_quantized: Score
    drop: float | None
    interval: Interval | None
    difference: Difference | None

    @property
    def message(self) -> str:
        """Both measurements in a few lines."""
        cell, drop = self.printed, "no drop: full precision answers nothing"
        if self.drop is not None and self.interval is not None and self.difference is not None:
            low, high = self.difference.interval
            drop = (
                f"drop {self.drop:.1f} % [{self.interval[0]:.1f}, {self.interval[1]:.1f}], "
                f"printed {cell.drop:.1f} %; difference {self.difference.value:+.1f} "
                f"[{low:+.1f}, {high:+.1f}] points, items not paired"
            )
        return "\n".join(
            (
                f"{cell.cell} on {cell.model}: {self.status} beside the paper's table {cell.table}",
                f"  full precision {self.full_precision} of {self.full_precision.items} items, "
                f"printed {self.printed_full_precision} of {cell.items}",
                f"  quantized {self.quantized}, printed {self.printed_quantized}",
                f"  {drop}",
                f"  {self.text}",
            )
        )


def judge_band(record: Record, band: Band, tests_in_run: int | None = None) -> tuple[Status, str]:
    """Hold a record's drop against a band; the text says what was seen and why.

    ``tests_in_run`` shares out the run's error rate, as in ``judge``; by default over all bands that the
    stored tables set, of cells and of averages.
    """
    pairs = Pairs.count(record.reference_correct, record.quantized_correct)
    if pairs.before == 0:
        text = f"full precision answers none of {record.items} items correctly: no drop to measure"
        return "infra", text
    return _judge(
        band,
        relative_drop(pairs),
        drop_interval(pairs),
        lambda limit, side: drop_p_value(pairs, limit, side),
        tests_in_run,
        f"{record.items} items",
    )


def _judge(
    band: Band,
    drop: float,
    interval: Interval,
    p_value: Callable[[float, Literal["above", "below"]], float],
    tests_in_run: int | None,
    size: str,
) -> tuple[Status, str]:
    p_values = {}
    if band.max_drop is not None:
        p_values["drop above the band"] = p_value(band.max_drop, "above")
    if band.min_drop is not None:
        p_values["drop below the band"] = p_value(band.min_drop, "below")
    found = judge_drop(band, interval, p_values, cell_alpha(tests_in_run or _all_bands()))
    low, high = interval
    text = f"{found.text}; a drop of {drop:.1f} % [{low:.1f}, {high:.1f}], {size}"
    return found.status, f"{text}; the paper: {band.sentence()}"


def judge_against_paper(
    record: Record, paper: Paper | None = None, tests_in_run: int | None = None
) -> PaperVerdict | None:
    """Set a record beside its printed score; ``None`` where the tables have no such cell."""
    paper = stored_paper() if paper is None else paper
    printed = paper.cell(record.model, record.cell)
    if printed is None:
        return None
    status: Status | Literal["informational"] = INFORMATIONAL
    text = printed.why
    if printed.band is not None:
        status, text = judge_band(record, printed.band, tests_in_run)
        text = f"{text} ({printed.why})"
    drop = interval = difference = None
    if any(record.reference_correct):
        pairs = Pairs.count(record.reference_correct, record.quantized_correct)
        drop, interval = relative_drop(pairs), drop_interval(pairs)
        difference = compare_drops([answers_of(record)], [printed_scores(printed)])
    return PaperVerdict(
        status=status,
        text=text,
        printed=printed,
        band=printed.band,
        full_precision=Score.of(sum(record.reference_correct), record.items),
        quantized=Score.of(sum(record.quantized_correct), record.items),
        printed_full_precision=Score.printed(printed.full_precision, printed.items),
        printed_quantized=Score.printed(printed.score, printed.items),
        drop=drop,
        interval=interval,
        difference=difference,
    )


def answers_of(record: Record) -> TaskAnswers:
    """A record as one task of an average."""
    return TaskAnswers(record.item_ids, record.reference_correct, record.quantized_correct)


def printed_scores(cell: PaperCell) -> TaskScores:
    """A printed score as one task of an average."""
    return TaskScores(cell.items, cell.full_precision / 100, cell.score / 100)


def _limits(paper: Paper) -> list[Claim]:
    return [claim for finding in paper.findings for claim in finding.claims if claim.band]


@cache
def _all_bands() -> int:
    paper = stored_paper()
    return sum(cell.band is not None for cell in paper.cells.values()) + len(_limits(paper))


@cache
def stored_paper() -> Paper:
    """The files beside this package, read once."""
    return read_paper()
