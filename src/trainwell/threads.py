"""Plain Python threads around compiled code that holds no lock.

Unlike the threading layers of numba and of OpenMP they survive a fork, and calls from several threads at once.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def share(work: Callable[[int, int], object], count: int, threads: int) -> None:
    """Calls `work(start, stop)` on slices that cover `range(count)`, in threads; returns when all are done.

    Args:
        work: releases the interpreter's lock, or else nothing is gained.
        count: how many pieces there are, of about equal work.
        threads: how many work at most, the calling one among them.

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

    pending = []
    with contextlib.suppress(RuntimeError):  # a shutting interpreter takes no more: then this thread does it all
        for _ in range(threads - 1):
            pending.append(_pool().submit(take_turns))
    take_turns()
    for future in pending:
        future.result()


_PIECES = 4  # a thread: so that a core that is busy with something else does not keep the others waiting


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="trainwell")


if hasattr(os, "register_at_fork"):  # threads do not cross a fork: the child starts its own
    os.register_at_fork(after_in_child=_pool.cache_clear)
