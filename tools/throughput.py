"""Measure evaluation against the released procedure: ``python tools/throughput.py [ITEMS] [REPEATS]``.

Both run the same items with the same masks in this process, in turn, on one thread, and must give the
same results. Times are the processor's, so that other programs on the machine do not count. Writes
``docs/throughput.md``.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[1]))

import dllm_qbench as qb
from dllm_qbench.diffusion import by_model
from dllm_qbench.diffusion.likelihood import Request
from dllm_qbench.models.embedded.items import FAMILIES, test_items
from dllm_qbench.seeding import derive
from tests.helpers import official_procedure as official

DOCS = Path(__file__).parents[1] / "docs" / "throughput.md"
MODELS: Final = ("llada-embedded", "dream-embedded")
SAMPLES: Final = 128
GENERATION: Final = (18, 9, 6)
"""gen_length, steps and block_length of the embedded tasks."""
WHOLE: Final = "all three"
LONG: Final = "likelihood of long targets"
TOLERANCE: Final = 1e-4
"""Nats by which two estimates of one log-likelihood may differ: sums of float32 in another order."""


@dataclass
class Timing:
    """Processor seconds of each repetition, the two procedures in turn."""

    name: str
    ours: list[float] = field(default_factory=list)
    official: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Geometric mean of the ratios, and its 90 % interval (Student, on logarithms)."""
        logs = [math.log(b / a) for a, b in zip(self.ours, self.official, strict=True)]
        mean, half = statistics.fmean(logs), 0.0
        if len(logs) > 1:
            spread = statistics.stdev(logs) / math.sqrt(len(logs))
            half = float(student.ppf(0.95, len(logs) - 1)) * spread
        return math.exp(mean), math.exp(mean - half), math.exp(mean + half)

    @property
    def undisturbed(self) -> float:
        """Ratio of the shortest times: what other programs on the machine disturb least."""
        return min(self.official) / min(self.ours)


