"""Result tables as Markdown, LaTeX and CSV. No torch.

Markdown and LaTeX show one decimal, the best of a scheme in bold, and a dash where a cell was not measured.
CSV (RFC 4180, a file a model) holds all digits and leaves such cells empty.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.report.names import file_name
from dllm_qbench.report.result_tables import Column, ResultTable, Row, Value, one_decimal
from dllm_qbench.summary_markdown import NAME, code, plain

FORMATS: Final = ("md", "latex", "csv")
_SPECIAL: Final[Mapping[str, str]] = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
}  # fmt: skip


def write_tables(
    tables: Sequence[ResultTable], folder: str | Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write ``tables.md``, ``tables.tex`` and a CSV file a model to a folder; return the files.

    Raises:
        QBenchError: an unknown format, two models whose names make one file's, or a file that cannot be
            written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise QBenchError(
            f"tables: format {unknown[0]!r} is unknown; expected {', '.join(FORMATS)}"
        )
    texts: dict[Path, str] = {}
    for name in formats:
        if name == "md":
            texts[Path(folder) / "tables.md"] = markdown(tables)
        elif name == "latex":
            texts[Path(folder) / "tables.tex"] = latex(tables)
        else:
            for table in tables:
                path = Path(folder) / f"{file_name('table', table.model)}.csv"
                if path in texts:
                    raise QBenchError(f"{path}: two models' tables would have this name")
                texts[path] = as_csv(table)
    for path, text in texts.items():
        try:
            write_atomic(path, text)
        except OSError as error:
            raise QBenchError(f"{path}: cannot be written: {error}") from error
    return [*texts]


# --- Markdown ----------------------------------------------------------------------------------


def markdown(tables: Sequence[ResultTable]) -> str:
    """Write all tables as Markdown, a heading a model."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: ResultTable) -> str:
    head = ["scheme", "method", *(plain(column.title, NAME) for column in table.columns)]
    lines = [
        f"## {code(table.model)}",
        "",
        _caption(table),
        "",
        f"| {' | '.join(head)} |",
        f"|---|---|{'---:|' * len(table.columns)}",
    ]
    for row in table.rows:
        shown = [_in_markdown(value) for value in row.values]
        shown = _blank_drops(row, table.columns, shown)
        lines.append(
            f"| {' | '.join([plain(row.scheme, NAME), plain(row.method, NAME), *shown])} |"
        )
    return "\n".join([*lines, ""])


def _in_markdown(value: Value) -> str:
    text = f"**{value.shown}**" if value.best else value.shown
    return text + _bounds(value, "-∞")


# --- LaTeX -------------------------------------------------------------------------------------


def latex(tables: Sequence[ResultTable]) -> str:
    """Write all tables as LaTeX, for a document that reads them in; the first line says what it needs."""
    needs = r"% \usepackage{booktabs} \usepackage[T1]{fontenc}"
    return "\n".join([needs, *(_latex(table) for table in tables)])


def _latex(table: ResultTable) -> str:
    families = [(name, len([*of])) for name, of in groupby(table.columns, lambda c: c.family)]
    above, rules, at = ["", ""], [], 3
    for name, width in families:
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(name)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    titles = ["scheme", "method", *(_latex_title(column) for column in table.columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\small",
        rf"\caption{{\texttt{{{escaped(table.model)}}}. {escaped(_caption(table))}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        f"{' & '.join(above)} \\\\",
        " ".join(rules),
        f"{' & '.join(titles)} \\\\",
    ]
    for scheme, rows in groupby(table.rows, lambda row: (row.scheme, row.is_reference)):
        lines.append(r"\midrule")
        for number, row in enumerate(rows):
            shown = _blank_drops(row, table.columns, [_in_latex(value) for value in row.values])
            first = escaped(scheme[0]) if number == 0 else ""
            lines.append(f"{' & '.join([first, escaped(row.method), *shown])} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_title(column: Column) -> str:
    return escaped(column.tasks[0]) if column.kind == "accuracy" else column.kind


def _in_latex(value: Value) -> str:
    text = "--" if value.number is None else _minus(value.shown)
    text = rf"\textbf{{{text}}}" if value.best else text
    return text + _minus(_bounds(value, r"$-\infty$"))


def _minus(text: str) -> str:
    """A hyphen before a digit is a minus sign."""
    return re.sub(r"-(?=\d)", "$-$", text)


def escaped(text: str) -> str:
    """Return text that LaTeX sets as it stands."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text if sign.isprintable())


# --- CSV ---------------------------------------------------------------------------------------


def as_csv(table: ResultTable) -> str:
    """Write one table as CSV: lines end in CR LF, missing cells are empty, numbers have all digits."""
    bounded = [
        any(row.values[at].interval for row in table.rows) for at in range(len(table.columns))
    ]
    head = ["model", "scheme", "method"]
    for column, has_bounds in zip(table.columns, bounded, strict=True):
        head.append(column.title)
        head += [f"{column.title} low", f"{column.title} high"] if has_bounds else []
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(head)
    for row in table.rows:
        line: list[object] = [table.model, row.scheme, row.method]
        for value, has_bounds in zip(row.values, bounded, strict=True):
            line.append(value.number)
            line += [*(value.interval or (None, None))] if has_bounds else []
        writer.writerow(line)
    return stream.getvalue()


# --- shared ------------------------------------------------------------------------------------


def _caption(table: ResultTable) -> str:
    told = (
        f"Accuracy in % on {table.items} items a task; drops in % of full precision's, positive where it is"
        " worse. Best of a scheme in bold."
    )
    if any(value.interval for row in table.rows for value in row.values):
        told += " In brackets: each end is a one-sided 95 % bound."
    return told


def _blank_drops(row: Row, columns: Sequence[Column], shown: Sequence[str]) -> list[str]:
    """Full precision has no drops, which is not the same as missing ones."""
    return [
        "" if row.is_reference and column.kind == "drop" else text
        for column, text in zip(columns, shown, strict=True)
    ]


def _bounds(value: Value, unbounded: str) -> str:
    if value.interval is None:
        return ""
    low, high = value.interval
    return f" [{unbounded if low is None else one_decimal(low)}, {one_decimal(high)}]"
