"""Schedules: a hyper-parameter as a pure function of the step.

A schedule is a small frozen dataclass that is called with the number of the optimizer step, counted from 0, and
returns a float. It keeps no state: nothing is called in the right order, nothing is saved but the step, and the same
step always gives the same value. Schedules nest by holding one another, and print, compare, hash and pickle:

>>> rate = warmup(cosine(3e-3, steps=2_000), steps=100)
>>> rate
Warmup(schedule=Cosine(value=0.003, steps=2000, final=0.0), steps=100, start=0.0)
>>> rate(0) > 0, rate(2_000)
(True, 0.0)

`parse` reads what they print. The lower-case names (`cosine`) are the classes (`Cosine`). A new schedule is a class
with its fields and `__call__`; the fields are checked by their types: `float` is a finite number, `int` a count from 1,
`Value` a number or a schedule, `Factors` a dict from steps to numbers, and a `Literal` one of its texts.
"""

import ast
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from trainwell.errors import InputError, nearest
from trainwell.optim.checks import as_count, as_number, one_of

Value: TypeAlias = float | Callable[[int], float]
"""A hyper-parameter is a number, a schedule, or any function of the step."""

Factors: TypeAlias = Mapping[int, float] | Iterable[tuple[int, float]]
"""Numbers by the step from which they count; kept as a tuple of pairs, in the order of the steps."""


