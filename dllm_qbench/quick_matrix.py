"""The quick tier's matrix: which methods run at which bit-widths, on which tasks. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.quant.scheme import Scheme

TASKS: Final = ("general", "math", "code")
METHODS: Final = ("rtn", "gptq", "awq", "smoothquant", "quarot", "duquant")
WEIGHT_ONLY: Final = ("W4A16-g64", "W3A16-g64")
WEIGHTS_AND_ACTIVATIONS: Final = ("W8A8", "W4A4")
QUANTIZERS: Final = (
    *((method, scheme) for method in ("rtn", "gptq", "awq") for scheme in WEIGHT_ONLY),
    *(
        (method, scheme)
        for method in ("rtn", "smoothquant", "quarot", "duquant")
        for scheme in WEIGHTS_AND_ACTIVATIONS
    ),
)
"""Method and scheme."""
_SUBJECT_SCHEMES: Final = ("W4A16-g64",)


def choose(
    methods: Sequence[str], schemes: Sequence[str], subjects: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Which quantizers a run has: the quick matrix's, or what is named.

    Methods alone, or schemes alone, choose from the matrix; both name every pair of them. Subjects get the
    schemes, by default W4A16-g64, and are alone unless methods are named too.

    Raises:
        SchemeError: a scheme that does not follow the grammar.
        QBenchError: an unknown method, or nothing of the matrix has the schemes.
    """
    parsed = tuple(str(Scheme.parse(scheme)) for scheme in schemes)
    for method in methods:
        if method not in METHODS:
            raise QBenchError(
                f"--methods: {method!r} is unknown; methods: {', '.join(METHODS)}; a quantizer of your own"
                " goes to --subject"
            )
    own = [(subject, scheme) for subject in subjects for scheme in parsed or _SUBJECT_SCHEMES]
    if methods and parsed:
        return (*((method, scheme) for method in methods for scheme in parsed), *own)
    chosen = [
        pair
        for pair in QUANTIZERS
        if (pair[0] in methods or not methods) and (pair[1] in parsed or not parsed)
    ]
    if subjects and not methods:
        chosen = []
    if not chosen and not own:
        known = ", ".join(dict.fromkeys(scheme for _, scheme in QUANTIZERS))
        raise QBenchError(
            f"--schemes: the quick matrix has no {', '.join(parsed)}, it has {known}; name --methods for"
            " another one"
        )
    return (*chosen, *own)
