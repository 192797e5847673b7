"""The paper's matrix: which methods it runs at which bit-widths, on which tasks. No torch."""

from __future__ import annotations

from typing import Final

WEIGHT_ONLY: Final = ("W4A16-g128", "W3A16-g128")
WEIGHTS_AND_ACTIVATIONS: Final = ("W8A8", "W4A4")
QUANTIZERS: Final = (
    *((method, scheme) for method in ("gptq", "awq") for scheme in WEIGHT_ONLY),
    *(
        (method, scheme)
        for method in ("smoothquant", "quarot", "duquant")
        for scheme in WEIGHTS_AND_ACTIVATIONS
    ),
)
"""Method and scheme, in the order of the paper's tables 1 to 5."""
