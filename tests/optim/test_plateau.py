"""Oracle: torch.optim.lr_scheduler.ReduceLROnPlateau."""

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainwell.errors import InputError
from trainwell.optim.plateau import Plateau
from trainwell.optim.schedules import cosine, scaled, warmup

options = st.fixed_dictionaries(
    {
        "factor": st.floats(0.05, 0.95),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "mode": st.sampled_from(["min", "max"]),
        "cooldown": st.integers(0, 3),
        "min_lr": st.sampled_from([0.0, 1e-3, 1.0]),
    }
)
odd = st.sampled_from([math.nan, math.inf])
# A few round numbers, so that ties and losses right at the threshold are frequent.
positive = st.lists(st.floats(0, 10) | st.sampled_from([0.9, 0.9 * 0.9, 1.0, 1.1]) | odd, max_size=60)
signed = st.lists(st.floats(-10, 10) | st.sampled_from([-1.0, 0.0, 0.1, 1.0]) | odd, max_size=60)


def _torch_rates(losses: list[float], **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, eps=0, **options)
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _rates(plateau: Plateau, losses: list[float]) -> list[float]:
    rates = []
    for step, loss in enumerate(losses):
        plateau.update(loss)
        rates.append(plateau(step))
    return rates


@settings(deadline=None, max_examples=300)
@given(losses=positive, options=options)
@example(losses=[1.0, 0.9, 0.9 * 0.9], options={"threshold": 0.1, "patience": 0})
def test_it_takes_the_course_of_torchs(losses: list[float], options: dict[str, Any]) -> None:
    ours = _rates(Plateau(0.1, **options), losses)
    np.testing.assert_allclose(ours, _torch_rates(losses, **options), rtol=1e-12)


@settings(deadline=None, max_examples=200)
@given(losses=signed, options=options)
def test_it_takes_the_course_of_torchs_below_zero_by_an_absolute_threshold(
    losses: Any, options: dict[str, Any]
) -> None:
    options = {**options, "threshold_mode": "abs"}
    ours = _rates(Plateau(0.1, **options), losses)
    np.testing.assert_allclose(ours, _torch_rates(losses, **options), rtol=1e-12)


@pytest.mark.parametrize(("mode", "losses"), [("min", [-1.0, -0.95, -0.94]), ("max", [-1.0, -1.05, -1.06])])
def test_below_zero_worse_is_no_improvement_by_a_relative_threshold(mode: Any, losses: list[float]) -> None:
    options: dict[str, Any] = {"threshold": 0.1, "patience": 0, "mode": mode}
    assert _torch_rates(losses, **options) == [0.1, 0.1, 0.1]  # torch takes each for better than the last
    assert _rates(Plateau(0.1, **options), losses) == pytest.approx([0.1, 0.01, 0.001])
    better = {"min": -1.2, "max": -0.8}[mode]
    assert _rates(Plateau(0.1, **options), [-1.0, better]) == [0.1, 0.1]


def test_its_defaults_are_torchs() -> None:
    losses = [1.0] * 40
    rates = _torch_rates(losses)
    assert len(set(rates)) == 4
    np.testing.assert_allclose(_rates(Plateau(0.1), losses), rates, rtol=1e-12)


