"""A rule as one compiled pass over all parameters, on the CPU.

Of a program a loop is generated that reads each element once, does the whole rule in registers, and writes each result
once. It works on raw addresses in chunks, so that a hundred small tensors cost one call. Numbers arrive rounded from
float64 to the tensors' dtype; NaN stays NaN. It holds no lock, and runs in torch's own threads, or after a fork in
plain ones: calls from several threads at once, and in a forked child, are safe.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainwell.optim.formula import Program, state_of
from trainwell.optim.kernels import generated
from trainwell.optim.kernels.text import expressions, statements
from trainwell.threads import forked, share

CHUNK = 1 << 14  # elements: a few of its arrays fit a core's cache
_FEW = 1 << 16  # elements that one thread is faster with, where the others have gone to sleep

Addresses = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def chunks(sizes: Sequence[int], itemsize: int, chunk: int = CHUNK) -> tuple[Counts, Counts, Counts]:
    """Cuts tensors of so many elements; returns of each chunk its tensor, its start in bytes, and its elements."""
    cuts = [(i, start, min(chunk, size - start)) for i, size in enumerate(sizes) for start in range(0, size, chunk)]
    table = np.array(cuts, dtype=np.int64).reshape(-1, 3)
    return table[:, 0].copy(), table[:, 1] * itemsize, table[:, 2].copy()


def run(
    kernel: Callable[..., None],
    addresses: Addresses,
    cuts: tuple[Counts, Counts, Counts],
    rows: Counts,
    numbers: npt.NDArray[Any],
    elements: int,
) -> None:
    """Calls a kernel on all chunks, in as many threads as torch uses if there is enough to do.

    Args:
        kernel: from `compiled`.
        addresses: of each array (`p`, `g`, the state that is read) and tensor.
        cuts: from `chunks`.
        rows: of each tensor, its row of numbers.
        numbers: the program's numbers, in rows.
        elements: how many there are in all.
    """
    threads = torch.get_num_threads() if elements > _FEW else 1
    share(kernel, (addresses, *cuts, rows, numbers), len(cuts[0]), threads)


_lock = threading.Lock()


def compiled(program: Program, dtype: torch.dtype) -> Callable[..., None] | None:
    """Returns the program's kernel, or `None` where there is none: no numba, or a forked child that lacks it.

    A child does not compile: had the parent been compiling in another thread, its lock would never be released.
    """
    kernel: Callable[..., None] | None = _kernels.get((program, dtype), _MISSING)
    if kernel is _MISSING:
        if forked():
            return None
        with _lock:
            kernel = _kernels[program, dtype] = _compile(program, dtype)
    return kernel


_MISSING: Any = object()
_kernels: dict[tuple[Program, torch.dtype], Callable[..., None] | None] = {}


def _compile(program: Program, dtype: torch.dtype) -> Callable[..., None] | None:
    if not _numba_is_there():
        return None
    module, on_disk = generated.load(source(program, dtype))
    kernel: Callable[..., None] = module.make(cache=on_disk)
    return kernel


@functools.cache
def _numba_is_there() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def source(program: Program, dtype: torch.dtype) -> str:
    """Returns the text of the module whose `make(cache)` compiles the program's kernel."""
    names = ["p", "g", *state_of(program)]
    body, results, count = statements(program, {name: f"a{k}[j]" for k, name in enumerate(names)}, _EXPRESSIONS)
    # All is read before anything is written, so that states may trade places.
    body += [f"w{k} = {value}" for k, (_, value) in enumerate(results)]
    body += [f"a{names.index(name)}[j] = w{k}" for k, (name, _) in enumerate(results)]
    arrays = [f"a{k} = carray(pointer(addresses[{k}, i] + starts[c]), n)" for k in range(len(names))]
    return _TEMPLATE.format(
        called=_called(),
        type="float64" if dtype == torch.float64 else "float32",
        arrays="\n            ".join(arrays),
        numbers="\n            ".join(f"n{k} = numbers[row, {k}]" for k in range(count)),
        body="\n                ".join(body),
    )


@functools.cache
def _called() -> str:
    """Returns a hash of our files whose code is compiled into a kernel: a change of them is a change of its text."""
    ground = Path(__file__).parents[2]
    return hashlib.sha256(b"".join((ground / name).read_bytes() for name in ("fork_join.py", "threads.py"))).hexdigest()


_EXPRESSIONS = expressions(
    sqrt="np.sqrt({0})",
    abs="abs({0})",
    sign="(ONE if {0} > ZERO else (-ONE if {0} < ZERO else {0}))",  # NaN and 0 are themselves
    maximum="({0} if {0} > {1} or {0} != {0} else {1})",
    minimum="({0} if {0} < {1} or {0} != {0} else {1})",
    where="({1} if {0} else {2})",
)

# `carray` from the chunk's start, and a loop from 0: a loop from an offset is four times slower. The flags leave out
# `nnan` and `ninf`, with which NaN would not stay NaN.
_TEMPLATE = """\
# compiled with what has the hash {called}
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, register_jitable
from trainwell.fork_join import fork_join
from trainwell.threads import Team

FLAGS = {{"arcp", "contract", "nsz"}}
ZERO, ONE = np.{type}(0), np.{type}(1)


@intrinsic
def pointer(context, address):
    def convert(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(to))

    to = types.CPointer(types.{type})
    return to(types.uint64), convert


@register_jitable(fastmath=FLAGS)
def chunks(addresses, tensors, starts, lengths, rows, numbers, first, last):
    for c in range(first, last):
        i, n = tensors[c], lengths[c]
        row = rows[i]
        if n > 0:
            {arrays}
            {numbers}
            for j in range(n):
                {body}


def kernel(team, start, stop, addresses, tensors, starts, lengths, rows, numbers):
    fork_join(team, start, stop, chunks, (addresses, tensors, starts, lengths, rows, numbers))


def make(cache):
    signature = types.void(
        types.NamedUniTuple(types.int64, 3, Team), types.int64, types.int64, types.uint64[:, ::1],
        types.int64[::1], types.int64[::1], types.int64[::1], types.int64[::1], types.{type}[:, ::1],
    )
    options = {{"nogil": True, "error_model": "numpy"}}
    try:
        return njit(signature, cache=cache, **options)(kernel)
    except RuntimeError:
        if not cache:
            raise
        return njit(signature, **options)(kernel)  # no folder in which numba may keep it
"""
