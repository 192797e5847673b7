"""Measure how often localisation names the faulty linear and the kind of its error.

    python -m tools.localisation [--workers 2] [--every 1] [--out docs/localisation.md]

A fault is planted in one linear of a sound quantized model, or, for methods that calibrate every linear
on what the ones before it put out, the moment that linear is made. Caught is what moves any module's
SQNR by more than the tolerance; of those it is counted how often ``locate`` names the linear and
``symptom`` the kind. ``--every n`` takes one linear in n, for a quick look.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.evaluation.own_basis import own_basis
from dllm_qbench.evaluation.probe import canvases
from dllm_qbench.evaluation.symptoms import symptom
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.layer_error import HEAD, Profile, profile
from dllm_qbench.quant.layers import BLOCK_GROUPS, QuantLinear, blocks, put, target_names
from dllm_qbench.quant.methods import duquant, gptq
from dllm_qbench.verdict.localise import locate
from tests.helpers.one_layer import FAULTS, Fault, break_layer, broken_copy

TOLERANCE_DB = 1.0
SUBJECTS = (
    ("rtn", "W4A16-g64"),
    ("gptq", "W3A16-g64"),
    ("awq", "W4A16-g64"),
    ("smoothquant", "W8A8"),
    ("quarot", "W4A4"),
    ("duquant", "W4A4"),
)
SEQUENTIAL: dict[str, tuple[ModuleType, str]] = {
    "gptq": (gptq, "W3A16-g64"),
    "duquant": (duquant, "W4A4"),
}


@dataclass(frozen=True)
class Case:
    """One fault in one place, and what was said of it.

    Attributes:
        subject: model, method and scheme.
        fault, wanted_kind: by name, and its kind.
        place: full name of the module that is at fault.
        first: what localisation named, ``None`` where nothing left the tolerance.
        kind, text: of the module that it named.
    """

    subject: str
    fault: str
    wanted_kind: str
    place: str
    first: str | None
    kind: str
    text: str

    @property
    def caught(self) -> bool:
        """Whether any module left the tolerance."""
        return self.first is not None


class Bench:
    """A full-precision model and what its faults are measured on."""

    def __init__(self, model: str, rows: int) -> None:
        self.lm = qb.load(model)
        given = canvases(self.lm, "math", items=rows)
        self.ids, self.mask = given.ids, given.attention_mask
        self.calibration = qb.calibration(self.lm, seed=0)
        self._sound: dict[tuple[str, str], tuple[DiffusionLM, Profile]] = {}

    def quantize(self, method: str, scheme: str) -> DiffusionLM:
        """Quantize soundly, or under whatever is patched."""
        return qb.quantize(self.lm, method, scheme, self.calibration)

    def sound(self, method: str, scheme: str) -> tuple[DiffusionLM, Profile]:
        """The sound quantized model and its profile, made once: put back what you change."""
        if (method, scheme) not in self._sound:
            quantized = self.quantize(method, scheme)
            self._sound[method, scheme] = quantized, self.profile(quantized)
        return self._sound[method, scheme]

    def profile(self, quantized: DiffusionLM) -> Profile:
        """Both profiles against full precision."""
        return profile(self.lm, quantized, self.ids, self.mask)

    def case(self, names: tuple[str, str, str, str], sound: Profile, broken: DiffusionLM) -> Case:
        """Localise and name what is wrong with ``broken``; ``names`` are a case's first four."""
        seen = self.profile(broken)
        found = locate(
            sound.layer_sqnr, seen.layer_sqnr, sound.local_sqnr, seen.local_sqnr, TOLERANCE_DB
        )
        said = symptom(self.lm, broken, found.first or names[3], self.ids, self.mask)
        subject = f"{self.lm.name.partition('-')[0]} {names[0]}"
        return Case(subject, *names[1:], found.first, said.kind, said.text)


def planted_after(bench: Bench, method: str, scheme: str, linear: str) -> Iterator[Case]:
    """Break one linear of a model that is quantized already, in every way that fits."""
    quantized, sound = bench.sound(method, scheme)
    layer = quantized.model.get_submodule(linear)
    assert isinstance(layer, QuantLinear)
    own = own_basis(bench.lm, quantized, linear, bench.ids, bench.mask)
    for name, fault in FAULTS.items():
        if not fault.fits(layer):
            continue
        put(quantized.model, linear, broken_copy(layer, fault, own))
        yield bench.case((f"{method} {scheme}", name, fault.kind, linear), sound, quantized)
    put(quantized.model, linear, layer)


