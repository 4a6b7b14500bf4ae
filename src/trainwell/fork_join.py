"""Compiled code in several threads that never wait for the interpreter's lock; to be imported only where numba is.

A compiled function forks into the OpenMP threads that torch's operations run in, which are awake between them, and
joins them again. The interpreter sees one call: between 1 and 2 threads lie microseconds, and 64 do not queue for its
lock. Of numba's own threading layers some die in a forked child, others when several threads call at once; through
`trainwell.threads.share` this one does neither.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic, register_jitable

cgutils: Any = _cgutils  # which has no types
_PIECES = 8  # a thread: so that a core that is busy with something else does not keep the others waiting
_APART = 8  # numbers: counters of two threads are not in one line of a cache


@register_jitable
def fork_join(team: Any, start: int, stop: int, work: Any, given: Any) -> None:
    """Calls `work(*given, first, last)` on slices that cover `range(start, stop)`, in threads, and waits for all.

    Args:
        team: `trainwell.threads.Team`: the addresses of OpenMP's functions, and how many threads; 1 is this one alone.
        start: the first piece of work.
        stop: behind the last; all are about equal.
        work: a compiled function.
        given: a tuple of its other arguments.

    Raises:
        MemoryError: `work` failed in one of several threads, which for want of memory alone ours can; alone it raises
            what it raises.
    """
    threads, given = min(team[2], stop - start), _borrowed(given)
    if threads > 1:
        taken = np.zeros(_APART * threads, np.int64)
        _in_team(team[0], threads, _take_pieces, (taken, team[1], threads, start, stop, work, given))
    else:
        work(*(given + (start, stop)))  # noqa: RUF005  # numba knows a tuple's sum, not what is unpacked into it


@register_jitable
def _take_pieces(taken: Any, number: int, threads: int, start: int, stop: int, work: Any, given: Any) -> None:
    """Takes the pieces of one's own share, the same in each call, whose memory is near; then those that others left."""
    me, count = _call_for_number(number), stop - start
    for k in range(threads):
        whose = (me + k) % threads
        first, last = start + count * whose // threads, start + count * (whose + 1) // threads
        pieces = min(_PIECES, last - first)
        i = _add_one(taken, _APART * whose)
        while i < pieces:
            begin, end = first + (last - first) * i // pieces, first + (last - first) * (i + 1) // pieces
            work(*(given + (begin, end)))  # noqa: RUF005
            i = _add_one(taken, _APART * whose)


def _without_counts(typing: Any, given: Any) -> Any:
    """Returns a tuple whose arrays are not counted: threads would quarrel over the counts at each slice of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = cgutils.unpack_tuple(builder, arguments[0])
        for k, kind in enumerate(given):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, values[k])
                array.meminfo = cgutils.get_null_value(array.meminfo.type)
                values[k] = array._getvalue()
            else:
                context.nrt.incref(builder, kind, values[k])  # what is returned is counted once more, and given back
        return context.make_tuple(builder, given, values)

    return given(given), generate


_borrowed: Any = intrinsic(_without_counts)


def _adding_one(typing: Any, numbers: Any, at: Any) -> Any:
    """Adds 1 to a number that several threads add to; returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(numbers, types.int64), generate


_add_one: Any = intrinsic(_adding_one)


def _calling_for_number(typing: Any, address: Any) -> Any:
    """Calls `omp_get_thread_num`, which is at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = builder.inttoptr(arguments[0], ir.FunctionType(ir.IntType(32), []).as_pointer())
        return builder.sext(builder.call(function, []), ir.IntType(64))

    return types.int64(types.int64), generate


_call_for_number: Any = intrinsic(_calling_for_number)


def _calling_in_team(typing: Any, team: Any, threads: Any, body: Any, given: Any) -> Any:
    """Calls `body(*given)` in each thread, by `GOMP_parallel`, which is at an address: `#pragma omp parallel`."""
    of_body = typing.resolve_function_type(body, tuple(given), {})

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word, convention = ir.IntType(8), ir.IntType(32), context.call_conv
        failed = cgutils.alloca_once_value(builder, ir.Constant(word, 0))
        shared = cgutils.alloca_once_value(builder, cgutils.make_anonymous_struct(builder, [arguments[3], failed]))

        # Numba's functions return whether they failed, where C's return what they computed: one of each kind.
        inner = ir.Function(
            builder.module, convention.get_function_type(types.none, (types.voidptr,)),
            builder.module.get_unique_name("in_team"),
        )  # fmt: skip
        outer = ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte.as_pointer()]),
            builder.module.get_unique_name("called_by_openmp"),
        )  # fmt: skip
        inner.linkage = outer.linkage = "internal"

        within = ir.IRBuilder(inner.append_basic_block("entry"))
        (data,) = convention.get_arguments(inner)
        values = within.extract_value(within.load(within.bitcast(data, shared.type)), 0)
        context.get_function(body, of_body)(within, cgutils.unpack_tuple(within, values))
        convention.return_value(within, context.get_dummy_value())

        within = ir.IRBuilder(outer.append_basic_block("entry"))
        status, _ = convention.call_function(within, inner, types.none, (types.voidptr,), [outer.args[0]])
        told = within.extract_value(within.load(within.bitcast(outer.args[0], shared.type)), 1)
        with cgutils.if_unlikely(within, status.is_error):
            within.store(ir.Constant(word, 1), told)
        within.ret_void()

        parallel = ir.FunctionType(ir.VoidType(), [outer.type, byte.as_pointer(), word, word]).as_pointer()
        builder.call(
            builder.inttoptr(arguments[0], parallel),
            [
                outer,
                builder.bitcast(shared, byte.as_pointer()),
                builder.trunc(arguments[1], word),
                ir.Constant(word, 0),
            ],
        )
        with cgutils.if_unlikely(builder, builder.icmp_unsigned("!=", builder.load(failed), ir.Constant(word, 0))):
            convention.return_user_exc(builder, MemoryError, ("failed in a thread: with one, see why",))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, body, given), generate


_in_team: Any = intrinsic(_calling_in_team)
