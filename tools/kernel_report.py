"""Write the kernels' tables and roofline from a saved run: ``python -m tools.kernel_report RUN.json``.

``RUN.json`` is what ``pytest tests/benchmarks --qbench-every-shape --benchmark-json=RUN.json`` wrote.
Writes ``cpu.md`` (``cuda.md`` of a GPU) and ``roofline.svg`` (``roofline_cuda.svg``) to the folder of
``--out``. Nothing is measured here and no torch is needed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dllm_qbench.benchmarks.outcome import Outcome
from dllm_qbench.benchmarks.table import milliseconds
from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.report.roofline import SavedRun, points, read_run

DOCS: Final = Path(__file__).parents[1] / "docs" / "benchmarks"
TITLES: Final = {
    "hadamard": "Hadamard transform",
    "rotate_quantize8": "Rotate and quantize to int8, fused",
    "quantize8": "Quantize to int8, per token",
    "quantize4-g128": "Quantize to packed int4, groups of 128",
    "w8a8": "int8 path: quantize the activation, multiply, scale",
    "w4a16-g128": "int4 weight, float activation",
    "w4a8-g128": "int4 weight, int8 activation: quantize the activation, multiply, scale",
    "gptq-g128": "GPTQ's blocked solver",
    "hessian": "Hessian accumulation",
}
RIVAL_KIND: Final = {
    "dense bf16": "o", "dense fp32": "s", "torch._int_mm alone": "^", "torch int4pack_mm": "v",
}  # fmt: skip
MARKS: Final = {"w8a8": "^", "w4a16-g128": "v", "w4a8-g128": "D", "hessian": "P", "gptq-g128": "X"}


def report(run: SavedRun, plot: str) -> str:
    """Return the page: what was measured, on what, how, and the tables."""
    lines = [
        "# Kernels against torch",
        "",
        f"Written by `python -m tools.kernel_report` from a run of {run.date}, commit `{run.commit}`.",
        "How it is measured and gated: [README.md](README.md).",
        "",
        *_machine(run),
        "",
        f"![Roofline]({plot})",
        "",
        *_bars(run.outcomes),
        "**How to read the tables.** `ms` is our median time. The columns behind it are how many times",
        "as fast ours is as a rival, median over rounds with its 95 % bootstrap interval; all contenders of",
        "a row ran in turn in one process. `limit` is our time over the least that copying and",
        "multiplying at the rates above would take: 1 is the best that there is. M is the number of tokens.",
        "",
    ]
    for operation in dict.fromkeys(outcome.operation for outcome in run.outcomes):
        lines += _section(operation, [o for o in run.outcomes if o.operation == operation])
    return "\n".join(lines).rstrip() + "\n"


def _machine(run: SavedRun) -> list[str]:
    versions = ", ".join(f"{name} {found}" for name, found in run.machine["versions"].items())
    clocks = [outcome.megahertz for outcome in run.outcomes if outcome.megahertz]
    clock = "the system does not say"
    if clocks:
        clock = f"{statistics.median(clocks):.0f} MHz ({min(clocks):.0f} to {max(clocks):.0f})"
    peaks = ", ".join(f"{kind} {rate / 1e9:.0f}" for kind, rate in run.roofs.operations.items())
    return [
        f"- machine: {run.machine['processor']}, class `{run.machine['machine_class']}`,"
        f" {run.machine['cores']} cores, {run.machine['threads']} threads",
        f"- clock as the system states it, after each case: {clock}",
        f"- {versions}",
        f"- copying, bytes read and written: {run.roofs.cached / 1e9:.1f} GB/s in a cache,"
        f" {run.roofs.memory / 1e9:.1f} GB/s in memory",
        f"- best matrix product, 10^9 operations a second: {peaks}",
    ]


def _bars(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [
        f"| `{outcome.case}` | {bar.rival} | {bar.at_least:.3g} | {_ratio(outcome, bar.rival)} |"
        f" {'yes' if _kept(outcome, bar.rival, bar.at_least) else '**no**'} |"
        for outcome in outcomes
        for bar in outcome.bars
    ]
    if not rows:
        return []
    return [
        "**Bars.** At least so many times as fast; 0.167 allows six times the rival's time.",
        "",
        "| case | rival | bar | measured | kept |",
        "|---|---|---:|---:|---|",
        *rows,
        "",
    ]


def _kept(outcome: Outcome, rival: str, at_least: float) -> bool:
    return rival in outcome.ratios and outcome.ratios[rival].median >= at_least


def _section(operation: str, outcomes: Sequence[Outcome]) -> list[str]:
    rivals = list(dict.fromkeys(name for outcome in outcomes for name in outcome.ratios))
    lines = [
        f"## {TITLES.get(operation, operation)}",
        "",
        f"| shape | M | type | backend | ms | {' | '.join(rivals)} | limit |",
        f"|---|---:|---|---|---:|{'---:|' * (len(rivals) + 1)}",
    ]
    for outcome in sorted(outcomes, key=lambda o: (o.dtype, o.I, o.O, o.M)):
        shape = f"{outcome.I} -> {outcome.O}" if outcome.O else f"{outcome.I}"
        ratios = " | ".join(_ratio(outcome, name) for name in rivals)
        lines.append(
            f"| {shape} | {outcome.M} | {outcome.dtype} | {outcome.backend} |"
            f" {milliseconds(outcome.ours_s)} | {ratios} | {outcome.over_limit:.1f} |"
        )
    missing: dict[str, list[str]] = {}
    for outcome in outcomes:
        for name, why in outcome.left_out.items():
            plain = "one call takes longer than a second" if why.startswith("one call") else why
            missing.setdefault(f"{name}: {plain}", []).append(outcome.case)
    lines += ["", *(f"Not timed: {what} ({len(cases)} cases)." for what, cases in missing.items())]
    return [*lines, ""]


def _ratio(outcome: Outcome, rival: str) -> str:
    found = outcome.ratios.get(rival)
    return "-" if found is None else f"{found.median:.3g} ({found.low:.3g}-{found.high:.3g})"


# --- the plot ----------------------------------------------------------------------------------


def draw(run: SavedRun, path: Path) -> None:
    """Write the roofline: operations a second against operations a byte, with the measured roofs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "dllm_qbench", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6.5))
    seen = [
        (point.name, "torch" if point.rival else "ours", point.intensity, point.rate)
        for point in points(run.outcomes, run.roofs)
    ]
    lowest = min(intensity for *_, intensity, _ in seen) / 2
    highest = max(intensity for *_, intensity, _ in seen) * 3
    top = max(run.roofs.operations.values(), default=max(rate for *_, rate in seen))
    for label, rate, style in (
        ("copy in a cache", run.roofs.cached, "--"), ("copy in memory", run.roofs.memory, "-")
    ):  # fmt: skip
        end = min(highest, top / rate)
        axes.plot([lowest, end], [lowest * rate, end * rate], style, color="0.55", lw=1.2)
        axes.annotate(
            f"{label}, {rate / 1e9:.0f} GB/s", (lowest * 1.1, lowest * 1.1 * rate), color="0.35",
            rotation=0, xytext=(2, 8 if style == "--" else -14), textcoords="offset points",
        )  # fmt: skip
    for kind, peak in run.roofs.operations.items():
        start = min(highest, peak / max(run.roofs.cached, run.roofs.memory))
        axes.plot([start, highest], [peak, peak], color="0.55", lw=1.2)
        axes.annotate(
            f"{kind} product", (highest, peak), color="0.35", ha="right",
            xytext=(-2, 3), textcoords="offset points",
        )  # fmt: skip
    names = list(dict.fromkeys((name, whose) for name, whose, *_ in seen))
    colors = plt.get_cmap("tab10")
    for number, (name, whose) in enumerate(sorted(names, key=lambda one: one[1])):
        at = [(i, rate) for n, w, i, rate in seen if (n, w) == (name, whose)]
        ours = whose == "ours"
        axes.scatter(
            *zip(*at, strict=True),
            marker=MARKS.get(name, "o") if ours else RIVAL_KIND[name],
            s=28,
            facecolors=colors(number % 10) if ours else "none",
            edgecolors=colors(number % 10) if ours else "0.25",
            linewidths=0.8,
            label=f"ours: {name}" if ours else f"torch: {name.removeprefix('torch').lstrip('. ')}",
            zorder=3 if ours else 2,
        )
    axes.set(
        xscale="log", yscale="log", xlim=(lowest, highest),
        xlabel="operations a byte that has to be read or written",
        ylabel="operations a second",
        title=f"Kernels under the measured roofs of {run.machine['processor']}",
    )  # fmt: skip
    axes.grid(visible=True, which="major", color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, default=DOCS, metavar="DIR")
    given = parser.parse_args()
    try:
        run = read_run(given.run)
    except QBenchError as error:
        raise SystemExit(str(error)) from error
    gpu = str(run.machine["machine_class"]).startswith("cuda")
    plot = "roofline_cuda.svg" if gpu else "roofline.svg"
    given.out.mkdir(parents=True, exist_ok=True)
    draw(run, given.out / plot)
    page = given.out / ("cuda.md" if gpu else "cpu.md")
    write_atomic(page, report(run, plot))
    print(f"{page}: {len(run.outcomes)} cases")


if __name__ == "__main__":
    main()
