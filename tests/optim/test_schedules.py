"""Oracles: closed forms, exact fractions, torch.optim.lr_scheduler and optax."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from trainwell.errors import InputError
from trainwell.optim import schedules
from trainwell.optim.schedules import (
    WSD,
    Constant,
    Cosine,
    Exponential,
    InverseTime,
    Linear,
    OneCycle,
    Piecewise,
    Restarts,
    Scaled,
    Schedule,
    Step,
    Then,
    Triangular,
    Warmup,
    as_schedule,
    constant,
    cosine,
    exponential,
    inverse_time,
    linear,
    one_cycle,
    parse,
    piecewise,
    restarts,
    scaled,
    step,
    then,
    triangular,
    warmup,
    wsd,
)

numbers = st.floats(-1e3, 1e3)
counts = st.integers(1, 5_000)
shares = st.floats(0, 1)
# Each schedule by strategies for its fields: the tests of what all have in common run over this table.
FIELDS: dict[type[Schedule], dict[str, st.SearchStrategy[Any]]] = {
    Constant: {"value": numbers},
    Cosine: {"value": numbers, "steps": counts, "final": numbers},
    Linear: {"value": numbers, "steps": counts, "final": numbers},
    Step: {"value": numbers, "every": counts, "factor": shares},
    Piecewise: {"value": numbers, "factors": st.dictionaries(counts, shares, max_size=4)},
    Exponential: {"value": numbers, "rate": shares},
    InverseTime: {"value": numbers, "rate": st.floats(0, 10)},
    Restarts: {"value": numbers, "steps": counts, "mult": st.integers(1, 4), "final": numbers},
    Triangular: {"low": numbers, "high": numbers, "steps": counts, "decay": shares},
    OneCycle: {
        "peak": numbers,
        "steps": counts,
        "pct_start": st.floats(0, 0.99),
        "div_factor": st.floats(0.1, 100),
        "final_div_factor": st.floats(0.1, 1e5),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
    },
    WSD: {
        "value": numbers,
        "steps": st.integers(5_000, 10_000),
        "decay": st.integers(1, 2_500),
        "warmup": st.integers(1, 2_500),
        "final": numbers,
        "shape": st.sampled_from(["1-sqrt", "linear"]),
    },
}
simple = st.one_of([st.builds(kind, **values) for kind, values in FIELDS.items()])
nested = st.recursive(
    simple,
    lambda inner: (
        st.builds(Warmup, inner, counts, shares)
        | st.builds(Scaled, inner, numbers)
        | st.builds(Then, inner, inner, counts)
    ),
    max_leaves=4,
)


def _torch_rates(make: Callable[[torch.optim.Optimizer], Any], lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@settings(deadline=None)
@given(value=numbers, step=st.integers(0, 10**9))
def test_constant_is_its_value(value: float, step: int) -> None:
    assert constant(value)(step) == value


@settings(deadline=None)
@given(value=numbers, steps=counts, final=numbers, step=st.integers(0, 10_000))
def test_cosine_is_its_closed_form_and_then_stays(value: float, steps: int, final: float, step: int) -> None:
    expected = final + (value - final) * (1 + math.cos(math.pi * step / steps)) / 2 if step < steps else final
    assert cosine(value, steps, final)(step) == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert cosine(value, steps, final)(0) == value
    assert cosine(value, steps, final)(steps) == cosine(value, steps, final)(steps + step) == final


@pytest.mark.parametrize("final", [0.0, 1e-4])
def test_cosine_equals_torchs(final: float) -> None:
    rates = _torch_rates(lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=200, eta_min=final), 3e-3, 200)
    ours = [cosine(3e-3, steps=200, final=final)(step) for step in range(200)]
    np.testing.assert_allclose(ours, rates, rtol=1e-9)


@pytest.mark.parametrize("start", [0.0, 0.25])
def test_warmed_cosine_equals_torchs_linear_ramp_chained_with_torchs_cosine(start: float) -> None:
    steps, ramp = 200, 20

    def chain(opt: torch.optim.Optimizer) -> lr_scheduler.ChainedScheduler:
        first = start + (1 - start) / ramp  # torch counts its ramp from its first step, ours from one before it
        linear = lr_scheduler.LinearLR(opt, start_factor=first, total_iters=ramp - 1)
        return lr_scheduler.ChainedScheduler([linear, lr_scheduler.CosineAnnealingLR(opt, T_max=steps)])

    rate = warmup(cosine(3e-3, steps=steps), steps=ramp, start=start)
    np.testing.assert_allclose([rate(step) for step in range(steps)], _torch_rates(chain, 3e-3, steps), rtol=1e-9)


def test_a_schedule_is_a_lambda_of_torchs_scheduler() -> None:
    rate = warmup(cosine(3e-3, steps=50), steps=5)
    rates = _torch_rates(lambda opt: lr_scheduler.LambdaLR(opt, rate), 1.0, 60)
    assert rates == [rate(step) for step in range(60)]


def _optax_rates(make: Callable[[], Callable[[Any], Any]], steps: int) -> list[float]:
    with jax.enable_x64(True):  # optax would compute in float32
        schedule = make()
        return [float(schedule(np.int64(step))) for step in range(steps)]


def _equal(schedule: Callable[[int], float], rates: list[float]) -> None:
    assert len(rates) > 1
    ours = [schedule(step) for step in range(len(rates))]
    np.testing.assert_allclose(ours, rates, rtol=1e-12, atol=max(1e-12 * max(map(abs, rates)), 1e-300))


def test_every_schedule_is_in_the_table_of_these_tests() -> None:
    assert set(Schedule.__subclasses__()) >= {*FIELDS, Warmup, Scaled, Then}
    ours = {kind for kind in vars(schedules).values() if isinstance(kind, type) and issubclass(kind, Schedule)}
    assert ours - {Schedule} == {*FIELDS, Warmup, Scaled, Then}


@settings(deadline=None, max_examples=50)
@given(value=numbers, steps=st.integers(1, 100), final=numbers)
def test_linear_equals_numpys_interpolation_and_optaxs_line(value: float, steps: int, final: float) -> None:
    rate = linear(value, steps, final)
    _equal(rate, list(np.interp(np.arange(steps + 20), [0, steps], [value, final])))
    _equal(rate, _optax_rates(lambda: optax.linear_schedule(value, final, steps), steps + 3))
    assert (rate(0), rate(steps), rate(10**9)) == (value, final, final)


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("every", [1, 7, 30])
def test_step_equals_torchs(every: int, factor: float) -> None:
    _equal(step(0.3, every, factor), _torch_rates(lambda opt: lr_scheduler.StepLR(opt, every, factor), 0.3, 100))
    assert step(0.3, 30) == step(0.3, every=30, factor=0.1)


@settings(deadline=None, max_examples=50)
@given(value=numbers, factors=st.dictionaries(st.integers(1, 60), st.floats(0.01, 10), min_size=1, max_size=4))
def test_piecewise_is_the_product_of_the_factors_so_far_as_optaxs(value: float, factors: dict[int, float]) -> None:
    rate = piecewise(value, factors)
    product, expected = value, []
    for k in range(70):
        product *= factors.get(k, 1.0)
        expected.append(product)
    _equal(rate, expected)
    _equal(rate, _optax_rates(lambda: optax.piecewise_constant_schedule(value, factors), 70))
    assert rate == piecewise(value, list(reversed(factors.items())))


def test_piecewise_equals_torchs_milestones() -> None:
    rates = _torch_rates(lambda opt: lr_scheduler.MultiStepLR(opt, [10, 30, 31], gamma=0.2), 0.5, 50)
    _equal(piecewise(0.5, {30: 0.2, 10: 0.2, 31: 0.2}), rates)


@pytest.mark.parametrize("rate", [1e-4, 0.03, 0.7, -0.05])
def test_exponential_is_its_closed_form_torchs_and_optaxs(rate: float) -> None:
    ours, gamma = exponential(0.2, rate), math.exp(-rate)
    _equal(ours, [0.2 * math.exp(-rate * k) for k in range(200)])
    _equal(ours, _torch_rates(lambda opt: lr_scheduler.ExponentialLR(opt, gamma), 0.2, 200))
    _equal(ours, _optax_rates(lambda: optax.exponential_decay(0.2, 1, gamma), 200))


@settings(deadline=None)
@given(value=numbers, rate=st.floats(0, 10), k=st.integers(0, 10**9))
def test_inverse_time_is_the_exact_fraction(value: float, rate: float, k: int) -> None:
    exact = float(Fraction(value) / (1 + Fraction(rate) * k))
    assert inverse_time(value, rate)(k) == pytest.approx(exact, rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("final", [0.0, 1e-3])
@pytest.mark.parametrize("mult", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 5, 24])
def test_restarts_equal_torchs_and_optaxs(steps: int, mult: int, final: float) -> None:
    rate = restarts(0.1, steps, mult, final)

    def make(opt: torch.optim.Optimizer) -> lr_scheduler.CosineAnnealingWarmRestarts:
        return lr_scheduler.CosineAnnealingWarmRestarts(opt, steps, mult, eta_min=final)

    _equal(rate, _torch_rates(make, 0.1, 300))
    lengths = [steps * mult**cycle for cycle in range(3)]
    cycles = [
        {"init_value": 0.1, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": length, "end_value": final}
        for length in lengths
    ]
    _equal(rate, _optax_rates(lambda: optax.sgdr_schedule(cycles), sum(lengths)))


def test_restarts_start_again_exactly_however_late() -> None:
    rate = restarts(0.1, steps=3, mult=3)  # a cycle starts at 3 * (3**n - 1) / 2
    for n in range(1, 40):
        start = 3 * (3**n - 1) // 2
        assert rate(start) == 0.1
        assert rate(start - 1) < 0.1


@pytest.mark.parametrize(("mode", "decay"), [("triangular", 1.0), ("triangular2", 0.5)])
@pytest.mark.parametrize("steps", [2, 7, 40])
def test_triangular_equals_torchs(steps: int, mode: Any, decay: float) -> None:
    def make(opt: torch.optim.Optimizer) -> lr_scheduler.CyclicLR:
        return lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=steps / 2, mode=mode, cycle_momentum=False)

    _equal(triangular(0.01, 0.1, steps, decay), _torch_rates(make, 0.01, 130))


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.0, 0.005, 0.3, 0.77])
@pytest.mark.parametrize(("div", "final_div"), [(25.0, 1e4), (10.0, 1.0)])
def test_one_cycle_equals_torchs(strategy: Any, pct_start: float, div: float, final_div: float) -> None:
    def make(opt: torch.optim.Optimizer) -> lr_scheduler.OneCycleLR:
        return lr_scheduler.OneCycleLR(
            opt,
            max_lr=0.4,
            total_steps=101,
            pct_start=pct_start,
            anneal_strategy=strategy,
            div_factor=div,
            final_div_factor=final_div,
            cycle_momentum=False,
        )

    rate = one_cycle(0.4, 101, pct_start, div, final_div, strategy)
    _equal(rate, _torch_rates(make, 0.1, 101))
    assert rate(500) == rate(101) == rate(100)


def test_one_cycles_defaults_and_its_momentum_are_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=90)
    rates, momenta = [], []
    for _ in range(90):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    _equal(one_cycle(0.4, 90), rates)
    _equal(one_cycle(0.85, 90, div_factor=0.85 / 0.95, final_div_factor=1), momenta)


def test_wsd_equals_optaxs_joined_lines() -> None:
    def make() -> Callable[[Any], Any]:
        parts = [optax.linear_schedule(0.1 / 20, 0.1, 19), optax.constant_schedule(0.1)]
        return optax.join_schedules([*parts, optax.linear_schedule(0.1, 0.01, 30)], [19, 70])

    _equal(wsd(0.1, steps=100, decay=30, warmup=20, final=0.01, shape="linear"), _optax_rates(make, 120))


@settings(deadline=None)
@given(value=numbers, final=numbers, decay=counts, stable=counts, after=counts)
def test_wsds_root_is_its_closed_form(value: float, final: float, decay: int, stable: int, after: int) -> None:
    rate = wsd(value, steps=stable + decay, decay=decay, final=final)
    assert rate(0) == rate(stable) == value
    assert rate(stable + decay) == rate(stable + decay + after) == final
    k = min(after, decay)
    expected = final + (value - final) * (1 - math.sqrt(k / decay))
    assert rate(stable + k) == pytest.approx(expected, rel=1e-12, abs=1e-10)


def test_wsd_may_do_without_a_stable_stretch() -> None:
    rate = wsd(1.0, steps=8, decay=4, warmup=5, shape="linear")  # full at step 4, where the decay starts
    assert [rate(k) for k in range(10)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0], rel=1e-12
    )
    assert [wsd(1.0, 4, decay=4, shape="linear")(k) for k in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    with pytest.raises(InputError, match="WSD.warmup is 6 and WSD.decay 4"):
        wsd(1.0, steps=8, decay=4, warmup=6)


def test_a_longer_wsd_is_the_same_until_the_shorter_decays() -> None:
    short, long = (wsd(0.1, steps, decay=20, warmup=10) for steps in (100, 200))
    assert [short(k) for k in range(81)] == [long(k) for k in range(81)]


@settings(deadline=None)
@given(first=nested, second=nested, at=counts, k=st.integers(0, 10_000))
def test_then_asks_the_second_for_the_steps_since(first: Schedule, second: Schedule, at: int, k: int) -> None:
    assert then(first, second, at)(k) == (first(k) if k < at else second(k - at))


def test_then_equals_optaxs_join_and_takes_numbers() -> None:
    def make() -> Callable[[Any], Any]:
        parts = [optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.1, 30), optax.constant_schedule(0.01)]
        return optax.join_schedules(parts, [10, 40])

    _equal(then(0.1, then(cosine(0.1, 30), 0.01, at=30), at=10), _optax_rates(make, 60))


@settings(deadline=None)
@given(schedule=nested, factor=numbers, k=st.integers(0, 10_000))
def test_scaled_multiplies(schedule: Schedule, factor: float, k: int) -> None:
    assert scaled(schedule, factor)(k) == schedule(k) * factor


def test_schedules_nest_three_deep() -> None:
    rate = warmup(then(scaled(cosine(1.0, 100), 0.5), piecewise(0.1, {50: 0.5}), at=60), steps=20)
    for k in range(150):
        inner = 0.5 * (1 + math.cos(math.pi * k / 100)) / 2 if k < 60 else 0.1 if k < 110 else 0.05
        assert rate(k) == pytest.approx(inner * min((k + 1) / 20, 1.0), rel=1e-12)


@settings(deadline=None)
@given(schedule=nested, steps=counts, start=st.floats(0, 1), step=st.integers(0, 10_000))
def test_warmup_scales_the_same_step_by_its_ramp(schedule: Schedule, steps: int, start: float, step: int) -> None:
    value = warmup(schedule, steps, start)(step)
    factor = start + (1 - start) * (step + 1) / steps
    assert value == pytest.approx(schedule(step) * factor if step < steps else schedule(step), rel=1e-12, abs=1e-300)
    if step >= steps - 1:
        assert value == schedule(step)


@settings(deadline=None)
@given(steps=counts)
def test_warmups_first_step_moves_and_its_last_has_the_full_value(steps: int) -> None:
    rate = warmup(0.1, steps)
    values = [rate(step) for step in range(steps + 1)]
    assert values[0] > 0
    assert values == sorted(values)
    assert values[steps - 1] == values[steps] == 0.1
    assert all(value < 0.1 for value in values[: steps - 1])


@settings(deadline=None)
@given(schedule=nested, steps=st.lists(st.integers(0, 10_000), max_size=5))
def test_the_order_of_calls_does_not_matter(schedule: Schedule, steps: list[int]) -> None:
    values = {step: schedule(step) for step in steps}
    assert {step: schedule(step) for step in reversed(steps)} == values
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


@settings(deadline=None)
@given(schedule=nested)
def test_a_schedule_prints_compares_hashes_and_pickles(schedule: Schedule) -> None:
    assert eval(repr(schedule), vars(schedules)) == schedule
    assert parse(repr(schedule)) == schedule
    copied = pickle.loads(pickle.dumps(schedule))
    assert copied == schedule
    assert hash(copied) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.value = 3.0


def test_schedules_that_differ_are_unequal() -> None:
    distinct = {cosine(1, 10), cosine(1, 11), cosine(2, 10), cosine(1, 10, final=0.1), constant(1), warmup(1, 10)}
    assert len(distinct) == 6
    assert wsd(1, 10, 2) != wsd(1, 10, 2, shape="linear")
    assert warmup(3e-3, 5) == warmup(constant(3e-3), 5)
    assert cosine(1, steps=np.int64(10)) == cosine(np.float32(1), 10)


def test_numbers_schedules_and_functions_are_values() -> None:
    rate = cosine(1.0, 10)
    assert as_schedule(rate) is rate
    assert as_schedule(2)(5) == 2.0
    assert warmup(lambda step: step + 1.0, 4)(1) == 2.0 * 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cosine(1.0, 0), "Cosine.steps is 0: .*at least 1"),
        (lambda: cosine(1.0, 2.5), "Cosine.steps is 2.5: .*whole number"),
        (lambda: cosine(1.0, True), "Cosine.steps is True"),
        (lambda: cosine(math.nan, 10), "Cosine.value is nan: it must be a finite number"),
        (lambda: cosine("0.1", 10), "Cosine.value is '0.1'"),
        (lambda: cosine(1.0, 10, final=math.inf), "Cosine.final is inf"),
        (lambda: constant(None), "Constant.value is None"),
        (lambda: warmup(0.1, -1), "Warmup.steps is -1"),
        (lambda: warmup("fast", 10), "Warmup.schedule is 'fast'"),
        (lambda: warmup(0.1, 10, start=1.5), "Warmup.start is 1.5: .*from 0 to 1"),
        (lambda: step(0.1, every=0), "Step.every is 0: .*at least 1"),
        (lambda: inverse_time(0.1, -1.0), "InverseTime.rate is -1.0: it must be 0 or more"),
        (lambda: restarts(0.1, 10, mult=1.5), "Restarts.mult is 1.5: it must be a whole number"),
        (lambda: triangular(0.1, 0.2, 10, decay=2), "Triangular.decay is 2.0: .*from 0 to 1"),
        (lambda: one_cycle(0.1, 10, pct_start=1), "OneCycle.pct_start is 1.0: .*below 1"),
        (lambda: one_cycle(0.1, 10, div_factor=0), "OneCycle.div_factor is 0.0: .*above 0"),
        (lambda: one_cycle(0.1, 10, final_div_factor=-1), "OneCycle.final_div_factor is -1.0"),
        (
            lambda: one_cycle(0.1, 10, anneal_strategy="cosine"),
            "anneal_strategy is 'cosine': it must be 'cos' or 'line",
        ),
        (lambda: wsd(0.1, 100, decay=60, warmup=60), "WSD.warmup is 60 and WSD.decay 60: .*100"),
        (lambda: wsd(0.1, 100, decay=10, shape=["linear"]), "WSD.shape is .*: it must be '1-sqrt' or 'linear'"),
        (lambda: then(0.1, None, at=10), "Then.second is None"),
        (lambda: then(0.1, 0.2, at=0), "Then.at is 0"),
        (lambda: scaled(0.1, "2"), "Scaled.factor is '2'"),
        (lambda: piecewise(0.1, 30), "Piecewise.factors is 30: it must be a dict"),
        (lambda: piecewise(0.1, (30, 0.1)), r"Piecewise.factors is \(30, 0.1\): it must be a dict"),
        (lambda: piecewise(0.1, {1.5: 0.1}), "a step of Piecewise.factors is 1.5"),
        (lambda: piecewise(0.1, {30: None}), "a factor of Piecewise.factors is None"),
        (lambda: piecewise(0.1, [(30, 0.1), (30, 0.2)]), "each step may be there once"),
        (lambda: as_schedule(True), "is True"),
        (lambda: as_schedule([0.1, 0.2]), "finite number"),
    ],
)
def test_wrong_values_are_said_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("3e-3", constant(3e-3)),
        ("-1", constant(-1)),
        (" cosine(3e-3, 2_000)\n", cosine(3e-3, steps=2000)),
        ("Cosine(value=0.003, steps=2000, final=0.0)", cosine(3e-3, steps=2000)),
        ("warmup(cosine(3e-3, steps=2000), steps=100)", warmup(cosine(3e-3, steps=2000), steps=100)),
        ("linear(final=-1, steps=5, value=2)", linear(2, 5, -1)),
        ("piecewise(0.1, {30: 0.1, 60: 0.2})", piecewise(0.1, {30: 0.1, 60: 0.2})),
        ("piecewise(0.1, ((30, 0.1), (60, 0.2)))", piecewise(0.1, {30: 0.1, 60: 0.2})),
        ("then(0.1, then(WSD(1, 10, decay=2, shape='linear'), 0, at=5), at=3)", None),
    ],
)
def test_what_is_written_is_read(text: str, schedule: Schedule | None) -> None:
    expected = then(0.1, then(wsd(1, 10, decay=2, shape="linear"), 0, at=5), at=3)
    assert parse(text) == (schedule or expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin(0.1, 10)", r"no schedule 'cosin' \(did you mean 'cosine'\?\); there are constant, cosine, "),
        ("Schedule()", "no schedule 'Schedule'"),
        ("eval('1')", "no schedule 'eval'"),
        ("parse('1')", "no schedule 'parse'"),
        (
            "cosine(0.1, step=10)",
            r"cosine takes no 'step' \(did you mean 'steps'\?\); its fields are value, steps, final",
        ),
        ("cosine(0.1)", "cosine: missing a required argument: 'steps'; its fields are value, steps, final"),
        ("cosine(1, 2, 3, 4)", "cosine: too many positional arguments"),
        ("cosine(1, 2, value=3)", "cosine: multiple values for argument 'value'"),
        ("cosine(0.1, steps=10, steps=20)", "cosine is given the same field twice"),
        ("cosine(0.1, **{'steps': 10})", r"cosine takes no '\*\*'"),
        ("cosine(*(0.1, 10), 5)", r"holds no '\*\(0.1, 10\)'"),
        ("cosine(0.1, steps=0)", "Cosine.steps is 0"),
        ("cosine(0.1, steps=True)", "holds no 'True'"),
        ("cosine(0.1, steps=-True)", "holds no '-True'"),
        ("cosine(0.1, steps=5 * 2)", r"holds no '5 \* 2'"),
        ("cosine(cosine(1, 2), 3)", "Cosine.value is Cosine"),
        ("cosine(1e999, 3)", "Cosine.value is inf"),
        ("cosine('1', 3)", "Cosine.value is '1'"),
        ("piecewise(0.1, {1: 0.5, 1: 0.2})", "each step may be there once"),
        ("piecewise(0.1, {**{}})", "holds no"),
        ("warmup(lambda step: 1.0, 10)", "holds no 'lambda step: 1.0'"),
        ("().__class__", "holds no"),
        ("schedules.cosine(0.1, 10)", "holds no"),
        ("cosine", "holds no 'cosine'"),
        ("None", "holds no 'None'"),
        ("(1, 2)", "must be a finite number"),
        ("", "is no schedule: write it as a call"),
        ("cosine(0.1, 10", "is no schedule: write it as a call"),
        ("a = 1\nb = 2", "is no schedule: write it as a call"),
        ("1\x00", "is no schedule: write it as a call"),
        ("-" * 100_000 + "1", "is no schedule: write it as a call"),
        ("-" * 1_500 + "1", "schedule"),
        ("warmup(" * 5_000, "is no schedule: write it as a call"),
        (0.1, "is read from text"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="cosine(){},:*-0.1e=step'warmup \n", max_size=60))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    try:
        outcome: Schedule | str = parse(text)
    except InputError as error:
        outcome = str(error)
    assert isinstance(outcome, Schedule) or "\n" not in outcome
