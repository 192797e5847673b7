"""Write the kill matrix: ``pytest -m faults --junitxml=RUN.xml; python tools/kill_matrix.py RUN.xml ...``.

Several files are parts of one run (``-k``). Writes ``docs/kill_matrix.md``: every planted fault with the
first check of the quick tier that caught it.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.meta.conftest import FAULT
from tests.meta.faults.catalogue import FAULTS
from tests.meta.faults.kill import CHECKS
from tests.meta.test_faults import SURVIVORS

DOCS = Path(__file__).parents[1] / "docs" / "kill_matrix.md"


def caught_by(path: str) -> dict[str, str | None]:
    """Fault -> first check of one run, ``None`` where nothing caught it."""
    found = {}
    for entry in ElementTree.parse(path).iter("property"):
        if entry.get("name") == FAULT:
            name, _, check = ast.literal_eval(entry.get("value", ""))
            found[name] = check
    return found


def main() -> None:
    """Command line."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    found: dict[str, str | None] = {}
    for path in sys.argv[1:]:
        found |= caught_by(path)
    known = {fault.name: fault for fault in FAULTS}
    found = {name: check for name, check in found.items() if name in known}
    if missing := sorted(set(known) - set(found)):
        raise SystemExit(f"not in any run: {', '.join(missing)}")
    harmful = {n: c for n, c in found.items() if known[n].severity == "harmful"}
    benign = {n: c for n, c in found.items() if known[n].severity == "benign"}
    caught = [check for check in harmful.values() if check]
    counts = Counter(caught)
    text = [
        "# Kill matrix",
        "",
        "Written by `python tools/kill_matrix.py` from a run of `pytest -m faults`. Each fault is one small",
        "patch, planted alone, and looked at in one cell of the quick matrix, with that matrix's error rate.",
        "",
        f"**{len(caught)} of {len(harmful)} harmful faults are caught"
        f" ({100 * len(caught) / len(harmful):.1f} %); {sum(map(bool, benign.values()))} of {len(benign)}"
        " benign changes are flagged.**",
        "",
        "Checks in the order of their cost, and how many faults each is the first to catch:"
        f" {', '.join(f'{check} {counts[check]}' for check in CHECKS if counts[check])}.",
        "*law*: a property test; *error*: the quantizer or the evaluation refuses; *audit*: of what is",
        "stored; *audit again*: those audits that run the quantizer once more; *reference*: full precision",
        "itself changed.",
        "",
        "| fault | cell | caught by | what it is |",
        "|---|---|---|---|",
    ]
    for name, check in sorted(harmful.items(), key=lambda pair: (_rank(pair[1]), pair[0])):
        fault = known[name]
        cell = f"{fault.method} {fault.scheme} {fault.task}, {fault.model.partition('-')[0]}"
        shown = check or f"**nothing**: {SURVIVORS.get(name, 'not explained')}"
        text.append(f"| {name} | {cell} | {shown} | {fault.what} |")
    text += ["", "## Benign changes", "", "| change | flagged by | what it is |", "|---|---|---|"]
    for name, check in sorted(benign.items()):
        text.append(f"| {name} | {check or '-'} | {known[name].what} |")
    DOCS.write_text("\n".join([*text, ""]), encoding="utf-8")
    print(text[6])
    print([name for name, check in harmful.items() if not check])
    print([(name, check) for name, check in benign.items() if check])


def _rank(check: str | None) -> int:
    return CHECKS.index(check) if check else len(CHECKS)


if __name__ == "__main__":
    main()
