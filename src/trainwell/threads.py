"""Threads around compiled code that holds no lock: plain ones, or those that torch's own operations run in.

Unlike the threading layers of numba, plain threads survive a fork, and calls from several threads at once.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Team(NamedTuple):
    """What `trainwell.fork_join` forks into.

    Attributes:
        parallel: the address of OpenMP's `GOMP_parallel`, which is what compilers call for `#pragma omp parallel`.
        number: that of `omp_get_thread_num`.
        threads: how many there are, the calling one among them.
    """

    parallel: int
    number: int
    threads: int


_ALONE = Team(0, 0, 1)
_PIECES = 4  # a thread: so that a core that is busy with something else does not keep the others waiting


def share(run: Callable[..., object], given: tuple[Any, ...], count: int, threads: int) -> None:
    """Calls `run(team, start, stop, *given)` on slices that cover `range(count)`; returns when all are done.

    That is one call, which forks into the threads of torch's operations, where those are OpenMP's; else calls in plain
    threads, each with a team of one. OpenMP's stay awake for some milliseconds after an operation, in which others
    would have to share the cores with them. They belong to the thread that calls: take them where torch computes, not
    beside it.

    Args:
        run: compiled; it releases the interpreter's lock, or else nothing is gained.
        given: its other arguments.
        count: how many pieces there are, of about equal work.
        threads: how many work at most, the calling one among them.

    >>> done = []
    >>> share(lambda team, start, stop, out: out.extend(range(start, stop)), (done,), 5, threads=1)
    >>> sorted(done)
    [0, 1, 2, 3, 4]
    """
    threads = max(1, min(threads, count))
    openmp = _openmp() if threads > 1 else None
    if threads == 1 or openmp:
        run(Team(*openmp, threads) if openmp else _ALONE, 0, count, *given)
    else:
        _in_plain_threads(lambda start, stop: run(_ALONE, start, stop, *given), count, threads)


def _in_plain_threads(work: Callable[[int, int], object], count: int, threads: int) -> None:
    pieces = min(count, _PIECES * threads)
    turns = itertools.count()

    def take_turns() -> None:
        while (i := next(turns)) < pieces:
            work(count * i // pieces, count * (i + 1) // pieces)

    pending = []
    with contextlib.suppress(RuntimeError):  # a shutting interpreter takes no more: then this thread does it all
        for _ in range(threads - 1):
            pending.append(_pool().submit(take_turns))
    take_turns()
    for future in pending:
        future.result()


@functools.cache
def _openmp() -> tuple[int, int] | None:
    """Returns the addresses in a team, if torch computes in OpenMP's threads: those of the same library."""
    if _forked or sys.platform != "linux":  # in a child the parent's threads are missing, which OpenMP does not know
        return None
    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel, number = (ctypes.cast(f, ctypes.c_void_p).value
                            for f in (library.GOMP_parallel, library.omp_get_thread_num))  # fmt: skip
    except (OSError, AttributeError):
        return None
    return (parallel, number) if parallel and number else None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="trainwell")


_forked = False


def forked() -> bool:
    """Says whether this process is a forked child, which lacks its parent's threads and may hold their locks."""
    return _forked


def _after_fork() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()  # threads do not cross a fork: the child starts its own
    _openmp.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
