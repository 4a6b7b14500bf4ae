"""A rule as one Triton kernel over all parameters, on a GPU.

It is proved by Triton's interpreter, and runs only where it is asked for (`kernel="triton"`): it is to become the
default once it was timed on a GPU.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from trainwell.errors import InputError
from trainwell.optim.formula import Program, state_of
from trainwell.optim.kernels import generated
from trainwell.optim.kernels.text import expressions, statements

CHUNK = 1 << 12  # elements that one program goes over
_BLOCK = 1 << 10  # of them at once


def run(kernel: Callable[..., None], table: Any, numbers: Any, device: torch.device) -> None:
    """Launches a kernel on all chunks.

    Args:
        kernel: from `compiled`.
        table: addresses, cuts and rows of all arrays.
        numbers: the program's numbers, in rows.
        device: where the arrays are.
    """

    def there(values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    if table.there is None:  # how the arrays are cut does not change from step to step
        table.there = [there(part) for part in (*table.cuts, table.rows)]
    addresses = there(table.addresses.view("int64"))
    counts = addresses.shape[1], numbers.shape[1]
    # Triton launches on the current device.
    with torch.cuda.device_of(addresses):  # type: ignore[no-untyped-call]
        kernel[len(table.cuts[0]),](addresses, *table.there, there(numbers), *counts, _BLOCK)  # type: ignore[index]


def refuse_if_missing(device: torch.device) -> None:
    """Raises an `InputError` if Triton is not there, or has no device to run on."""
    if importlib.util.find_spec("triton") is None:
        raise InputError("kernel='triton' needs the package triton; on Linux it comes with torch for CUDA")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f"kernel='triton' needs parameters on a GPU; these are on {device}")


@functools.cache
def compiled(program: Program, dtype: torch.dtype) -> Callable[..., None]:
    """Returns the program's kernel."""
    module, _ = generated.load(source(program, dtype))
    kernel: Callable[..., None] = module.kernel
    return kernel


def source(program: Program, dtype: torch.dtype) -> str:
    """Returns the text of the module with the program's kernel."""
    names = ["p", "g", *state_of(program)]
    body, results, count = statements(program, {name: f"x{k}" for k, name in enumerate(names)}, _EXPRESSIONS)
    kind = "float64" if dtype == torch.float64 else "float32"
    pointers = [
        f"a{k} = tl.load(addresses + {k} * tensors_count + i).to(tl.pointer_type(tl.{kind})) + start"
        for k in range(len(names))
    ]
    loads = [f"x{k} = tl.load(a{k} + at, mask=mask)" for k in range(len(names))]
    stores = [f"tl.store(a{names.index(name)} + at, {value}, mask=mask)" for name, value in results]
    return _TEMPLATE.format(
        itemsize=8 if dtype == torch.float64 else 4,
        pointers="\n    ".join(pointers),
        numbers="\n    ".join(f"n{k} = tl.load(numbers + row * numbers_count + {k})" for k in range(count)),
        body="\n        ".join([*loads, *body, *stores]),
    )


_EXPRESSIONS = expressions(
    sqrt="tl.sqrt({0})",
    abs="tl.abs({0})",
    sign="tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
    maximum="tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    minimum="tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    where="tl.where({0}, {1}, {2})",
)

_TEMPLATE = """\
import triton
import triton.language as tl


@triton.jit
def kernel(
    addresses, tensors, starts, lengths, rows, numbers, tensors_count, numbers_count, BLOCK: tl.constexpr
):
    c = tl.program_id(0)
    i = tl.load(tensors + c)
    start = tl.load(starts + c) // {itemsize}
    length = tl.load(lengths + c)
    row = tl.load(rows + i)
    {numbers}
    {pointers}
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < length
        {body}
"""
