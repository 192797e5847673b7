"""Schemes: how many bits for weights and activations, and how weights are grouped. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dllm_qbench.errors import SchemeError

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
ACT_BITS = (4, 8, 16)
UNTOUCHED = 16

_GRAMMAR = "W<bits>A<bits>[-g<group>][-sym|-asym]"
_PATTERN = re.compile(r"W(\d+)A(\d+)(?:-g(\d+))?(?:-(sym|asym))?", re.ASCII)


@dataclass(frozen=True)
class Scheme:
    """Bit-widths and grouping of a quantized model.

    Attributes:
        weight_bits: 2 to 8, or 16 for untouched weights.
        act_bits: 4 or 8, or 16 for untouched activations.
        group: weights of one output channel that share a scale; ``None`` means all of them.
        symmetric: whether the *weight* grid is symmetric; ``None`` leaves it to the method's recipe.
            Activations are always symmetric, one scale per token, computed when the token arrives.

    ``group`` and ``symmetric`` are allowed beside 16-bit weights, where they change nothing, so
    that every string of the grammar is a scheme.

    >>> Scheme.parse("W4A16-g64")
    Scheme(weight_bits=4, act_bits=16, group=64, symmetric=None)
    >>> str(Scheme(8, 8, symmetric=True))
    'W8A8-sym'
    """

    weight_bits: int
    act_bits: int
    group: int | None = None
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        if not _is_integer(self.weight_bits) or self.weight_bits not in WEIGHT_BITS:
            raise SchemeError(f"scheme {self._spelled()!r}: weights must be 2 to 8 or 16 bits")
        if not _is_integer(self.act_bits) or self.act_bits not in ACT_BITS:
            raise SchemeError(f"scheme {self._spelled()!r}: activations must be 4, 8 or 16 bits")
        if self.group is not None and (not _is_integer(self.group) or self.group < 1):
            raise SchemeError(f"scheme {self._spelled()!r}: a group must hold at least 1 weight")
        if self.symmetric not in (None, True, False):
            raise SchemeError(f"scheme {self._spelled()!r}: symmetric must be True, False or None")

    @classmethod
    def parse(cls, text: str | Scheme) -> Scheme:
        """Read ``W<bits>A<bits>[-g<group>][-sym|-asym]``; a :class:`Scheme` passes through.

        Raises:
            SchemeError: the string does not follow the grammar, or asks for bits that it excludes.
        """
        if isinstance(text, Scheme):
            return text
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SchemeError(
                f"scheme {text!r}: expected {_GRAMMAR}, such as 'W4A16-g64', 'W8A8' or 'W4A4-sym'"
            )
        weight, act, group, symmetry = match.groups()
        scheme = cls(
            int(weight),
            int(act),
            None if group is None else int(group),
            None if symmetry is None else symmetry == "sym",
        )
        if str(scheme) != text:
            raise SchemeError(f"scheme {text!r}: write it {str(scheme)!r}, without leading zeros")
        return scheme

    @property
    def quantizes_weights(self) -> bool:
        """Whether weights are rounded at all."""
        return self.weight_bits != UNTOUCHED

    @property
    def quantizes_activations(self) -> bool:
        """Whether the inputs of the linears are rounded at all."""
        return self.act_bits != UNTOUCHED

    def is_symmetric(self, default: bool) -> bool:
        """Return the symmetry of the weight grid: the scheme's own, else the method's default."""
        return default if self.symmetric is None else self.symmetric

    def __str__(self) -> str:
        return self._spelled()

    def _spelled(self) -> str:
        group = "" if self.group is None else f"-g{self.group}"
        symmetry = {None: "", True: "-sym", False: "-asym"}.get(self.symmetric, "")
        return f"W{self.weight_bits}A{self.act_bits}{group}{symmetry}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
