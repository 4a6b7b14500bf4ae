"""A rule as tensor operations: the reference, on any device and in any dtype.

Each operation of the program is one `torch._foreach_…` call over all tensors. A result overwrites an operand that is
not needed again, be it a passing result or the old value of the state, and products with a number join the addition
that follows. So a step passes over memory no more often than torch's own `foreach` optimizers do.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainwell.optim.formula import Program

_COMMUTE = {"add", "mul", "maximum", "minimum"}
_FACTOR = {"add": "alpha", "addcdiv": "value", "addcmul": "value"}
_BY_TENSOR: dict[str, Callable[..., Tensor]] = {  # what `torch._foreach_…` lacks, or has otherwise
    "greater": torch.gt,
    "less": torch.lt,
    "where": torch.where,
    "sign": lambda x: torch.where(x.isnan(), x, x.sign()),  # torch's sign of NaN is 0
}


def run(program: Program, numbers: Sequence[float], arrays: dict[str, list[Tensor]], *, in_place: bool = True) -> None:
    """Applies a program to lists of tensors, all lists of one length; `p` and the state change.

    Args:
        program: what is done.
        numbers: its numbers.
        arrays: for `p`, `g` and each name of the state that the program reads, its tensors.
        in_place: whether passing results are overwritten; not if autograd shall go through the step.
    """
    values: list[Any] = [arrays.get(name) for name in program.inputs]
    if not in_place:  # autograd keeps operands, and what is in `arrays` will be overwritten
        values = [x and [tensor.clone() for tensor in x] for x in values]
    for call in _calls(program, in_place):
        operands = [values[i] if i >= 0 else numbers[-1 - i] for i in call.operands]
        factor = None if call.factor is None else call.sign * numbers[-1 - call.factor]
        values.append(_apply(call, operands, factor, like=arrays["p"]))
    new = {name: values[i] if i >= 0 else _full(arrays[name], numbers[-1 - i]) for name, i in program.outputs}
    homes = {id(arrays[name]) for name in new}
    for name, value in new.items():
        if value is not arrays[name] and id(value) in homes:  # it lies where another value is about to be put
            new[name] = [x.clone() for x in value]
    for name, value in new.items():
        if value is not arrays[name]:
            for target, source in zip(arrays[name], value, strict=True):
                target.copy_(source)


class _Call(NamedTuple):
    """One operation; `over` is the place of the operand that the result overwrites, `factor` goes with the last one."""

    name: str
    operands: tuple[int, ...]
    over: int | None
    factor: int | None = None
    sign: float = 1.0


def _apply(call: _Call, operands: list[Any], factor: float | None, like: list[Tensor]) -> list[Tensor] | None:
    if call.name == "joined":
        return None
    if call.name in _BY_TENSOR:
        columns = [x if isinstance(x, list) else _full(like, x) for x in operands]
        return [_BY_TENSOR[call.name](*row) for row in zip(*columns, strict=True)]
    if call.over == 1 or (call.name in _COMMUTE and factor is None and not isinstance(operands[0], list)):
        operands = [operands[1], operands[0]]
    for place in (0, 1) if call.name == "lerp" else (0,):  # the operands that torch takes as tensors alone
        if not isinstance(operands[place], list):
            operands[place] = _full(like, operands[place])
    keywords = {} if factor is None else {_FACTOR[call.name]: factor}
    if call.over is None:
        return list(getattr(torch, f"_foreach_{call.name}")(*operands, **keywords))
    getattr(torch, f"_foreach_{call.name}_")(*operands, **keywords)
    overwritten: list[Tensor] = operands[0]
    return overwritten


def _full(like: list[Tensor], number: float) -> list[Tensor]:
    return [torch.full_like(x, number) for x in like]


@functools.lru_cache(maxsize=256)
def _calls(program: Program, in_place: bool) -> tuple[_Call, ...]:
    """Decides for each step which operation it is and what it may overwrite."""
    calls = _with_factors(program)
    if not in_place:
        return tuple(calls)
    last_use: dict[int, float] = {i: at for at, call in enumerate(calls) for i in call.operands}
    last_use |= {i: math.inf for _, i in program.outputs}
    kept = [i for i, name in enumerate(program.inputs) if name not in dict(program.outputs)]  # the gradient, for one
    for at, call in enumerate(calls):
        if call.name in _BY_TENSOR or call.name == "joined":
            continue
        for place in (0, 1) if call.name in _COMMUTE and call.factor is None else (0,):
            operand = call.operands[place]
            if operand >= 0 and operand not in kept and last_use[operand] == at:
                calls[at] = call._replace(over=place)
                break
    return tuple(calls)


def _with_factors(program: Program) -> list[_Call]:
    """Joins `x ± c * y` to an addition with a factor; `x ± c * y / z` to `addcdiv`, `x ± c * y * z` to `addcmul`."""
    first = len(program.inputs)
    calls = [_Call(name, tuple(operands), None) for name, *operands in program.steps]
    used = [i for call in calls for i in call.operands] + [i for _, i in program.outputs]

    def passing(value: int, *names: str) -> _Call | None:
        """Returns the call that a value comes from, if it is of such a name and nobody else uses the value."""
        call = calls[value - first] if value >= first and used.count(value) == 1 else None
        return call if call is not None and call.name in names and call.factor is None else None

    for at, (name, operands, *_) in enumerate(calls):
        if name not in ("add", "sub") or operands[0] < 0:
            continue
        x, y = operands
        last = passing(y, "mul", "div")
        if last is None:
            continue
        inner = passing(last.operands[0], "mul") if min(last.operands) >= 0 else None
        product = inner or last
        if product.name != "mul" or min(product.operands) >= 0:
            continue
        factor, array = sorted(product.operands)
        joined, others = ("add", ()) if inner is None else (f"addc{last.name}", last.operands[1:])
        calls[at] = _Call(joined, (x, array, *others), None, factor, 1.0 if name == "add" else -1.0)
        for value in (y,) if inner is None else (y, last.operands[0]):
            calls[value - first] = _Call("joined", (), None)
    return calls
