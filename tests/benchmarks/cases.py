"""The cases: which kernel, at which layer of which model, at which M, and the bars it has to keep.

M is the number of tokens that a call takes: batch x length. Layer shapes are those of the released
models. No torch here: a run that leaves the benchmarks out counts them all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

from dllm_qbench.benchmarks.gate import Bar

LAYERS: Final = {
    "LLaDA-8B": ((4096, 4096), (4096, 12288), (12288, 4096)),
    "Dream-7B": ((3584, 3584), (3584, 512), (3584, 18944), (18944, 3584)),
}
"""(I, O): inputs and outputs of every linear; gate and up are alike, and so are k and v."""
MS: Final = (1, 32, 128, 512, 2048)
SHAPES: Final = tuple(dict.fromkeys(shape for shapes in LAYERS.values() for shape in shapes))
WIDTHS: Final = tuple(dict.fromkeys(inputs for inputs, _ in SHAPES))

COPY: Final = "copy"
TRANSFORM: Final = "hadamard alone"
ROTATION: Final = "dense rotation"
FACTORS: Final = "two factors"
"""The transform as two products with small matrices, torch's quickest way to it."""
FP32: Final = "dense fp32"
BF16: Final = "dense bf16"
MATMUL: Final = "plain matmul"
TEXTBOOK: Final = "textbook loop"

PER_TOKEN: Final = ("hadamard", "rotate_quantize8", "quantize8", "quantize4-g128")
"""Operations on activations ``[M, I]`` alone."""
PRODUCTS: Final = ("w8a8", "w4a16-g128", "w4a8-g128")
"""Operations with a weight ``[O, I]``."""
MAIN: Final = {
    "hadamard": FACTORS,
    "rotate_quantize8": FACTORS,  # the transform alone is ours as well, and may slow down with it
    "quantize8": FACTORS,  # a copy is too unsteady a yardstick
    "quantize4-g128": FACTORS,
    "hessian": MATMUL,
    "gptq-g128": TEXTBOOK,
}
"""The rival that a stored ratio is to; of products the dense one of the same data type."""


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        operation: names a builder of :mod:`tests.benchmarks.contenders`.
        M, I, O: tokens, inputs, outputs; O is 0 where there is no weight.
        dtype: of the activations.
        bars: what it has to keep on the class of machine whose ratios are stored.
        device: ``cpu`` or ``cuda``.
        gated: whether its ratio is stored: the default run has these only.
        minutes: whether it takes minutes; such a case waits for ``--qbench-every-shape``.
    """

    operation: str
    M: int
    I: int  # noqa: E741 (the legend's names)
    O: int = 0  # noqa: E741
    dtype: str = "float32"
    bars: tuple[Bar, ...] = ()
    device: str = "cpu"
    gated: bool = False
    minutes: bool = False

    @property
    def name(self) -> str:
        """``w8a8-M128-4096x4096-bfloat16``."""
        size = f"{self.I}x{self.O}" if self.O else f"{self.I}"
        return f"{self.operation}-M{self.M}-{size}-{self.dtype}"

    @property
    def main(self) -> str:
        """The rival that a stored ratio is to."""
        return MAIN.get(self.operation, BF16 if self.dtype == "bfloat16" else FP32)


def _gated(operation: str, M: int, *rest: int, bars: tuple[Bar, ...] = (), dtype: str = "float32",
           device: str = "cpu", minutes: bool = False) -> Case:  # fmt: skip
    I, O = (*rest, 0)[:2]  # noqa: E741 (the legend's names)
    return Case(operation, M, I, O, dtype, bars, device, gated=True, minutes=minutes)


# A time of at most f times a rival's is a speed of at least 1/f.
GATED: Final = (
    _gated("hadamard", 512, 4096, bars=(Bar(ROTATION, 25), Bar(COPY, 1 / 6))),
    _gated("hadamard", 512, 12288, bars=(Bar(COPY, 1 / 10),)),
    _gated("hadamard", 512, 18944, bars=(Bar(COPY, 1 / 10),)),
    _gated("hadamard", 512, 4096, dtype="bfloat16"),
    _gated("rotate_quantize8", 512, 4096, bars=(Bar(TRANSFORM, 1 / 1.4),)),
    _gated("quantize8", 512, 4096),
    _gated("quantize8", 512, 4096, dtype="bfloat16"),
    _gated("quantize4-g128", 512, 4096),
    _gated("w8a8", 128, 4096, 4096, dtype="bfloat16", bars=(Bar(BF16, 1.2),)),
    _gated("w8a8", 512, 4096, 4096, dtype="bfloat16", bars=(Bar(BF16, 1.3),)),
    _gated("w4a16-g128", 32, 4096, 4096, dtype="bfloat16"),
    _gated("w4a16-g128", 128, 4096, 4096, dtype="bfloat16"),
    _gated("w4a16-g128", 128, 4096, 4096, dtype="float32"),
    _gated("w4a8-g128", 128, 4096, 4096, dtype="bfloat16"),
    _gated("gptq-g128", 2048, 1024, 1024),
    _gated("gptq-g128", 2048, 4096, 4096, bars=(Bar(TEXTBOOK, 5),), minutes=True),
    _gated("hessian", 2048, 4096, dtype="bfloat16", bars=(Bar(MATMUL, 0.7),)),
    _gated("hessian", 512, 1024, dtype="bfloat16"),  # small: the gate's own tests slow it down
)
GATED_CUDA: Final = (
    *(
        _gated("hadamard", 2048, I, dtype="bfloat16", bars=(Bar(COPY, 1 / 1.5),), device="cuda")
        for I in (4096, 12288)  # noqa: E741 (the legend's name)
    ),
    *(
        _gated(operation, 2048, I, O, dtype="bfloat16", bars=(Bar(BF16, bar),), device="cuda")
        for operation, bar in (("w8a8", 1.3), ("w4a16-g128", 0.9))
        for I, O in LAYERS["LLaDA-8B"]  # noqa: E741
    ),
)


def cases(device: str, every_shape: bool) -> tuple[Case, ...]:
    """Return the cases of a run; those of one weight lie together."""
    gated = GATED_CUDA if device == "cuda" else GATED
    if not every_shape:
        return tuple(case for case in gated if not case.minutes)
    found = {case.name: case for case in gated}
    for operation, I, M, dtype in product(PER_TOKEN, WIDTHS, MS, ("float32", "bfloat16")):  # noqa: E741
        _add(found, Case(operation, M, I, 0, dtype, device=device))
    for (I, O), operation, M in product(SHAPES, PRODUCTS, MS):  # noqa: E741
        _add(found, Case(operation, M, I, O, "bfloat16", device=device))
        if operation != "w8a8":
            _add(found, Case(operation, M, I, O, "float32", device=device))
    for I in (3584, 4096, 12288):  # noqa: E741
        _add(found, Case("hessian", 2048, I, 0, "bfloat16", device=device))
    _add(found, Case("hessian", 2048, 4096, 0, "float32", device=device))
    _add(found, Case("gptq-g128", 2048, 2048, 2048, device=device))
    return tuple(found.values())


def _add(found: dict[str, Case], case: Case) -> None:
    found.setdefault(case.name, case)
