"""Ranges of rows on several threads. Kernels run without the GIL, each row by itself.

What a row becomes does not depend on the range that it is in, so neither on the number of threads.

The threads are torch's own where torch is built with GNU's OpenMP, as its wheels for Linux are. That
runtime keeps its threads turning for some milliseconds when they have ended, to have them at once for the
next product: they are there for ours too, and threads of our own would have to share a core with
them (measured between products: a transform of 512 x 4096 took 1.0 to 1.4 ms so, and 0.6 alone). Where
it is another runtime, and in a forked process, which has none of its parent's threads, it is a pool
of Python's threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

_ELEMENTS = 2**16  # that are worth a thread: to wake one up takes as long as to read so many
_PIECES = 2  # a thread, on average
_FIRST = os.getpid()
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_ranges(rows: int, width: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for ranges that make up ``rows`` rows of ``width`` elements.

    On as many threads as torch uses (``torch.set_num_threads``), on one for little work. Each takes a
    range when it has done its last, so a thread that comes late delays nobody. The call returns
    when all ranges are done, and raises what the first of them raised.
    """
    threads = torch.get_num_threads()
    pieces = min(rows, threads * _PIECES, rows * width // _ELEMENTS)
    if threads < 2 or pieces < 2:
        _inside(work, 0, rows)
        return
    ends = [rows * part // pieces for part in range(pieces + 1)]
    left = iter(list(pairwise(ends)))  # handed out one by one, whoever asks
    errors: list[BaseException] = []

    def take(_: object = None) -> None:
        for start, stop in left:
            try:
                _inside(work, start, stop)
            except BaseException as error:  # told when all have ended
                errors.append(error)

    start_on_torchs = _openmp(os.getpid())
    if start_on_torchs is not None:
        start_on_torchs(_BODY(take), None, threads, 0)
    else:
        others = [_pool().submit(take) for _ in range(threads - 1)]
        take()
        wait([other for other in others if not other.cancel()])
    if errors:
        raise errors[0]


def _inside(work: Callable[[int, int], None], start: int, stop: int) -> None:
    with (
        torch.inference_mode()
    ):  # a thread has a mode of its own; tensors made in it may be written
        work(start, stop)


@cache
def _openmp(process: int) -> Callable[..., None] | None:
    """Return ``GOMP_parallel(body, data, threads, flags)`` of the runtime that torch uses, if it does.

    Not in a forked process: its parent's threads are not there, and OpenMP would wait for them.
    """
    if process != _FIRST or not hasattr(os, "RTLD_NOLOAD"):
        return None
    folder = Path(torch.__file__).parent
    for path in sorted([*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]):
        try:  # only what is loaded already: another copy would have threads of its own
            start: Any = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        start.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        start.restype = None
        return start  # type: ignore[no-any-return]
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="qbench-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay in the parent
