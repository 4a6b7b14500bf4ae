"""Oracles: closed forms, and torch.optim.lr_scheduler."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from trainwell.errors import InputError
from trainwell.optim import schedules
from trainwell.optim.schedules import Constant, Cosine, Warmup, as_schedule, constant, cosine, warmup

numbers = st.floats(-1e3, 1e3)
counts = st.integers(1, 5_000)
simple = st.builds(Constant, numbers) | st.builds(Cosine, numbers, counts, numbers)
nested = st.recursive(simple, lambda inner: st.builds(Warmup, inner, counts, st.floats(0, 1)), max_leaves=4)


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


@settings(deadline=None)
@given(schedule=nested, steps=counts, start=st.floats(0, 1), step=st.integers(0, 10_000))
def test_warmup_scales_the_same_step_by_its_ramp(schedule: Constant, steps: int, start: float, step: int) -> None:
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
def test_the_order_of_calls_does_not_matter(schedule: Constant, steps: list[int]) -> None:
    values = {step: schedule(step) for step in steps}
    assert {step: schedule(step) for step in reversed(steps)} == values
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


@settings(deadline=None)
@given(schedule=nested)
def test_a_schedule_prints_compares_hashes_and_pickles(schedule: Constant) -> None:
    assert eval(repr(schedule), vars(schedules)) == schedule
    copied = pickle.loads(pickle.dumps(schedule))
    assert copied == schedule
    assert hash(copied) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.value = 3.0


def test_schedules_that_differ_are_unequal() -> None:
    distinct = {cosine(1, 10), cosine(1, 11), cosine(2, 10), cosine(1, 10, final=0.1), constant(1), warmup(1, 10)}
    assert len(distinct) == 6
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
        (lambda: as_schedule(True), "is True"),
        (lambda: as_schedule([0.1, 0.2]), "finite number"),
    ],
)
def test_wrong_values_are_said_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
