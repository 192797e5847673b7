"""Ranges of rows on several threads. Kernels run without the GIL, each row by itself.

What a row becomes does not depend on the range that it is in, so neither on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

import torch

_ELEMENTS = 2**16  # that are worth a thread: to wake one up takes as long as to read so many


def in_ranges(rows: int, width: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for ranges that make up ``rows`` rows of ``width`` elements.

    There are as many as torch uses threads (``torch.set_num_threads``), fewer for little work. The
    call returns when all have ended, and raises what the first of them raised.
    """
    most = min(torch.get_num_threads(), rows, rows * width // _ELEMENTS)
    if most < 2:
        _inside(work, 0, rows)
        return
    ends = [rows * part // most for part in range(most + 1)]
    others = [_pool().submit(_inside, work, start, stop) for start, stop in pairwise(ends[1:])]
    try:
        _inside(work, ends[0], ends[1])
    finally:
        wait(others)
    for other in others:
        other.result()


def _inside(work: Callable[[int, int], None], start: int, stop: int) -> None:
    # A thread has a mode of its own, and outside of this one may not write to tensors made in it.
    with torch.inference_mode():
        work(start, stop)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="qbench-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay in the parent
