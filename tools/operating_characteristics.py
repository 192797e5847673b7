"""Write ``docs/operating_characteristics.md`` and ``.svg``: ``python tools/operating_characteristics.py``.

What the suite's verdicts on answers can and cannot see, beside the rules that peers use. Needs the
extra ``docs``; takes about half a minute on one core, the same bytes on every run of the same versions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import peer_rules
from operating_simulations import (
    CELLS,
    CHUNK,
    FAMILY,
    FAMILY_SEQUENTIAL,
    LEVEL,
    LEVEL_SEQUENTIAL,
    TASKS,
    Truth,
    catches,
    false_alarms,
    items_for,
    power,
    replay,
    sequels,
    stored_cells,
)

from dllm_qbench.baselines import CellBaseline
from dllm_qbench.verdict.matrix import ALPHA_RUN
from dllm_qbench.verdict.sequential import ALPHA_EQUIVALENT, DELTA

DOCS = Path(__file__).parents[1] / "docs"
SEED = 20250814
DRAWS = 20_000
RUNS = 5_000
STREAMS = 2_000
DROPS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
ITEMS = (200, 500, 1319, 2000)
FLIPS = (0.01, 0.04, 0.08)
WANTED = 0.93
"""Catch probability of a 3-point drop on 1,319 items (GSM8K's test set) that was asked for."""

NAMES = {
    "any": "**ours: a cell or pooled**",
    "pooled": "ours: pooled over 3 tasks",
    "one cell": "ours: one cell",
    "sequential": "ours: one cell, sequential",
    "8 % tolerance": "8 % tolerance (vLLM)",
    "8 % tolerance, Wilson": "8 % tolerance on a Wilson bound (vLLM, opt-in)",
    "recovery 95 %, rounded": "recovery 95 %, rounded (llm-compressor)",
    "5 % floor": "5 % floor (vLLM before)",
    "recovery 99 %": "recovery 99 % (Neural Magic)",
    "unpaired z": "unpaired z at 0.05 (lm-eval)",
}

RULES = f"""
Ours; every level is a share of a family-wise {ALPHA_RUN:g} for the whole run:

- *one cell*: exact one-sided McNemar on today's answers against the stored baseline's, at
  {ALPHA_RUN:g} / {FAMILY} = {LEVEL:.2g} ({CELLS} cells and {FAMILY - CELLS} quantized models);
- *pooled*: the same on the three tasks of one quantized model together, same level, all three with
  the drop;
- *a cell or pooled*: at least one of these four, which is what `judge_matrix` reports. Holm rejects a
  little more when other cells are rejected too; that is not counted here;
- *one cell, sequential*: looked at after every {CHUNK} items, at {ALPHA_RUN:g} / {FAMILY_SEQUENTIAL}
  = {LEVEL_SEQUENTIAL:.2g}, half of it for the answers and half for the band, which this
  simulation leaves out; stops at evidence for *worse* or for *no worse by {100 * DELTA:g} points*
  (error {ALPHA_EQUIVALENT:g}); what is open at the last item gets the fixed test, at the same level.
""".strip()


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers to the right."""
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def flips_recorded(cells: Sequence[CellBaseline]) -> list[str]:
    """Full precision against quantized: how many answers the schemes change, each way."""
    found: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        pairs, scheme = cell.pairs, cell.cell.split("/")[1]
        found.setdefault(scheme, []).append((pairs.lost / pairs.items, pairs.gained / pairs.items))
    rows = []
    for scheme, rates in found.items():
        columns = [
            [percent(f(side)) for f in (min, statistics.median, max)]
            for side in zip(*rates, strict=True)
        ]
        rows.append([scheme, str(len(rates)), *columns[0], *columns[1]])
    head = ["scheme", "cells", "lost: min", "median", "max", "gained: min", "median", "max"]
    return table(head, rows)


def catch_tables(flips: float, items: Sequence[int]) -> list[str]:
    """Catch probability by drop and rule, one table a number of items."""
    lines = []
    for count in items:
        truths = [Truth(count, drop, flips) for drop in DROPS]
        found = [catches(truth, DRAWS, SEED) for truth in truths]
        streams = [sequels(truth, STREAMS, SEED) for truth in truths]
        blamed = false_alarms(truths[0], RUNS, SEED)
        rows = []
        for name, label in NAMES.items():
            shares = (
                [s.caught for s in streams] if name == "sequential" else [f[name] for f in found]
            )
            alarms = percent(blamed[name]) if name in blamed else ""
            rows.append([label, *(f"{share:.3f}" for share in shares[1:]), alarms])
        used = [f"{s.items:.0f}" for s in streams]
        wrong = [f"{s.equivalent:.3f}" for s in streams]
        lines += [
            f"#### {count} items, {percent(flips)} benign flips each way",
            "",
            *table(
                ["rule", *(f"-{100 * d:.0f}" for d in DROPS[1:]), f"false alarm in {CELLS} cells"],
                rows,
            ),
            "",
            f"Sequential: {used[0]} items on average when nothing changed ({wrong[0]} settled as no "
            f"worse), {', '.join(used[1:])} at the drops above (settled as no worse: "
            f"{', '.join(wrong[1:])}).",
            "",
        ]
    return lines


def acceptance() -> list[str]:
    """Every reading of the acceptance criterion, with what is attained."""
    asked = Truth(1319, 0.03, 0.04)
    readings: list[tuple[str, Truth, float, int]] = [
        ("one test, no run around it, level 0.05", asked, 0.05, 1),
        ("one test, no run around it, level 0.01", asked, 0.01, 1),
        (f"one cell, 0.01 over {CELLS} cells", asked, ALPHA_RUN / CELLS, 1),
        (f"one cell, 0.01 over {FAMILY} tests (as `judge_matrix`)", asked, LEVEL, 1),
        (f"**three tasks pooled, 0.01 over {FAMILY} tests (as `judge_matrix`)**", asked, LEVEL, 3),
        ("three tasks pooled, five tests a cell, 0.01 over 448", asked, ALPHA_RUN / 448, 3),
        (
            "one cell, the 4 % are half of all flips (5.5 lost, 2.5 gained)",
            replace(asked, flips=0.025),
            LEVEL,
            1,
        ),
        ("the same, three tasks pooled", replace(asked, flips=0.025), LEVEL, 3),
        (
            "one cell, the 4 % lost hold the drop (4 lost, 1 gained)",
            replace(asked, flips=0.01),
            LEVEL,
            1,
        ),
    ]
    rows = []
    for label, truth, level, tasks in readings:
        exact = power(truth, level, tasks)
        verdict = "yes" if exact >= WANTED else "no"
        rows.append(
            [label, f"{100 * truth.lost:.1f} / {100 * truth.flips:.1f}", f"{exact:.3f}", verdict]
        )
    found = catches(asked, DRAWS, SEED)
    streams = sequels(replace(asked, drop=0.0), 1_000, SEED + 1, cells=CELLS)
    blamed = false_alarms(asked, 4 * RUNS, SEED)
    peers = [
        [NAMES[name], *(f"{found[n]:.3f}, {percent(blamed[n])}" for n in (name, f"{name}, pooled"))]
        for name in peer_rules.PEERS
    ]
    alone = items_for(WANTED, asked, LEVEL)
    return [
        f"Asked: a true 3-point drop at 1,319 items with 4 % flips each way is caught with probability "
        f"{WANTED} at least (simulated), at a false-alarm rate of at most 1 % for the whole matrix.",
        "",
        *table(["reading", "lost / gained, %", "caught (exact)", f"{WANTED} reached"], rows),
        "",
        f"Simulated ({DRAWS:,} runs): one cell {found['one cell']:.3f}, pooled {found['pooled']:.3f}, a "
        f"cell or pooled {found['any']:.3f}. False alarm anywhere in an unchanged matrix of {CELLS} "
        f"cells ({4 * RUNS:,} runs): {percent(blamed['any'], 2)}; of its cells evaluated sequentially, "
        f"at a level for {FAMILY_SEQUENTIAL} tests (1,000 runs): {percent(streams.caught, 2)}.",
        "",
        "So the criterion is met for a quantized model, whose three tasks are judged together, when the "
        "drop is on all three. It is **not** met for a cell alone: McNemar's test is the most powerful "
        "unbiased one on the right and wrong answers of a cell, up to discreteness, and with these flips "
        f"it needs about {alone:,} items. A figure near 0.95 belongs to a single test at level 0.05, "
        "without a run around it.",
        "",
        "What peers' rules make of it, on a cell and on the three tasks' answers together: catch "
        f"probability, and false alarm somewhere in {CELLS} cells or {CELLS // TASKS} quantized models.",
        "",
        *table(["rule", "one cell", "three tasks pooled"], peers),
    ]


def savings(cells: Sequence[CellBaseline], items: int = 500) -> list[str]:
    """Replays of the stored answers, unchanged and changed."""
    cases = [
        ("unchanged: the stored answers again", 0.0, 0.0, 1),
        ("benign flips, 0.1 % each way", 0.0, 0.001, 10),
        ("benign flips, 1 % each way", 0.0, 0.01, 10),
        ("benign flips, 4 % each way", 0.0, 0.04, 10),
        ("a drop of 3 points, no flips", 0.03, 0.0, 10),
        ("a drop of 3 points, flips 1 %", 0.03, 0.01, 10),
        ("a drop of 6 points, flips 1 %", 0.06, 0.01, 10),
        ("a drop of 20 points, flips 1 %", 0.20, 0.01, 10),
    ]
    rows = []
    for label, drop, flips, repeats in cases:
        seen = replay(cells, items, drop, flips, repeats, SEED)
        rows.append(
            [
                label,
                percent(1 - seen.items / items),
                f"{seen.items:.0f}",
                f"{seen.equivalent:.3f}",
                f"{seen.degraded + seen.improved:.3f}",
                f"{seen.caught:.3f} / {seen.caught_fixed:.3f}",
                f"{seen.same:.3f} / {seen.same_fixed:.3f}",
            ]
        )
    head = [
        f"{len(cells)} cells",
        "items saved",
        "mean items",
        "settled equivalent",
        "settled degraded or improved",
        "worse: sequential / fixed",
        f"no worse by {100 * DELTA:g}: sequential / fixed",
    ]
    return [
        f"Each stored cell is evaluated again on its first {items} items, {CHUNK} at a time, by "
        f"`Sequential` with its own band; the fixed design uses all {items}. Both may call an "
        f"unchanged cell worse with a probability of about {LEVEL:.1g} (fixed: {LEVEL:.2g}; "
        f"sequential: {LEVEL_SEQUENTIAL:.2g} before the last item and again there), and a cell that "
        f"loses {100 * DELTA:g} points no worse with probability {ALPHA_EQUIVALENT:g}. Left of each "
        "slash, the fixed test follows at the last item where nothing was settled. A cell gains no more "
        "than it had wrong, so flips are fewer where the score is near 100 %.",
        "",
        *table(head, rows),
        "",
        f"What is saved is saved where nothing moved, the usual case in a pull request: {rows[0][2]} items "
        "settle a cell there. A few flips in both directions cost most of it, and a drop near "
        f"{100 * DELTA:g} points is hardly ever settled early. Left and right of a slash differ in what two "
        "tests a cell cost: each has a smaller level.",
    ]


def plot(path: Path) -> None:
    """Catch probability against the drop; the two cases that differ most."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "dllm_qbench", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    drops = [step / 400 for step in range(25)]
    styles: Mapping[str, tuple[str, str]] = {
        "any": ("tab:blue", "-"),
        "one cell": ("tab:blue", "--"),
        "unpaired z": ("tab:orange", "-"),
        "recovery 99 %": ("tab:red", "-"),
        "5 % floor": ("tab:green", "-"),
        "recovery 95 %, rounded": ("tab:olive", "-"),
        "8 % tolerance": ("tab:gray", "-"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), sharey=True)
    for axis, (items, flips) in zip(axes, ((500, 0.01), (1319, 0.04)), strict=True):
        found = [catches(Truth(items, drop, flips), 5_000, SEED) for drop in drops]
        blamed = false_alarms(Truth(items, 0.0, flips), RUNS, SEED)
        for name, (color, line) in styles.items():
            alarms = blamed.get(name, blamed["any"])
            label = f"{NAMES[name].strip('*')}: {percent(alarms)}"
            shares = [seen[name] for seen in found]
            axis.plot([100 * d for d in drops], shares, line, color=color, label=label)
        axis.axvline(3, color="0.8", linewidth=0.8, zorder=0)
        axis.set_title(f"{items} items, {percent(flips, 0)} benign flips each way")
        axis.set_xlabel("true drop, points of accuracy")
        axis.legend(
            title=f"rule: false alarm anywhere in {CELLS} unchanged cells",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
            fontsize=8,
            title_fontsize=8,
        )
    axes[0].set_ylabel("probability to be caught")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def page() -> str:
    """The Markdown page."""
    cells = stored_cells()
    gained = [cell.pairs.gained / cell.pairs.items for cell in cells]
    lines = [
        "# Operating characteristics: what the verdicts on answers can see",
        "",
        "Written by `python tools/operating_characteristics.py` (extra `docs`); do not edit. Simulated from "
        f"seed {SEED}: {DRAWS:,} runs a figure (standard error at most 0.004), {RUNS:,} whole matrices a "
        f"false-alarm rate, {STREAMS:,} streams a sequential figure (at most 0.011).",
        "",
        "Right and wrong answers only. The suite also compares the SQNR of each module and other "
        "continuous metrics, which see most faults on far fewer items.",
        "",
        "![Catch probability against the true drop](operating_characteristics.svg)",
        "",
        "## The acceptance criterion",
        "",
        *acceptance(),
        "",
        "## The rules",
        "",
        *RULES.splitlines(),
        "",
        *peer_rules.ORIGINS.splitlines(),
        "",
        "## How often answers flip",
        "",
        "Full precision against quantized, in the stored baselines. Between two runs of one quantizer "
        "flips are rarer: there are none where both give the same bits. What another platform or kernel "
        "flips has not been measured here; W8A8, the mildest scheme, is the nearest to it.",
        "",
        *flips_recorded(cells),
        "",
        "## Catch probability",
        "",
        "Drops in points of accuracy. The last column is the chance that an unchanged quantizer is "
        "blamed somewhere in the run: what a rule's catches are worth.",
        "",
    ]
    for flips in FLIPS:
        lines += [f"### Benign flips {percent(flips)} each way", "", *catch_tables(flips, ITEMS)]
    lines += [
        "### The recorded range",
        "",
        "The fewest and the most answers that quantization turned right in a stored cell.",
        "",
    ]
    for flips in (min(gained), max(gained)):
        lines += catch_tables(flips, (1319,))
    lines += ["## What sequential evaluation saves", "", *savings(cells)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    DOCS.mkdir(exist_ok=True)
    (DOCS / "operating_characteristics.md").write_text(page(), encoding="utf-8")
    plot(DOCS / "operating_characteristics.svg")


if __name__ == "__main__":
    main()
