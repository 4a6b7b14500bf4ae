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


def share(work: Callable[[int, int], object], count: int, threads: int, *, as_torch: bool = False) -> None:
    """Calls `work(start, stop)` on slices that cover `range(count)`, in threads; returns when all are done.

    Args:
        work: releases the interpreter's lock, or else nothing is gained.
        count: how many pieces there are, of about equal work.
        threads: how many work at most, the calling one among them.
        as_torch: in the threads of torch's operations, where it has OpenMP's. After an operation they stay awake for
            some milliseconds, in which others would have to share the cores with them. They belong to the thread that
            calls: take them where torch computes, not beside it.

    >>> done = []
    >>> share(lambda start, stop: done.extend(range(start, stop)), 5, threads=2)
    >>> sorted(done)
    [0, 1, 2, 3, 4]
    """
    threads = max(1, min(threads, count))
    pieces = min(count, _PIECES * threads) if threads > 1 else 1
    turns = itertools.count()

    def take_turns() -> None:
        while (i := next(turns)) < pieces:
            work(count * i // pieces, count * (i + 1) // pieces)

    team = _openmp() if as_torch and threads > 1 else None
    if team:
        _in_team(team, take_turns, threads)
    else:
        _in_plain_threads(take_turns, threads)


def _in_plain_threads(work: Callable[[], None], threads: int) -> None:
    pending = []
    with contextlib.suppress(RuntimeError):  # a shutting interpreter takes no more: then this thread does it all
        for _ in range(threads - 1):
            pending.append(_pool().submit(work))
    work()
    for future in pending:
        future.result()


def _in_team(team: Callable[..., None], work: Callable[[], None], threads: int) -> None:
    errors: list[BaseException] = []

    def guarded(_: object) -> None:
        try:
            work()
        except BaseException as error:  # nothing may leave through C: it would be printed and forgotten
            errors.append(error)

    team(_CALLBACK(guarded), None, threads, 0)
    if errors:
        raise errors[0]


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """Returns what runs a function in the OpenMP threads that torch uses, if it does: the same library's."""
    if _forked or sys.platform != "linux":  # in a child the parent's threads are missing, which OpenMP does not know
        return None
    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        team = library.GOMP_parallel  # what compilers call for `#pragma omp parallel`: (function, data, threads, flags)
    except (OSError, AttributeError):
        return None
    team.argtypes, team.restype = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return team


_PIECES = 4  # a thread: so that a core that is busy with something else does not keep the others waiting


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