@dataclass(frozen=True)
class Schedule:
    """What all schedules have in common: their fields are checked, and they are called with the step."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), f"{type(self).__name__}.{field.name}"
            check = {float: as_number, int: as_count, Value: _nested, Factors: _factors}.get(field.type)
            checked = check(value, name) if check else one_of(get_args(field.type), value, name)
            object.__setattr__(self, field.name, checked)

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
        return _half_cosine(self.value, self.final, min(step / self.steps, 1.0))


@dataclass(frozen=True)
class Linear(Schedule):
    """Goes from `value` at step 0 to `final` at step `steps` on a straight line, and stays there.

    Lines that follow one another with `then` interpolate between any points.

    Args:
        value: at step 0.
        steps: where `final` is reached.
        final: from there on.

    >>> [linear(1.0, steps=4)(step) for step in (0, 1, 4, 5)]
    [1.0, 0.75, 0.0, 0.0]
    """

    value: float
    steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return _line(self.value, self.final, min(step / self.steps, 1.0))


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplies by `factor` every so many steps: `value * factor ** (step // every)`.

    That is torch's `StepLR(step_size=every, gamma=factor)`. For drops at steps of your choice take `piecewise`.

    Args:
        value: during the first `every` steps.
        every: length of a stair.
        factor: height of each stair over that of the one before.

    >>> [step(8.0, every=10, factor=0.5)(k) for k in (0, 9, 10, 25)]
    [8.0, 8.0, 4.0, 2.0]
    """

    value: float
    every: int
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return self.value * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant pieces: from each of the given steps on, the value is multiplied by the factor given for it as well.

    That is torch's `MultiStepLR`, with a factor for each milestone, and optax's `piecewise_constant_schedule`.

    Args:
        value: before the first of the steps.
        factors: `{step: factor}` or pairs of them; steps count from 1.

    Raises:
        InputError: a step is there twice, or something is no number.

    >>> [piecewise(8.0, {10: 0.5, 20: 0.25})(step) for step in (9, 10, 20)]
    [8.0, 4.0, 1.0]
    """

    value: float
    factors: Factors

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return math.prod((factor for at, factor in dict(self.factors).items() if step >= at), start=self.value)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Falls exponentially: `value * exp(-rate * step)`.

    Torch's `ExponentialLR(gamma)` is `rate = -log(gamma)`. A negative rate rises, as for a range test.

    Args:
        value: at step 0.
        rate: part that is lost per step, for small ones; the value halves in `log(2) / rate` steps.

    >>> round(exponential(1.0, rate=0.01)(100), 6)  # 1 / e
    0.367879
    """

    value: float
    rate: float

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return self.value * math.exp(-self.rate * step)


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Falls as one over time: `value / (1 + rate * step)`.

    Such rates satisfy the conditions of Robbins and Monro, *A stochastic approximation method* (1951): their sum is
    infinite and that of their squares is not.

    Args:
        value: at step 0.
        rate: 0 or more; the value has halved after `1 / rate` steps.

    >>> [inverse_time(1.0, rate=0.5)(step) for step in (0, 2, 6)]
    [1.0, 0.5, 0.25]
    """

    value: float
    rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < 0:
            raise InputError(f"InverseTime.rate is {self.rate}: it must be 0 or more, or the value grows to infinity")

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return self.value / (1 + self.rate * step)


@dataclass(frozen=True)
class Restarts(Schedule):
    """Cosines that start again at `value`, each `mult` times as long as the one before (warm restarts).

    Loshchilov and Hutter, *SGDR* (2017), equation 5; torch's `CosineAnnealingWarmRestarts(T_0=steps, T_mult=mult,
    eta_min=final)`. The cycles start at steps 0, `steps`, `steps * (1 + mult)`, and so on; `final` is approached at the
    end of each, but not reached.

    Args:
        value: at the start of each cycle.
        steps: length of the first cycle.
        mult: length of each cycle over that of the one before, a whole number.
        final: what each cycle falls to.

    >>> rate = restarts(1.0, steps=4, mult=2)
    >>> [round(rate(step), 6) for step in (0, 2, 4, 8, 12)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    value: float
    steps: int
    mult: int = 1
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        length = self.steps
        if self.mult == 1:
            step %= length
        while step >= length:  # in whole numbers: a logarithm would miss a restart by rounding
            step, length = step - length, length * self.mult
        return _half_cosine(self.value, self.final, step / length)


@dataclass(frozen=True)
class Triangular(Schedule):
    """Rises from `low` to `high` and falls back on straight lines, again and again.

    Smith, *Cyclical learning rates for training neural networks* (2017). `steps` is the whole cycle, up and down: twice
    Smith's `stepsize` and torch's `CyclicLR(step_size_up)`. Torch's mode "triangular2" is `decay=0.5`.

    Args:
        low: at the ends of each cycle.
        high: in the middle of the first cycle.
        steps: length of a cycle.
        decay: `high - low` of each cycle over that of the one before, from 0 to 1.

    >>> [triangular(1.0, 3.0, steps=4, decay=0.5)(step) for step in range(9)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]
    """

    low: float
    high: float
    steps: int
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay <= 1:
            raise InputError(f"Triangular.decay is {self.decay}: it is what a cycle keeps of the last, from 0 to 1")

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        cycle, at = divmod(step, self.steps)
        share = 1 - abs(2 * at / self.steps - 1)
        return self.low + (self.high - self.low) * share * self.decay**cycle


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Rises to `peak` once, falls far below its start until the last step, and stays there.

    Smith and Topin, *Super-convergence* (2018), as torch's `OneCycleLR`: from `peak / div_factor` at step 0 to `peak`
    at step `pct_start * steps - 1`, and to `peak / div_factor / final_div_factor` at step `steps - 1`.

    Args:
        peak: the highest value.
        steps: length of the cycle, of the whole run as a rule.
        pct_start: fraction of the steps that rises, at least 0 and below 1.
        div_factor: the peak over the first value.
        final_div_factor: the first value over the last.
        anneal_strategy: along half a cosine ("cos") or a straight line ("linear").

    Raises:
        InputError: a field is out of its range.

    Momentum goes the other way when it has a cycle of its own, whose "peak" is the lowest momentum:

    >>> rate = one_cycle(0.1, steps=1_000)
    >>> momentum = one_cycle(0.85, steps=1_000, div_factor=0.85 / 0.95, final_div_factor=1)
    >>> [(round(rate(step), 9), round(momentum(step), 9)) for step in (0, 299, 999)]
    [(0.004, 0.95), (0.1, 0.85), (4e-07, 0.95)]
    """

    peak: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal_strategy: Literal["cos", "linear"] = "cos"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pct_start < 1:
            raise InputError(f"OneCycle.pct_start is {self.pct_start}: it must be at least 0 and below 1")
        for name in ("div_factor", "final_div_factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"OneCycle.{name} is {getattr(self, name)}: it divides, so it must be above 0")

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        between = _half_cosine if self.anneal_strategy == "cos" else _line
        top, last, first = self.pct_start * self.steps - 1, self.steps - 1, self.peak / self.div_factor
        if step < top:
            return between(first, self.peak, step / top)
        return between(self.peak, first / self.final_div_factor, min((step - top) / (last - top), 1.0))


@dataclass(frozen=True)
class WSD(Schedule):
    """Warmup, a long stable stretch, and a short decay to `final` at step `steps`, where it stays.

    Hu et al., *MiniCPM* (2024), section 4; the shapes of the decay are those of Hägele et al., *Scaling laws and
    compute-optimal training beyond fixed training durations* (2024): with `u` from 0 to 1 over the decay, `1 - sqrt(u)`
    (which did best there) or `1 - u`. As the stable stretch does not depend on `steps`, a run can be prolonged from any
    step of it, unlike one with a cosine.

    Args:
        value: in the stable stretch.
        steps: where `final` is reached; a run of so many steps takes its last one just before.
        decay: length of the decay; 10 to 20 percent of the steps is usual.
        warmup: length of the ramp, which is that of `warmup`; 1 is no ramp.
        final: from step `steps` on.
        shape: "1-sqrt" or "linear".

    Raises:
        InputError: ramp and decay overlap.

    >>> [wsd(1.0, steps=10, decay=4, warmup=2, shape="linear")(step) for step in (0, 1, 6, 7, 10)]
    [0.5, 1.0, 1.0, 0.75, 0.0]
    """

    value: float
    steps: int
    decay: int
    warmup: int = 1
    final: float = 0.0
    shape: Literal["1-sqrt", "linear"] = "1-sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup - 1 > self.steps - self.decay:  # the ramp is at full value at step `warmup - 1`
            raise InputError(
                f"WSD.warmup is {self.warmup} and WSD.decay {self.decay}: they must not be longer together than "
                f"WSD.steps, which is {self.steps}"
            )

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        share = min(max(step - (self.steps - self.decay), 0) / self.decay, 1.0)
        fallen = _line(self.value, self.final, math.sqrt(share) if self.shape == "1-sqrt" else share)
        return fallen * min((step + 1) / self.warmup, 1.0)


@dataclass(frozen=True)
class Then(Schedule):
    """One schedule until step `at`, and from there another one, which starts from its own step 0.

    Args:
        first: asked for steps below `at`: a schedule, or a number for a constant.
        second: asked for `step - at` from step `at` on: likewise.
        at: the first step of the second.

    >>> rate = then(linear(0.0, steps=4, final=1.0), cosine(1.0, steps=4), at=4)
    >>> [round(rate(step), 6) for step in (0, 2, 4, 6, 8)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    first: Value
    second: Value
    at: int

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        if step < self.at:
            return as_schedule(self.first)(step)
        return as_schedule(self.second)(step - self.at)


@dataclass(frozen=True)
class Scaled(Schedule):
    """Another schedule times a number, as for a group of parameters that learns more slowly than the others.

    Args:
        schedule: what is scaled: a schedule, or a number for a constant.
        factor: what it is multiplied by.

    >>> scaled(cosine(1.0, steps=4), 0.1)(2)
    0.05
    """

    schedule: Value
    factor: float

    def __call__(self, step: int) -> float:
        """Returns the value at the step."""
        return as_schedule(self.schedule)(step) * self.factor


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
exponential = Exponential
inverse_time = InverseTime
linear = Linear
one_cycle = OneCycle
piecewise = Piecewise
restarts = Restarts
scaled = Scaled
step = Step
then = Then
triangular = Triangular
warmup = Warmup
wsd = WSD


def as_schedule(value: Value) -> Callable[[int], float]:
    """Returns a schedule as it is, and a number as the `Constant` schedule.

    Raises:
        InputError: it is neither a finite number nor callable.

    >>> as_schedule(0.1)
    Constant(value=0.1)
    """
    return value if callable(value) else Constant(value)


def parse(text: str) -> Schedule:
    """Reads a schedule from its text, as it is written in a program or printed, without running any of it.

    Only calls of the schedules of this file, numbers, texts, and tuples and dicts of them are read. What holds a
    function of your own prints as something that cannot be read.

    Args:
        text: such as `warmup(cosine(3e-3, steps=2_000), steps=100)`; a number is a constant.

    Raises:
        InputError: the text is nothing of that kind, or a schedule refuses its fields.

    >>> parse("warmup(cosine(3e-3, steps=2_000), steps=100)")
    Warmup(schedule=Cosine(value=0.003, steps=2000, final=0.0), steps=100, start=0.0)
    >>> parse("piecewise(0.1, {30: 0.1, 60: 0.1})")
    Piecewise(value=0.1, factors=((30, 0.1), (60, 0.1)))
    """
    if not isinstance(text, str):
        raise InputError(f"a schedule is read from text, not from {text!r}: give it as it is, or as text")
    try:
        value = _read(ast.parse(text.strip(), mode="eval").body)
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a null character; what is nested too deep
        raise InputError(f"{text!r} is no schedule: write it as a call, like cosine(0.003, steps=2000)") from None
    return value if isinstance(value, Schedule) else Constant(value)


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=number)):
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        case ast.Tuple(elts=elements):
            return tuple(_read(element) for element in elements)
        case ast.Dict(keys=keys, values=values) if None not in keys:  # as pairs, which show a key that is there twice
            return tuple((_read(key), _read(value)) for key, value in zip(keys, values, strict=True) if key)
        case ast.Call(func=ast.Name(id=name)):
            return _read_call(name, node)
    raise InputError(f"a schedule holds no {ast.unparse(node)!r}: only schedules, called, and numbers can be read")


def _read_call(name: str, call: ast.Call) -> Schedule:
    known = {key: kind for key, kind in globals().items() if isinstance(kind, type) and issubclass(kind, Schedule)}
    if name not in known or name == "Schedule":
        lower = sorted(key for key in known if key.islower())
        raise InputError(f"there is no schedule {name!r}{nearest(name, known)}; there are {', '.join(lower)}")
    keywords = {keyword.arg or "**": keyword.value for keyword in call.keywords}
    allowed = [field.name for field in fields(known[name])]
    wrong = next((key for key in keywords if key not in allowed), None)
    if wrong or len(keywords) < len(call.keywords):
        told = f"takes no {wrong!r}{nearest(wrong, allowed)}" if wrong else "is given the same field twice"
        raise InputError(f"{name} {told}; its fields are {', '.join(allowed)}")
    try:
        bound = inspect.signature(known[name]).bind(*call.args, **keywords)
    except TypeError as error:
        raise InputError(f"{name}: {error}; its fields are {', '.join(allowed)}") from None
    return known[name](**{key: _read(value) for key, value in bound.arguments.items()})


def _half_cosine(start: float, end: float, share: float) -> float:
    rest = (1 + math.cos(math.pi * share)) / 2
    return rest * start + (1 - rest) * end  # exactly `start` and `end` at the ends


def _line(start: float, end: float, share: float) -> float:
    return (1 - share) * start + share * end


def _nested(value: Any, name: str) -> Callable[[int], float]:
    return as_schedule(value if callable(value) else as_number(value, name))


def _factors(value: Any, name: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [(at, factor) for at, factor in (value.items() if isinstance(value, Mapping) else value)]
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}: it must be a dict of factors by their steps, or pairs") from None
    checked = {as_count(at, f"a step of {name}"): as_number(factor, f"a factor of {name}") for at, factor in pairs}
    if len(checked) < len(pairs):
        raise InputError(f"{name} is {value!r}: each step may be there once")
    return tuple(sorted(checked.items()))
