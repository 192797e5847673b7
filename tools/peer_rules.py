"""The rules by which other projects accept a quantized model's accuracy, and where they come from.

Written anew from what the named files do. Used by ``operating_simulations.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ORIGINS = """
Peers, each applied to one cell:

- *8 % tolerance*: fails below 0.92 of the stored score (vLLM, `.buildkite/lm-eval-harness/`,
  `DEFAULT_RTOL = 0.08` in `test_lm_eval_correctness.py`; also `accuracy_gate.py` at commit 5d9064a);
- *8 % tolerance on a Wilson bound*: fails when the one-sided 95 % Wilson bound of today's score is
  below that (`accuracy_gate.py`, gate `ci`, opt-in);
- *5 % floor*: fails below 0.95 of the stored score (vLLM, `test_lm_eval_correctness.py` at commit
  0731554, `RTOL = 0.05`; it fails 5 % above as well, which is left out);
- *recovery 95 %, rounded*: fails when today's score over the other, rounded to whole percents, is below
  0.95, so below 0.945 (llm-compressor, `tests/lmeval/test_lmeval.py` at commit 0090f19, its default);
- *recovery 99 %*: fails below 0.99 of the score (the figure that Neural Magic's evaluations report,
  "We Ran Over Half a Million Evaluations on Quantized LLMs", 2024; no gate that uses it was found);
- *unpaired z*: two-sided z-test at 0.05 on two accuracies and their standard errors
  (lm-evaluation-harness, `scripts/model_comparator.py` at commit 1c62da1). It takes paired answers for
  independent ones.

llm-compressor and Neural Magic compare with full precision, the others with a stored score. The
arithmetic is the same; here all compare with the baseline, at an accuracy of 90 %.
""".strip()


@dataclass(frozen=True)
class Draw:
    """Counts of one or many simulated evaluations of the same number of items."""

    items: int
    before: Ints
    lost: Ints
    gained: Ints

    @property
    def after(self) -> Ints:
        """Right answers today."""
        return self.before - self.lost + self.gained


def below_share(share: float) -> Callable[[Draw], Bools]:
    """Today's accuracy is under a fixed share of the baseline's; a rule is true where it blames."""
    return lambda seen: seen.after < share * seen.before


def rounded_recovery(seen: Draw) -> Bools:
    """The recovery, rounded to whole percents, is under 95 %."""
    return np.round(seen.after / seen.before, 2) < 0.95


def wilson_gate(seen: Draw) -> Bools:
    """Today's one-sided 95 % Wilson bound is under 92 % of the baseline's accuracy."""
    z2, n, p = 1.6448536269514722**2, seen.items, seen.after / seen.items
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    lower = (p + z2 / (2 * n) - half) / (1 + z2 / n)
    return np.asarray(lower < 0.92 * seen.before / n)


def unpaired_z(seen: Draw) -> Bools:
    """Two accuracies differ by 1.96 of their combined standard errors, as if on different items."""
    p, q = seen.before / seen.items, seen.after / seen.items
    error = np.sqrt((p * (1 - p) + q * (1 - q)) / (seen.items - 1))
    return np.abs(p - q) >= 1.959963984540054 * np.maximum(error, 1e-12)


PEERS: Mapping[str, Callable[[Draw], Bools]] = {
    "8 % tolerance": below_share(0.92),
    "8 % tolerance, Wilson": wilson_gate,
    "recovery 95 %, rounded": rounded_recovery,
    "5 % floor": below_share(0.95),
    "recovery 99 %": below_share(0.99),
    "unpaired z": unpaired_z,
}