def planted_on_the_way(bench: Bench, method: str, name: str) -> Iterator[Case]:
    """Break one linear as it is made: those after it are calibrated on what it puts out."""
    module, scheme = SEQUENTIAL[method]
    quantized, sound = bench.sound(method, scheme)
    names, fault, index = target_names(bench.lm.model), FAULTS[name], list(FAULTS).index(name)
    # Three sorts of linear for each fault, in blocks that change: a quantization for each case.
    chosen = [names[(leaf + index) % 7 + 7 * ((leaf + index) % 4)] for leaf in (0, 3, 6)]
    for linear in chosen:
        layer = quantized.model.get_submodule(linear)
        assert isinstance(layer, QuantLinear)
        if not fault.fits(layer):
            continue
        broken = _broken_on_the_way(bench, quantized, module, linear, fault)
        subject = f"{method} {scheme}, planted on the way"
        yield bench.case((subject, name, fault.kind, linear), sound, broken)


def _broken_on_the_way(
    bench: Bench, sound: DiffusionLM, module: ModuleType, linear: str, fault: Fault
) -> DiffusionLM:
    own = own_basis(bench.lm, sound, linear, bench.ids, bench.mask)

    def breaking(owner: nn.Module, name: str, layer: QuantLinear) -> None:
        # DuQuant puts by a name within the block; the weight tells the layer apart.
        plain: Any = owner.get_submodule(name)
        if plain.weight.data_ptr() == target.weight.data_ptr():
            break_layer(layer, fault, own)
        put(owner, name, layer)

    clone = bench.lm.clone()
    target: Any = clone.model.get_submodule(linear)
    # The model that is quantized has to be this clone, whose weights are known by address.
    with patch.object(module, "put", breaking), patch.object(DiffusionLM, "clone", lambda _: clone):
        method = module.NAME
        return qb.quantize(bench.lm, method, SEQUENTIAL[method][1], bench.calibration)


def no_feedback(bench: Bench, place: int) -> Iterator[Case]:
    """GPTQ without error feedback in one stage: all linears that read one input, named by the first."""
    module, scheme = SEQUENTIAL["gptq"]
    _, sound = bench.sound("gptq", scheme)
    solve: Callable[[Tensor, float], Tensor] = gptq.inverse_factor
    calls = iter(range(1000))

    def sometimes(hessian: Tensor, damp: float) -> Tensor:
        if next(calls) == place:
            return torch.eye(len(hessian), dtype=torch.float64)
        return solve(hessian, damp)

    with patch.object(module, "inverse_factor", sometimes):
        broken = bench.quantize("gptq", scheme)
    subject = f"gptq {scheme}, planted on the way"
    linear = f"model.layers.{place // 4}.{BLOCK_GROUPS[place % 4][0]}"
    yield bench.case((subject, "GPTQ without error feedback", "noise", linear), sound, broken)


def _gain(norm: str, factor: float) -> Callable[[Any], None]:
    def plant(block: Any) -> None:
        block.get_submodule(norm).weight.data.mul_(factor)

    return plant


def _sharper(block: Any) -> None:
    block.self_attn.scaling *= 1.2


# Faults outside the linears: where they should be named, in a block or in the whole model, and the plant.
OUTSIDE: Mapping[str, tuple[str, Callable[[Any], None]]] = {
    "gain of the first norm 20 % off": ("input_layernorm", _gain("input_layernorm", 1.2)),
    "gain of the second norm 20 % off": (
        "post_attention_layernorm",
        _gain("post_attention_layernorm", 1.2),
    ),
    "attention 20 % too sharp": ("self_attn", _sharper),
    "embeddings 20 % off": (
        "model.layers.0.input_layernorm",
        lambda whole: whole.model.embed_tokens.weight.data[::2].mul_(1.2),
    ),
    "gain of the last norm 20 % off": (HEAD, lambda whole: whole.model.norm.weight.data.mul_(1.2)),
}


def planted_outside(bench: Bench, method: str, scheme: str) -> Iterator[Case]:
    """Break what stands between the linears."""
    quantized, sound = bench.sound(method, scheme)
    for name, (place, plant) in OUTSIDE.items():
        for index in range(len(blocks(quantized.model))):
            broken = quantized.clone()
            where: Any = broken.model
            expected = place
            if "." not in place and place != HEAD:
                where, expected = blocks(broken.model)[index], f"model.layers.{index}.{place}"
            elif index:
                continue
            plant(where)
            yield bench.case((f"{method} {scheme}", name, "outside", expected), sound, broken)


