"""Plain Python threads around compiled code that holds no lock.

Unlike the threading layers of numba and of OpenMP they survive a fork, and calls from several threads at once.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def share(work: Callable[[int, int], object], count: int, threads: int) -> None:
    """Calls `work(start, stop)` on slices that cover `range(count)`, one a thread; returns when all are done.

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
    bounds = [count * i // threads for i in range(threads + 1)]
    pending = []
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down and takes no more work
        for i in range(1, threads):
            pending.append(_pool().submit(work, bounds[i], bounds[i + 1]))
    work(bounds[0], bounds[1])
    if len(pending) < threads - 1:
        work(bounds[len(pending) + 1], count)
    for future in pending:
        future.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="trainwell")


if hasattr(os, "register_at_fork"):  # threads do not cross a fork: the child starts its own
    os.register_at_fork(after_in_child=_pool.cache_clear)
