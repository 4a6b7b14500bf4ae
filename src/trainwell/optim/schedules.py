"""Schedules: a hyper-parameter as a pure function of the step.

A schedule is a small frozen dataclass that is called with the number of the optimizer step, counted from 0, and
returns a float. It keeps no state: nothing is called in the right order, nothing is saved but the step, and the same
step always gives the same value. Schedules nest by holding one another, and print, compare, hash and pickle:

>>> rate = warmup(cosine(3e-3, steps=2_000), steps=100)
>>> rate
Warmup(schedule=Cosine(value=0.003, steps=2000, final=0.0), steps=100, start=0.0)
>>> rate(0) > 0, rate(2_000)
(True, 0.0)

The lower-case names (`cosine`) are the classes (`Cosine`). A new schedule is a class with its fields and `__call__`;
the fields are checked by their types: `float` is a finite number, `int` a count of steps from 1, and `Value` a number
or a schedule.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from trainwell.errors import InputError

Value: TypeAlias = float | Callable[[int], float]
"""A hyper-parameter is a number, a schedule, or any function of the step."""


@dataclass(frozen=True)
class Schedule:
    """What all schedules have in common: their fields are checked, and they are called with the step."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check = {float: _number, int: _steps, Value: _nested}[field.type]
            value = check(getattr(self, field.name), f"{type(self).__name__}.{field.name}")
            object.__setattr__(self, field.name, value)

    def __call__(self, step: int) -> float:
        """Returns the value at the step, counted from 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    >>> constant(0.1)(7)
    0.1
    """

    value: float

    def __call__(self, step: int) -> float:
        """Returns the value."""
        return self.value


@dataclass(frozen=True)
class Cosine(Schedule):
    """Falls (or rises) from `value` at step 0 to `final` at step `steps` along half a cosine, and stays there.

    `final + (value - final) * (1 + cos(pi * step / steps)) / 2`: Loshchilov and Hutter, *SGDR* (2017), one cycle.

    Args:
        value: at step 0.
        steps: where `final` is reached; a run of so many steps takes its last one just before.
        final: from there on.

    >>> [cosine(1.0, steps=4)(step) for step in (0, 2, 4, 5)]
    [1.0, 0.5, 0.0, 0.0]
    """

    value: float
    steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        share = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return share * self.value + (1 - share) * self.final  # exactly `value` and `final` at the ends


@dataclass(frozen=True)
class Warmup(Schedule):
    """Multiplies another schedule by a ramp to 1 during the first `steps` steps, and is that schedule afterwards.

    At step `k < steps` the factor is `start + (1 - start) * (k + 1) / steps`: no step is taken at a rate of zero, and
    the last of the `steps` has the full value. The nested schedule is always asked for the very same step, never for
    a shifted one: `warmup(cosine(3e-3, steps=2_000), steps=100)` equals the cosine from step 99 on, and ends at step
    2,000 with it.

    Args:
        schedule: what is warmed up: a schedule, or a number for a constant.
        steps: length of the ramp; 1 is no ramp.
        start: the factor that the ramp rises from, from 0 to 1: what it would be one step before the first.

    >>> [warmup(1.0, steps=4)(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    schedule: Value
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start <= 1:
            raise InputError(f"Warmup.start is {self.start}: it is a fraction of the full value, from 0 to 1")

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        ramp = min((step + 1) / self.steps, 1.0)
        return as_schedule(self.schedule)(step) * (self.start + (1 - self.start) * ramp)


constant = Constant
cosine = Cosine
warmup = Warmup


def as_schedule(value: Value) -> Callable[[int], float]:
    """Returns a schedule as it is, and a number as the `Constant` schedule.

    Raises:
        InputError: it is neither a finite number nor callable.

    >>> as_schedule(0.1)
    Constant(value=0.1)
    """
    return value if callable(value) else Constant(value)


def _nested(value: Any, name: str) -> Callable[[int], float]:
    return as_schedule(value if callable(value) else _number(value, name))


def _number(value: Any, name: str) -> float:
    try:
        # NumPy's and torch's numbers are welcome; a text or a truth value is a slip, though Python would convert it.
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}: it must be a finite number")
    return number


def _steps(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise InputError(f"{name} is {value!r}: it must be a whole number of optimizer steps, at least 1")
    return operator.index(value)
