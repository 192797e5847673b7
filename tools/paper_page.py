"""Write the tables of ``docs/paper.md`` from ``baselines/paper``: ``python tools/paper_page.py``.

Replaced is what stands between the page's markers: what the paper's tables support, which statements
they contradict and where, and which printed averages and drops are misprints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.paper import Claim, Group, Paper, PrintedAverage, tasks_in_words
from dllm_qbench.paper_files import read_paper

sys.path.insert(0, str(Path(__file__).parents[1]))

PAGE: Final = Path(__file__).parents[1] / "docs" / "paper.md"


def supported(paper: Paper) -> Iterator[str]:
    """What the tables support: each finding, and how many inequalities it is."""
    yield "| finding | tables | inequalities, all of which hold |"
    yield "|---|---|---:|"
    for finding in paper.findings:
        yield f"| {finding.statement} | {_numbers(finding.tables)} | {len(finding.claims)} |"


def contradicted(paper: Paper) -> Iterator[str]:
    """What the tables contradict: every pair of rows that does."""
    yield "| said | but | drop, % | and | drop, % |"
    yield "|---|---|---:|---|---:|"
    for finding in paper.contradicted:
        wrong = [claim for claim in finding.claims if not paper.holds(claim)]
        said = f"{finding.statement}: {len(wrong)} of {len(finding.claims)} comparisons say no"
        for claim in wrong:
            more = _compared(claim)
            yield (
                f"| {said} | {_group(claim.drop_of)} | {paper.drop(claim.drop_of):.2f}"
                f" | {_group(more)} | {paper.drop(more):.2f} |"
            )
            said = ""


def misprints(paper: Paper) -> Iterator[str]:
    """Printed averages and drops that the scores of their own rows contradict; those are in bold."""
    yield (
        "| table | model | quantized | tasks | printed average | mean of the scores | printed drop, %"
        " | drop of the means, % | drop of the printed averages, % |"
    )
    yield "|---:|---|---|---|---:|---:|---:|---:|---:|"
    full = {_key(row): row for row in paper.averages if row.quantized is None}
    for row in paper.averages:
        if row.misprints:
            yield _misprint(row, full)


def _misprint(row: PrintedAverage, full: Mapping[tuple[str, int, str], PrintedAverage]) -> str:
    average, drop = f"{row.average:.1f}", "" if row.drop is None else f"{row.drop:.1f}"
    if "average" in row.misprints:
        average = f"**{average}**"
    if "drop" in row.misprints:
        drop = f"**{drop}**"
    true = "" if row.recomputed_drop is None else f"{row.recomputed_drop:.2f}"
    printed = ""
    if row.quantized is not None:
        printed = f"{100 * (1 - row.average / full[_key(row)].average):.2f}"
    return (
        f"| {row.table} | {row.model} | {row.quantized or 'full precision'} |"
        f" {tasks_in_words(row.tasks)} | {average} | {row.recomputed_average:.2f} | {drop} | {true} |"
        f" {printed} |"
    )


def _key(row: PrintedAverage) -> tuple[str, int, str]:
    return row.model, row.table, row.category


def _compared(claim: Claim) -> Group:
    assert claim.above_that_of is not None, f"{claim}: only comparisons are contradicted"
    return claim.above_that_of


def _group(group: Group) -> str:
    return f"{group.quantized} on {group.model}, {tasks_in_words(group.tasks)}"


def _numbers(tables: tuple[int, ...]) -> str:
    return ", ".join(map(str, tables))


TABLES: Final[Mapping[str, Callable[[Paper], Iterator[str]]]] = {
    "supported": supported,
    "contradicted": contradicted,
    "misprints": misprints,
}


def rewritten(text: str, paper: Paper) -> str:
    """The page with its tables as the files have them; ``SystemExit`` where a marker is missing."""
    for name, table in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name}:begin -->")
        _, end, after = rest.partition(f"<!-- {name}:end -->")
        if not begin or not end:
            raise SystemExit(f"{PAGE}: markers {name}:begin and {name}:end are missing")
        text = f"{before}{begin}\n\n{chr(10).join(table(paper))}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    write_atomic(PAGE, rewritten(PAGE.read_text(encoding="utf-8"), read_paper()))
