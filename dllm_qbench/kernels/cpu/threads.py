"""Ranges of rows on several threads. Kernels run without the GIL, each row by itself.

What a row becomes does not depend on the range that it is in, so neither on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from itertools import pairwise

import torch

_ELEMENTS = 2**16  # that are worth a thread: to wake one up takes as long as to read so many
_PIECES = 4  # a thread, on average


def in_ranges(rows: int, width: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for ranges that make up ``rows`` rows of ``width`` elements.

    On as many threads as torch uses (``torch.set_num_threads``), fewer for little work. Each takes a
    range when it has done its last: behind a product of torch's, whose threads keep their cores busy
    for some milliseconds after they have ended, a thread may come late, and the others do its share.
    The call returns when all ranges are done, and raises what the first of them raised.
    """
    most = min(torch.get_num_threads(), rows, rows * width // _ELEMENTS)
    if most < 2:
        _inside(work, 0, rows)
        return
    pieces = min(rows, most * _PIECES, rows * width // _ELEMENTS)
    ends = [rows * part // pieces for part in range(pieces + 1)]
    left = iter(list(pairwise(ends)))  # handed out one by one, whoever asks

    def take() -> None:
        for start, stop in left:
            _inside(work, start, stop)

    others = [_pool().submit(take) for _ in range(most - 1)]
    try:
        take()
    finally:
        wait([other for other in others if not other.cancel()])
    for other in others:
        if not other.cancelled():
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