def table(cases: list[Case], by: str) -> str:
    """Shares by ``fault`` or by ``subject``, in Markdown."""
    lines = [
        f"| {by} | kind | cases | caught | named first | right kind | said instead |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name in dict.fromkeys(getattr(case, by) for case in cases):
        lines.append(_row(name, [case for case in cases if getattr(case, by) == name]))
    return "\n".join([*lines, _row("**all**", cases)])


def _row(name: str, cases: list[Case]) -> str:
    caught = [case for case in cases if case.caught]
    right = [case for case in caught if case.kind == case.wanted_kind]
    named = [case for case in caught if case.first == case.place]
    wrong = Counter(case.kind for case in caught if case.kind != case.wanted_kind)
    said = ", ".join(f"{what} {count}" for what, count in wrong.most_common())
    kinds = {case.wanted_kind for case in cases}
    kind = kinds.pop() if len(kinds) == 1 else ""

    def share(part: list[Case]) -> str:
        return f"{100 * len(part) / len(caught):.1f} %" if caught else ""

    counts = f"{len(cases)} | {len(caught)} | {share(named)} | {share(right)}"
    return f"| {name} | {kind} | {counts} | {said} |"


def page(command: str, cases: list[Case]) -> str:
    """What ``docs/localisation.md`` holds."""
    inside = [case for case in cases if case.wanted_kind != "outside"]
    outside = [case for case in cases if case.wanted_kind == "outside"]
    return f"""# Localisation, measured

`{command}`

A fault is planted in one linear of a sound quantized model, or ("planted on the way") the moment that
linear is made, so that those after it are calibrated on what it puts out. *Caught*: some module's SQNR
moved by more than {TOLERANCE_DB:g} dB. Shares are of the caught. *Named first*: `verdict/localise.py`
names the linear that is broken. *Right kind*: `evaluation/symptoms.py` calls what it named by the
fault's kind. A fault that is not caught changes the linear's output by less than the tolerance.

## By fault

{table(inside, "fault")}

## By subject

{table(inside, "subject")}

## Faults between the linears

Here the tap has to be named at which the fault enters; the kind is "outside".

{table(outside, "fault")}
"""


@cache
def _bench(model: str, rows: int) -> Bench:
    torch.set_num_threads(1)
    return Bench(model, rows)


@dataclass(frozen=True)
class Job:
    """One of this module's generators of cases, by name, and its arguments but the bench."""

    model: str
    rows: int
    planted: str
    arguments: tuple[Any, ...]

    def run(self) -> list[Case]:
        """Plant and measure."""
        cases: Iterator[Case] = globals()[self.planted](
            _bench(self.model, self.rows), *self.arguments
        )
        return list(cases)


def jobs(model: str, rows: int, every: int, after_only: bool) -> list[Job]:
    """Return what there is to do on one model; neighbours share a quantized model."""
    lm = qb.load(model)
    names = target_names(lm.model)
    todo: list[tuple[str, tuple[Any, ...]]] = []
    for subject in SUBJECTS:
        todo += [("planted_after", (*subject, linear)) for linear in names[::every]]
        todo.append(("planted_outside", subject))
    if not after_only:
        todo += [
            ("planted_on_the_way", (method, fault)) for method in SEQUENTIAL for fault in FAULTS
        ]
        todo += [("no_feedback", (place,)) for place in range(4 * len(blocks(lm.model)))]
    return [Job(model, rows, planted, arguments) for planted, arguments in todo]


def measured(todo: Sequence[Job], workers: int) -> Iterator[list[Case]]:
    """Run jobs in so many processes of one thread; results come in the order of the jobs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(Job.run, todo, chunksize=4)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="llada-embedded,dream-embedded")
    parser.add_argument("--canvases", type=int, default=16, help="of the probe's 64")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--after-only", action="store_true", help="nothing planted on the way")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="then write what there is")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    todo = [
        job
        for model in given.models.split(",")
        for job in jobs(model, given.canvases, given.every, given.after_only)
    ]
    cases: list[Case] = []
    begin = time.monotonic()
    done = 0
    for found in measured(todo, given.workers):
        done += 1
        cases += found
        for case in found:
            if case.caught and (case.first, case.kind) != (case.place, case.wanted_kind):
                print(*vars(case).values(), sep=" | ", file=sys.stderr, flush=True)
        if time.monotonic() - begin > 60 * given.minutes:
            break
    print(f"{time.monotonic() - begin:.0f} s, {len(cases)} cases", file=sys.stderr)
    options = " ".join(sys.argv[1:])
    text = page(f"python -m tools.localisation {options}".strip(), cases)
    if done < len(todo):
        text += f"\n**Stopped by --minutes after {done} of {len(todo)} jobs.**\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
