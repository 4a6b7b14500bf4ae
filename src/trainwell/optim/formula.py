"""The words that update rules are written in, and the trace that turns a rule into a straight-line program.

A rule is a plain Python function on scalars that reads like the equation in the paper. It is called with numbers, and
gives numbers; and it is called with symbols, which record each operation. What was recorded is a `Program`, of which
all kernels are made. Numbers of the rule (rates, powers of beta, the step) are computed by Python itself in float64,
branches on them are taken as Python takes them, and only their values enter the program, apart from its text:

>>> def rule(p, g, *, lr, weight_decay):
...     if weight_decay:
...         g = g + weight_decay * p
...     return p - lr * g
>>> rule(1.0, 0.5, lr=0.1, weight_decay=0.0)
0.95
>>> program, numbers, _ = trace(rule, ["p", "g"], lr=0.1, weight_decay=0.0)
>>> program.steps, numbers
((('mul', -1, 1), ('sub', 0, 2)), [0.1])
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Program(NamedTuple):
    """What a rule does to each element, one operation after the other; hashable, so that kernels are kept by it.

    Attributes:
        inputs: the names of the arrays that are read: `p`, `g`, and the state.
        steps: operations, each its name and its operands. Operand `i >= 0` is input `i`, or the result of step
            `i - len(inputs)`; `-1, -2, …` are the numbers 0, 1, ….
        outputs: pairs of an input's name and the operand that becomes its new value.
    """

    inputs: tuple[str, ...]
    steps: tuple[tuple[Any, ...], ...]
    outputs: tuple[tuple[str, int], ...]


class Symbol:
    """Stands for an array's element while a rule is traced."""

    __slots__ = ("index", "tracer")
    __array_ufunc__ = None  # a NumPy number on the left leaves the operation to the symbol

    def __init__(self, tracer: "_Tracer", index: int) -> None:
        self.tracer, self.index = tracer, index

    def __add__(self, other: Any) -> "Symbol":
        return self.tracer.record("add", self, other)

    def __radd__(self, other: Any) -> "Symbol":
        return self.tracer.record("add", other, self)

    def __sub__(self, other: Any) -> "Symbol":
        return self.tracer.record("sub", self, other)

    def __rsub__(self, other: Any) -> "Symbol":
        return self.tracer.record("sub", other, self)

    def __mul__(self, other: Any) -> "Symbol":
        return self.tracer.record("mul", self, other)

    def __rmul__(self, other: Any) -> "Symbol":
        return self.tracer.record("mul", other, self)

    def __truediv__(self, other: Any) -> "Symbol":
        return self.tracer.record("div", self, other)

    def __rtruediv__(self, other: Any) -> "Symbol":
        return self.tracer.record("div", other, self)

    def __neg__(self) -> "Symbol":
        return self.tracer.record("neg", self)

    def __abs__(self) -> "Symbol":
        return self.tracer.record("abs", self)

    def __gt__(self, other: Any) -> "Symbol":
        return self.tracer.record("greater", self, other)

    def __lt__(self, other: Any) -> "Symbol":
        return self.tracer.record("less", self, other)

    def __pow__(self, exponent: float) -> "Symbol":
        if exponent == 2:
            return self * self
        if exponent == 0.5:
            return self.tracer.record("sqrt", self)
        raise TypeError(f"a formula has squares, ** 2, and roots, sqrt; not ** {exponent}")

    def __bool__(self) -> bool:
        raise TypeError("a formula cannot branch on the values of an array: use where(a > b, x, y)")


class _Tracer:
    """Records the operations on symbols."""

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.steps: list[tuple[Any, ...]] = []
        self.numbers: list[float] = []

    def record(self, name: str, *operands: Any) -> Symbol:
        places: list[Any] = [name]
        for x in operands:  # every step of the optimizer comes here: no more is done than must be
            if type(x) is Symbol:
                places.append(x.index)
            else:
                self.numbers.append(float(x))
                places.append(-len(self.numbers))
        self.steps.append(tuple(places))
        return Symbol(self, len(self.inputs) + len(self.steps) - 1)


