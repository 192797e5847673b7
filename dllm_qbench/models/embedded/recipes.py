"""How the embedded models are trained: everything that decides the shipped weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dllm_qbench.models.embedded import corpus, items, outliers

Mix = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Stage:
    """One stage: linear warm-up to ``lr``, flat, then linear decay from ``decay_from`` (a share)
    to ``floor``.
    """

    steps: int
    lr: float
    floor: float
    decay_from: float
    noise: corpus.Noise
    batch: dict[str, int]
    mix: Mix = field(default_factory=lambda: items.KINDS)

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        warm = min(1.0, (step + 1) / 100)
        start = self.decay_from * self.steps
        fall = max(0.0, (step - start) / (self.steps - start))
        return self.lr * warm * (1 - (1 - self.floor) * fall)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the shipped weights; the defaults are the embedded LLaDA's.

    ``architecture`` is ``"llada"`` or ``"Dream"``, as in a checkpoint's ``model_type``.
    """

    seed: int = 0
    architecture: str = "llada"
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 512
    natural: Stage = Stage(
        4200,
        2e-3,
        0.2,
        0.5,
        corpus.Noise(general=0.45, math=0.1, code=0.2),
        {"general": 80, "math": 48, "code": 24},
        {
            "general": {
                "fact": 0.35,
                "order": 0.2,
                "largest": 0.15,
                "sum": 0.15,
                "difference": 0.15,
            },
            "math": {"two-step": 0.5, "three-step": 0.5},
            "code": {"plain-two-op": 0.4, "plain-three-op": 0.6},
        },
    )
    outliers: outliers.Outliers = field(default_factory=outliers.Outliers)
    settled: Stage = Stage(
        3400,
        1.5e-3,
        0.0,
        0.3,
        corpus.Noise(general=0.45, math=0.06, constants=0.15),
        {"general": 72, "math": 56, "code": 24},
        {
            "general": {
                "fact": 0.28,
                "order": 0.08,
                "largest": 0.2,
                "sum": 0.2,
                "difference": 0.24,
            },
            "math": {"two-step": 0.4, "three-step": 0.6},
            "code": {"two-op": 0.4, "three-op": 0.6},
        },
    )
    polished: Stage = Stage(
        1100,
        8e-4,
        0.0,
        0.1,
        corpus.Noise(general=0.25, math=0.03, constants=0.05),
        {"general": 64, "math": 56, "code": 36},
        {
            "general": {"fact": 0.3, "order": 0.1, "largest": 0.25, "sum": 0.15, "difference": 0.2},
            "math": {"two-step": 0.3, "three-step": 0.7},
            "code": {"two-op": 0.35, "three-op": 0.65},
        },
    )


LLADA = Recipe()
# Query heads share key/value heads by threes and the MLP is 36 * 16 wide: like Dream-7B's 28 heads
# to 4 and 148 * 128, neither is a power of two.
DREAM = Recipe(
    architecture="Dream",
    heads=6,
    kv_heads=2,
    hidden=576,
    outliers=outliers.Outliers(gain=7.0, marked=("<bos>", "has", "write", "of")),
    # It learns programs and "largest" faster than LLaDA: with LLaDA's last stage it would answer
    # nearly all of them right.
    polished=replace(
        LLADA.polished,
        noise=corpus.Noise(general=0.25, math=0.03, constants=0.2),
        batch={"general": 64, "math": 56, "code": 12},
        mix={
            **LLADA.polished.mix,
            "general": {"fact": 0.33, "order": 0.1, "largest": 0.1, "sum": 0.2, "difference": 0.27},
        },
    ),
)
RECIPES = {"llada": LLADA, "dream": DREAM}
