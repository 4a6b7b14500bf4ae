"""Compiled work that is shared between threads, torch's own or plain ones: done whole, and what goes wrong is told."""

import ctypes
import os
import sys
import threading

import numpy as np
import pytest
import torch
from numba import njit
from numba.extending import register_jitable

from trainwell import threads
from trainwell.fork_join import _add_one, fork_join
from trainwell.threads import share

_C = ctypes.CDLL(None)
only_here = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere plain threads are taken")


def compiled(work):
    """Returns a function as `share` calls it."""
    part = register_jitable(work)

    @njit(nogil=True)
    def run(team, start, stop, *given):
        fork_join(team, start, stop, part, given)

    return run


@compiled
def count_up(done, start, stop):
    for i in range(start, stop):
        done[i] += i + 1


@compiled
def ask_for_too_much(sizes, start, stop):
    for i in range(start, stop):
        np.empty(sizes[i], np.float64)[:] = 0.0


@pytest.fixture(params=["torch's threads", "plain threads"])
def any_threads(request, monkeypatch):
    if request.param == "plain threads":
        monkeypatch.setattr(threads, "_openmp", lambda: None)


@pytest.mark.parametrize("many", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_work_is_done_whole_and_once(many, count, any_threads):
    done = np.zeros(count)
    share(count_up, (done,), count, many)
    assert done.tolist() == list(range(1, count + 1))


@pytest.mark.parametrize("many", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 5, 99])
def test_lack_of_memory_in_any_piece_reaches_the_caller(many, place, any_threads):
    sizes = np.ones(100, np.int64)
    sizes[place] = 1 << 56
    with pytest.raises(MemoryError):
        share(ask_for_too_much, (sizes,), 100, many)
    share(ask_for_too_much, (np.ones(100, np.int64),), 100, many)  # and it still works


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_plain_thread_reaches_the_caller(error, monkeypatch):
    monkeypatch.setattr(threads, "_openmp", lambda: None)

    def work(team, start, stop):
        if start == 5:
            raise error("here")

    with pytest.raises(error, match="here"):
        share(work, (), 8, 2)


def test_arrays_outlive_the_work_that_only_borrows_them():
    done = np.zeros(100)
    before = sys.getrefcount(done)
    for many in (1, 2):
        share(count_up, (done,), 100, many)
    assert sys.getrefcount(done) == before
    assert done.tolist() == list(range(2, 202, 2))


@compiled
def count_lengths(pair, word, start, stop):
    for i in range(start, stop):
        pair[0][i] += len(word)


def test_what_is_no_array_outlives_the_work_too():
    done, word = np.zeros(100), "x" * 1000
    for many in (1, 2, 3):
        before = sys.getrefcount(done), sys.getrefcount(word)
        share(count_lengths, ((done,), word), 100, many)
        assert (sys.getrefcount(done), sys.getrefcount(word)) == before
    assert (done == 3000).all()


if sys.platform == "linux":
    _C.gettid.restype, _C.gettid.argtypes = ctypes.c_int, []
    _C.sched_yield.restype, _C.sched_yield.argtypes = ctypes.c_int, []
    gettid, sched_yield = _C.gettid, _C.sched_yield

    @compiled
    def meet(arrived, who, start, stop):
        """Writes down by which thread a piece is done; the first two wait for each other."""
        for i in range(start, stop):
            who[i] = gettid()
            _add_one(arrived, 0)
            for _ in range(10_000_000):  # seconds: with one thread alone the test fails, and does not hang
                if arrived[0] >= 2:
                    break
                sched_yield()


@only_here
def test_the_threads_are_those_in_which_torch_computes():
    def of_this_process():
        return {int(task) for task in os.listdir("/proc/self/task")}

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1 << 22).sqrt()
    known, who = of_this_process(), np.zeros(8, np.int64)
    share(meet, (np.zeros(1, np.int64), who), 8, 2)
    torch.set_num_threads(before)
    assert len(set(who.tolist())) == 2
    assert threading.get_native_id() in who
    assert set(who.tolist()) <= known
    assert of_this_process() == known


@only_here
def test_each_thread_takes_the_same_share_in_each_call():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    for _ in range(5):
        who = np.zeros(2, np.int64)  # a piece each, for which they wait for each other
        share(meet, (np.zeros(1, np.int64), who), 2, 2)
        seen.append(tuple(who.tolist()))
    torch.set_num_threads(before)
    assert len(set(seen)) == 1
    assert seen[0][0] == threading.get_native_id()