@settings(deadline=None)
@given(losses=signed, options=options, cut=st.integers(0, 60))
def test_it_goes_on_from_its_state(losses: list[float], options: dict[str, Any], cut: int) -> None:
    whole, first, second = (Plateau(cosine(0.1, 100), **options) for _ in range(3))
    expected = _rates(whole, losses)
    _rates(first, losses[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, loss in enumerate(losses[cut:], start=cut):
        second.update(loss)
        assert second(step) == expected[step]
    assert second.state_dict() == whole.state_dict()


@settings(deadline=None)
@given(losses=signed, options=options)
def test_update_says_when_it_reduces_and_asking_changes_nothing(losses: list[float], options: dict[str, Any]) -> None:
    plateau = Plateau(cosine(0.1, 100), **options)
    for loss in losses:
        scale = plateau.scale
        assert plateau.update(loss) == (plateau.scale != scale)
        state = plateau.state_dict()
        assert [plateau(step) for step in (9, 0, 9)] == [plateau(9), plateau(0), plateau(9)]
        assert plateau.state_dict() == state


def test_nan_is_a_bad_update_and_never_the_best() -> None:
    plateau = Plateau(1.0, factor=0.5, patience=1)
    assert [plateau.update(loss) for loss in (math.nan, math.nan, 3.0, math.nan, math.nan)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert (plateau.best, plateau(0)) == (3.0, 0.25)


def test_it_lowers_a_schedule_down_to_the_floor_and_raises_none() -> None:
    rate = warmup(0.1, steps=10)
    plateau = Plateau(rate, factor=0.1, patience=0, min_lr=0.03)
    assert [plateau(step) for step in range(20)] == [rate(step) for step in range(20)]
    plateau.update(1.0)
    plateau.update(1.0)
    assert [plateau(step) for step in range(20)] == [min(rate(step), 0.03) for step in range(20)]


def test_those_who_hold_it_fall_together() -> None:
    plateau = Plateau(0.1, factor=0.5, patience=0)
    half, ramped = scaled(plateau, 0.5), warmup(plateau, steps=4)
    assert (half(0), ramped(0)) == (0.05, 0.025)
    plateau.update(1.0)
    plateau.update(1.0)
    assert (half(0), ramped(0)) == (0.025, 0.0125)
    assert hash(half) == hash(scaled(plateau, 0.5))
    copied = pickle.loads(pickle.dumps(half))
    assert (copied(0), copied.schedule.state_dict()) == (0.025, plateau.state_dict())


def test_losses_may_be_tensors() -> None:
    plateau = Plateau(0.1)
    plateau.update(torch.tensor(2.0))
    plateau.update(np.float32(1.0))
    assert plateau.state_dict() == {"scale": 1.0, "best": 1.0, "bad": 0, "cooling": 0}
    assert type(plateau.best) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "fast"}, "'fast': it must be a finite number"),
        ({"factor": 1.0}, "Plateau.factor is 1.0: it must be at least 0 and below 1"),
        ({"factor": -0.1}, "Plateau.factor is -0.1"),
        ({"patience": -1}, "Plateau.patience is -1: it must be a whole number, at least 0"),
        ({"patience": 1.5}, "Plateau.patience is 1.5"),
        ({"cooldown": False}, "Plateau.cooldown is False"),
        ({"threshold": -1e-4}, "Plateau.threshold is -0.0001: it must be 0 or more"),
        ({"threshold_mode": "relative"}, "threshold_mode is 'relative': it must be 'rel' or 'abs'"),
        ({"mode": "less"}, "Plateau.mode is 'less': it must be 'min' or 'max'"),
        ({"min_lr": math.nan}, "Plateau.min_lr is nan"),
    ],
)
def test_wrong_options_are_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Plateau(**{"schedule": 0.1, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [None, "low", [1.0, 2.0], torch.zeros(2)], ids=repr)
def test_a_loss_that_is_no_number_is_refused_and_changes_nothing(loss: Any) -> None:
    plateau = Plateau(0.1)
    before = plateau.state_dict()
    with pytest.raises(InputError, match="the loss for Plateau is of type .*: give one number"):
        plateau.update(loss)
    assert plateau.state_dict() == before


@pytest.mark.parametrize("state", [{}, {"scale": 1.0}, {"scale": 1.0, "best": 1, "bad": 0, "cooling": 0, "epoch": 3}])
def test_a_state_of_another_kind_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    plateau = Plateau(0.1)
    before = plateau.state_dict()
    with pytest.raises(InputError, match="the state of Plateau has"):
        plateau.load_state_dict(state)
    assert plateau.state_dict() == before