def measure(model: str, items: int, repeats: int) -> list[Timing]:
    """Time the three families, all of them together, and long targets, of one embedded model.

    ``SystemExit`` where the two procedures do not give the same results.
    """
    lm = qb.load(model)
    families = {
        "general": _likelihood(lm, items),
        "math": _generation(lm, "math", items),
        "code": _generation(lm, "code", items),
    }
    timings = [Timing(name) for name in (*families, WHOLE)]
    families |= {LONG: _likelihood(lm, max(1, items // 4), long=True)}
    timings.append(Timing(LONG))
    for ours, _, _ in families.values():
        ours()  # warms up
    for _ in range(repeats):
        took = {name: _in_turn(f"{model} {name}", *family) for name, family in families.items()}
        of_families = [took[name] for name in FAMILIES]
        took[WHOLE] = sum(a for a, _ in of_families), sum(b for _, b in of_families)
        for timing in timings:
            timing.ours.append(took[timing.name][0])
            timing.official.append(took[timing.name][1])
    return timings


Family = tuple[
    Callable[[], Sequence[object]],
    Callable[[], Sequence[object]],
    Callable[[Sequence[object], Sequence[object]], bool],
]


def _in_turn(
    name: str,
    ours: Callable[[], Sequence[object]],
    theirs: Callable[[], Sequence[object]],
    same: Callable[[Sequence[object], Sequence[object]], bool],
) -> tuple[float, float]:
    """Run both procedures, compare their results, and return their times."""
    start = time.process_time()
    one = ours()
    middle = time.process_time()
    other = theirs()
    end = time.process_time()
    if not same(one, other):
        raise SystemExit(f"{name}: the two procedures do not give the same results")
    return middle - start, end - middle


def _likelihood(lm: qb.DiffusionLM, items: int, long: bool = False) -> Family:
    """The choices of ``general``; or, ``long``, the worked answers of ``math``, one an item."""
    requests: list[Request] = []
    for item in test_items("math" if long else "general", items, 0):
        prompt = _ids(lm, item.prompt)
        seed = derive(0, "throughput", item.id)
        for choice in (item.answer,) if long else item.choices:
            requests.append((prompt, _ids(lm, f"{item.prompt} {choice}")[len(prompt) :], seed))
    # Drawn before the clock starts: the release's own way of drawing is not what is compared.
    drawn = [official.samples_of(lm, len(target), SAMPLES, seed) for _, target, seed in requests]
    choices = len(requests) // items

    def same(one: Sequence[object], other: Sequence[object]) -> bool:
        a, b = torch.tensor(one).view(-1, choices), torch.tensor(other).view(-1, choices)
        chosen = bool((a.argmax(1) == b.argmax(1)).all())
        return chosen and float((a - b).abs().max()) <= TOLERANCE

    return (
        lambda: by_model.log_likelihoods(lm, requests, SAMPLES),
        lambda: [
            official.log_likelihood(lm, context, target, samples)
            for (context, target, _), samples in zip(requests, drawn, strict=True)
        ],
        same,
    )


def _generation(lm: qb.DiffusionLM, family: str, items: int) -> Family:
    prompts = [_ids(lm, item.prompt) for item in test_items(family, items, 0)]
    return (
        lambda: by_model.generate(lm, prompts, *GENERATION),
        lambda: [official.generate(lm, prompt, *GENERATION) for prompt in prompts],
        lambda one, other: one == other,
    )


def _ids(lm: qb.DiffusionLM, text: str) -> list[int]:
    assert lm.tokenizer is not None
    return list(lm.tokenizer(text)["input_ids"])


def table(found: dict[str, list[Timing]]) -> str:
    """A Markdown table; times are medians."""
    lines = [
        "| model | family | ours, s | released procedure, s | ratio | 90 % interval |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for model, timings in found.items():
        for timing in timings:
            ratio, low, high = timing.ratio
            ours, theirs = map(statistics.median, (timing.ours, timing.official))
            lines.append(
                f"| {model} | {timing.name} | {ours:.2f} | {theirs:.2f} | {ratio:.1f} |"
                f" {low:.1f} to {high:.1f} |"
            )
    return "\n".join(lines)


def page(found: dict[str, list[Timing]], items: int, repeats: int) -> str:
    """``docs/throughput.md``."""
    return f"""# Throughput of evaluation

Written by `python tools/throughput.py {items} {repeats}` on {_processor()}, one thread, torch
{torch.__version__}, float32. Each family has {items} items; {repeats} repetitions, the two procedures in
turn in one process. Times are the processor's.

{table(found)}

**What is compared.** The released procedure, said again in `tests/helpers/official_procedure.py`, scores
one choice at a time: {SAMPLES} masked copies in forward passes of {official.BATCH} (the default of LLaDA's
`eval_llada.py`; its published commands give 8, which is slower here), and generates one prompt at a time
(batch size 1 in Dream's published commands, a loop over prompts in LLaDA's code). Ours plans all choices
of all items, runs equal canvases once, and fills every forward pass to a budget of tokens. Both are given
the same items, the same {SAMPLES} masks a choice and the same settings of the sampler, and every
repetition checks the results: log-likelihoods within {TOLERANCE:g} nats, the same choices, the same
generated tokens. Reading prompts and scoring answers is the same code for both and is not timed.

**Where the gain comes from.** Likelihood: targets of three tokens have seven masks, so that {SAMPLES}
samples are at most seven canvases, and choices that differ in one word share those that hide it. A longer
target repeats fewer masks, and the gain falls to what batching alone gives, which is little on a CPU: the
last row of each model scores the worked answers of `math` ({max(1, items // 4)} of them, not in the sum).
Generation: a denoising step of one prompt is no less work than its share of a batch, so on a
CPU only the overhead of small matrix products and of a step's bookkeeping is saved.

What cells share is not run again at all: full precision's answers are kept by weights, task and items.
"""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text() if info.is_file() else "").splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else platform.processor() or platform.machine()} ({len(names)} cores)"
    )


def main() -> None:
    """Command line."""
    if len(sys.argv) > 3:
        raise SystemExit(__doc__)
    items, repeats = (*map(int, sys.argv[1:]), *(64, 5)[len(sys.argv) - 1 :])
    torch.set_num_threads(1)
    found = {model: measure(model, items, repeats) for model in MODELS}
    print(table(found))
    DOCS.write_text(page(found, items, repeats), encoding="utf-8")


if __name__ == "__main__":
    main()
