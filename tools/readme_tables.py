"""Write a run's tables into the README: ``python tools/readme_tables.py RECORDS``.

RECORDS is what ``pytest -m quick --qbench-records=RECORDS`` wrote. Replaced is what stands between
the README's markers ``<!-- drops:begin -->`` (drops by model, method and scheme) and
``<!-- table:begin -->`` (the summary, as the terminal shows it).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dllm_qbench import terminal
from dllm_qbench.outcomes import Outcome

README = Path(__file__).parents[1] / "README.md"
SCHEMES = ("W4A16-g64", "W3A16-g64", "W8A8", "W4A4")
TASKS = ("general", "math", "code")
METHODS = ("rtn", "gptq", "awq", "smoothquant", "quarot", "duquant")


def read(path: str) -> list[Outcome]:
    """The outcomes of a record file."""
    return [Outcome.from_json(line) for line in Path(path).read_text("utf-8").splitlines()]


def drops(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table: a row for each scheme and method, a column for each model and task."""
    found = {(o.model, o.cell): o.verdict["drop"] for o in outcomes if o.verdict}
    models = list(dict.fromkeys(model for model, _ in found))
    rows = dict.fromkeys(cell.rpartition("/")[0] for _, cell in found)
    ranked = sorted(rows, key=_rank)
    head = [f"{model}: {task}" for model in models for task in TASKS]
    lines = [f"| scheme | method | {' | '.join(head)} |", f"|---|---|{'---:|' * len(head)}"]
    for row in ranked:
        method, _, scheme = row.partition("/")
        values = [found[model, f"{row}/{task}"] for model in models for task in TASKS]
        lines.append(f"| {scheme} | {method} | {' | '.join(f'{v:.1f}' for v in values)} |")
    return "\n".join(lines)


def _rank(row: str) -> tuple[int, int]:
    method, _, scheme = row.partition("/")
    return SCHEMES.index(scheme), METHODS.index(method)


def as_printed(outcomes: Sequence[Outcome]) -> str:
    """The summary as a terminal of 80 columns shows it."""
    return "\n".join(["```text", *terminal.plain_summary(outcomes, 80), "```"])


def replaced(text: str, name: str, inner: str) -> str:
    """The text with what stands between two markers replaced."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{README}: no {begin.strip()} with its {end}")
    return f"{before}{begin}{inner}\n{end}{after}"


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    outcomes = read(sys.argv[1])
    text = README.read_text("utf-8")
    text = replaced(text, "drops", drops(outcomes))
    text = replaced(text, "table", as_printed(outcomes))
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