def trace(
    update: Callable[..., Any], arrays: Sequence[str], **numbers: Any
) -> tuple[Program, list[float], list[float]]:
    """Runs a rule on symbols; returns its program, the numbers in it, and the new numbers of the state.

    Args:
        update: the rule. It returns the new values of `p` and of the state, in the order of its arguments.
        arrays: `p`, `g` and the names of the arrays in the state.
        numbers: the rule's other arguments; those before its star, numbers of the state, it returns last.

    Raises:
        TypeError: the rule branches on an array, or does something else that no kernel can.
    """
    tracer = _Tracer(tuple(arrays))
    symbols = [Symbol(tracer, i) for i in range(len(tracer.inputs))]
    values = update(*symbols, **numbers)
    values = values if isinstance(values, tuple) else (values,)
    changed = len(symbols) - 1  # all but the gradient
    if len(values) < changed:
        raise TypeError(f"the rule returns {len(values)} values, not the new p, {', '.join(tracer.inputs[2:])}")
    new = []
    for value in values[:changed]:
        if type(value) is Symbol:
            new.append(value.index)
        else:
            tracer.numbers.append(float(value))
            new.append(-len(tracer.numbers))
    return _program(tracer.inputs, tuple(tracer.steps), tuple(new)), tracer.numbers, list(values[changed:])


@functools.lru_cache(maxsize=1024)
def _program(inputs: tuple[str, ...], steps: tuple[tuple[Any, ...], ...], new: tuple[int, ...]) -> Program:
    """Leaves out state that the rule never reads: AMSGrad's maximum, when AMSGrad is off."""
    changed = list(zip((0, *range(2, len(inputs))), new, strict=True))
    read = _read(steps, tuple(value for index, value in changed if value != index))
    outputs = [(inputs[index], value) for index, value in changed if (index in read or index == 0) and value != index]
    return Program(inputs, steps, tuple(outputs))


def _read(steps: tuple[tuple[Any, ...], ...], outputs: tuple[int, ...]) -> set[int]:
    return {operand for step in steps for operand in step[1:]} | set(outputs)


@functools.lru_cache(maxsize=1024)
def state_of(program: Program) -> tuple[str, ...]:
    """Returns the names of the state that a program reads, the only state that is kept."""
    read = _read(program.steps, tuple(value for _, value in program.outputs))
    return tuple(name for i, name in enumerate(program.inputs) if i >= 2 and i in read)


# ---------------------------------------------------------------------- words: on symbols and on numbers


def sqrt(x: Any) -> Any:
    """Returns the square root."""
    return x.tracer.record("sqrt", x) if type(x) is Symbol else math.sqrt(x)


def sign(x: Any) -> Any:
    """Returns -1, 0 or 1; NaN stays NaN."""
    if type(x) is Symbol:
        return x.tracer.record("sign", x)
    return x if math.isnan(x) else float((x > 0) - (x < 0))


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """Returns `start + weight * (end - start)`, a running mean that moves to `end`; `weight` is from 0 to 1."""
    if weight > 0.5:  # from the nearer side, so that a weight of 1 is `end` to the bit
        start, end, weight = end, start, 1 - weight
    for x in (start, end):
        if type(x) is Symbol:
            return x.tracer.record("lerp", start, end, weight)
    return start + weight * (end - start)


def maximum(x: Any, y: Any) -> Any:
    """Returns the greater of both; NaN if one is NaN."""
    for symbol in (x, y):
        if type(symbol) is Symbol:
            return symbol.tracer.record("maximum", x, y)
    return x if x > y or math.isnan(x) else y


def minimum(x: Any, y: Any) -> Any:
    """Returns the smaller of both; NaN if one is NaN."""
    for symbol in (x, y):
        if type(symbol) is Symbol:
            return symbol.tracer.record("minimum", x, y)
    return x if x < y or math.isnan(x) else y


def where(condition: Any, x: Any, y: Any) -> Any:
    """Returns `x` where the condition, a comparison with `>` or `<`, holds, and `y` elsewhere."""
    if type(condition) is Symbol:
        return condition.tracer.record("where", condition, x, y)
    return x if condition else y
