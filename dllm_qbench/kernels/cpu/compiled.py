"""How kernels are compiled: by numba, on first use, without the GIL, and kept on disk where that works.

Numba compares what it kept with the file of the kernel itself. After a change to what a kernel calls
in another file (``vectors``), delete ``__pycache__``, or touch the kernel's file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function when it is first called.

    Division by 0 gives an infinity or NaN, sums keep their order, and NaN is never assumed away.
    Numba keeps what it compiled beside the source or in the user's cache folder; where it can write
    to neither it refuses to, and the function is compiled anew in each process.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # "no locator available"
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled functions call what ``function`` writes in LLVM's language.

    ``function`` takes numba's typing context and the types of the arguments (literal ones as such),
    and returns the signature and what emits the instructions.
    """
    return cast(Callable[..., Any], intrinsic(prefer_literal=True)(function))
