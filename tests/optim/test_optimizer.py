"""What stands in for `torch.optim`: torch's own class, run beside ours, says what is right."""

import copy
import inspect
import io
import json
import math
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler, swa_utils

from torch_table import optim_db
from trainwell import optim
from trainwell.errors import InputError
from trainwell.optim.plateau import Plateau
from trainwell.optim.schedules import Cosine, constant, cosine, inverse_time, linear, piecewise, then, warmup

Make = Callable[..., torch.optim.Optimizer]

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.2, "weight_decay": 0.01}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.01, "betas": (0.8, 0.99)}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "adamax": ("Adamax", {"lr": 0.01, "weight_decay": 0.01}),
    "nadam": ("NAdam", {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    "radam": ("RAdam", {"lr": 0.01, "betas": (0.7, 0.8), "weight_decay": 0.01}),
}
every_rule = pytest.mark.parametrize("rule", RULES)
both_kernels = pytest.mark.parametrize("kernel", ["reference", "auto"])
DOUBLE = {"dtype": torch.float64}


def pair(rule: str, kernel: str = "reference", **options: Any) -> tuple[Make, Make]:
    """Returns what makes our optimizer and torch's; compiling takes long, so few tests do without the reference."""
    name, given = RULES[rule]
    given = given | options
    return partial(getattr(optim, name), kernel=kernel, **given), partial(getattr(torch.optim, name), **given)


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in shapes]


SHAPES = ((3, 4), (5,), ())


def train(optimizer: torch.optim.Optimizer, parameters: list[Any], steps: int, start: int = 0) -> None:
    """Takes steps with gradients that are a function of step and parameter."""
    for step in range(start, start + steps):
        for i, p in enumerate(parameters):
            g = torch.Generator().manual_seed(100 * step + i)
            p.grad = (torch.randn(p.shape, generator=g, dtype=torch.float64) + 0.1 * p.detach().double()).to(p.dtype)
        optimizer.step()


def assert_same(ours: Any, theirs: Any, rule: str = "") -> None:
    """Compares parameters to the precision that is promised for their dtype."""
    double = 1e-8 if rule == "nadam" else 1e-12  # torch has a product of its momenta in float32
    for a, b in zip(ours, theirs, strict=True):
        single = a.dtype in (torch.float32, torch.complex64)
        torch.testing.assert_close(a, b, rtol=1e-5 if single else double, atol=1e-6 if single else double)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state as it comes back from a file that may hold no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


# ---------------------------------------------------------------------------- the signature


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"])
def test_has_the_arguments_and_defaults_of_torch(name):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    ours = inspect.signature(getattr(optim, name)).parameters
    assert {k: p.default for k, p in theirs.items()} == {k: ours[k].default for k in theirs}
    by_place = [k for k, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD and k not in SWITCHES]
    assert list(ours)[: len(by_place)] == by_place


SWITCHES = {"foreach", "maximize", "capturable", "differentiable", "fused"}  # given by name alone


# ---------------------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 3])
@every_rule
def test_state_goes_to_torch_and_comes_back_in_the_middle_of_a_run(rule, steps, dtype):
    ours, theirs = pair(rule)
    there = weights(*SHAPES, dtype=dtype)
    reference = theirs(there)
    here = weights(*SHAPES, dtype=dtype)
    optimizer, places = ours(here), [theirs, ours, theirs]
    train(reference, there, steps)
    train(optimizer, here, steps)
    for k, make in enumerate(places, 1):
        state = saved(optimizer.state_dict())
        optimizer = make(here)
        optimizer.load_state_dict(state)
        for target, start in ((reference, there), (optimizer, here)):
            train(target, start, 3, start=steps + 3 * k)
    assert_same(here, there, rule)


@pytest.mark.parametrize("rule", ["adam", "nadam"])
def test_pairs_may_have_been_lists(rule):
    ours, theirs = pair(rule)
    here, there = weights(*SHAPES), weights(*SHAPES)
    a, b = ours(here), theirs(there)
    train(a, here, 2), train(b, there, 2)
    state = a.state_dict()
    state["param_groups"] = json.loads(json.dumps(state["param_groups"]))
    a = ours(here)
    a.load_state_dict(state)
    train(a, here, 2, 2), train(b, there, 2, 2)
    assert_same(here, there, rule)


def test_betas_may_be_given_as_a_list():
    here, there = weights((2, 3)), weights((2, 3))
    a, b = optim.Adam(here, betas=[0.5, 0.9], kernel="reference"), torch.optim.Adam(there, betas=(0.5, 0.9))
    train(a, here, 3), train(b, there, 3)
    assert_same(here, there)


def test_state_is_that_of_torch_by_names_shapes_and_kinds():
    for rule in RULES:
        ours, theirs = pair(rule)
        here, there = weights(*SHAPES), weights(*SHAPES)
        a, b = ours(here), theirs(there)
        train(a, here, 2), train(b, there, 2)
        mine, yours = a.state_dict()["state"], b.state_dict()["state"]
        assert {i: set(v) for i, v in mine.items()} - {i: {"step"} for i in mine}.keys() == set()
        for i, values in yours.items():
            assert set(values) == set(mine[i]), rule
            for name, value in values.items():
                assert (mine[i][name].shape, mine[i][name].device) == (value.shape, value.device)
                torch.testing.assert_close(mine[i][name], value, check_dtype=name == "step")


def test_state_survives_the_optimizer_that_it_was_taken_from():
    here = weights((3,))
    a = optim.NAdam(here, kernel="reference")
    train(a, here, 2)
    state = a.state_dict()
    steps, product = state["state"][0]["step"].item(), state["state"][0]["mu_product"].item()
    train(a, here, 2)
    assert (state["state"][0]["step"].item(), state["state"][0]["mu_product"].item()) == (steps, product)


def test_state_saved_with_parameters_called_otherwise_loads_by_place():
    here, there = weights(*SHAPES), weights(*SHAPES)
    a, b = optim.Adam(here, kernel="reference"), torch.optim.Adam(there)
    train(b, there, 3), train(a, here, 3)
    state = b.state_dict()
    state["state"] = {f"layer.{i}": v for i, v in state["state"].items()}
    state["param_groups"][0]["params"] = [f"layer.{i}" for i in state["param_groups"][0]["params"]]
    a = optim.Adam(here, kernel="reference")
    a.load_state_dict(copy.deepcopy(state))
    train(a, here, 2), train(b, there, 2)
    assert_same(here, there)


def test_adamw_stays_adamw_whatever_it_loads():
    here, there = weights((4,)), weights((4,))
    state = torch.optim.Adam(weights((4,)), lr=0.1, weight_decay=0.5).state_dict()
    a, b = optim.AdamW(here, kernel="reference"), torch.optim.AdamW(there)
    a.load_state_dict(state), b.load_state_dict(state)
    train(a, here, 3), train(b, there, 3)
    assert_same(here, there)


def test_state_of_torch_before_it_had_an_option():
    there = weights((4,))
    b = torch.optim.AdamW(there)
    train(b, there, 2)
    state = copy.deepcopy(b.state_dict())
    for name in ("decoupled_weight_decay", "fused", "maximize"):
        del state["param_groups"][0][name]
    state["state"][0]["step"] = 2  # it was a plain number once
    here = [nn.Parameter(p.detach().clone()) for p in there]
    a = optim.AdamW(here, kernel="reference")
    a.load_state_dict(copy.deepcopy(state))
    train(a, here, 2), train(b, there, 2)
    assert_same(here, there)


@pytest.mark.parametrize("groups", [1, 3])
def test_other_groups_are_refused_as_torch_does(groups):
    state = torch.optim.SGD([{"params": [p]} for p in weights((2,), (2,))]).state_dict()
    target = optim.SGD([{"params": [p]} for p in weights(*[(2,)] * groups)])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        target.load_state_dict(state)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optim.SGD(weights((2,))).load_state_dict(torch.optim.SGD(weights((2,), (2,))).state_dict())


# ---------------------------------------------------------------------------- names


def named(order: list[int]) -> list[tuple[str, nn.Parameter]]:
    parameters = weights((2, 3), (4,), (3,), (2,))
    return [(f"p{i}", parameters[i]) for i in order]


def grow(optimizer: torch.optim.Optimizer, parameters: dict[str, Any], steps: int, start: int = 0) -> dict[str, Any]:
    train(optimizer, [parameters[name] for name in sorted(parameters)], steps, start)
    return parameters


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_state_is_matched_by_name_whatever_the_order_and_the_groups(order, cut):
    reference = named([0, 1, 2, 3])
    b = torch.optim.Adam(reference, lr=0.01)
    grow(b, dict(reference), 3)
    state = saved(b.state_dict())
    here = [(name, nn.Parameter(dict(reference)[name].detach().clone())) for name, _ in named(order)]
    groups = [{"params": part} for part in (here[:cut], here[cut:]) if part]
    a = optim.Adam(groups, lr=0.5, kernel="reference")
    a.load_state_dict(state)
    assert all(group["lr"] == 0.01 for group in a.param_groups)
    theirs, ours = grow(b, dict(reference), 3, 3), grow(a, dict(here), 3, 3)
    assert_same([ours[k] for k in sorted(ours)], [theirs[k] for k in sorted(theirs)])


@pytest.mark.parametrize(
    ("order", "message"), [([0, 1, 2], r"'p3'$"), ([0, 1, 2, 3], "nothing for 'p2', 'p3'|not here: 'p3'")]
)
def test_missing_and_surplus_names_are_refused_in_one_line(order, message):
    state = optim.SGD(named([0, 1] if len(order) == 4 else [0, 1, 2, 3])).state_dict()
    with pytest.raises(InputError, match=message) as error:
        optim.SGD(named(order)).load_state_dict(state)
    assert "\n" not in str(error.value)


def test_names_of_two_models_may_be_the_same_where_they_are_in_the_same_places():
    def groups(seed):
        return [{"params": list(zip(["w", "b"], weights((2,), (2,), seed=seed + k), strict=True))} for k in (0, 1)]

    reference, here = groups(0), groups(0)
    b, a = torch.optim.Adam(reference), optim.Adam(here, kernel="reference")
    there = [p for group in b.param_groups for p in group["params"]]
    train(b, there, 3)
    ours = [p for group in a.param_groups for p in group["params"]]
    train(a, ours, 3)
    a = optim.Adam([{"params": list(zip(["w", "b"], ours[k : k + 2], strict=True))} for k in (0, 2)],
                   kernel="reference")  # fmt: skip
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    train(a, ours, 2), train(b, there, 2)
    assert_same(ours, there)
    other = optim.Adam([("w", ours[0]), ("w", ours[1]), ("b", ours[2]), ("b", ours[3])])
    with pytest.raises(InputError, match="twice: 'b', 'w'"):
        other.load_state_dict(b.state_dict())


def test_state_without_names_is_matched_by_place():
    there = weights((2, 3), (4,))
    b = torch.optim.Adam(there)
    train(b, there, 2)
    here = [nn.Parameter(p.detach().clone()) for p in there]
    a = optim.Adam([("x", here[0]), ("y", here[1])], kernel="reference")
    a.load_state_dict(saved(b.state_dict()))
    assert a.param_groups[0]["param_names"] == ["x", "y"]
    train(a, here, 2), train(b, there, 2)
    assert_same(here, there)


# ---------------------------------------------------------------------------- schedules

NESTED = warmup(then(cosine(0.1, steps=6, final=0.02), inverse_time(0.02, rate=0.3), 6), steps=3)


def test_nested_schedule_resumed_from_the_state_alone_is_the_same_to_the_bit():
    whole, here = weights(*SHAPES), weights(*SHAPES)
    make = partial(optim.Adam, lr=NESTED, betas=(linear(0.5, 8, 0.9), 0.999), weight_decay=linear(0.1, 5),
                   kernel="reference")  # fmt: skip
    train(make(whole), whole, 14)
    a = make(here)
    for start in range(14):
        train(a, here, 1, start)
        state = saved(a.state_dict())
        a = make(here)
        a.load_state_dict(state)
    assert_equal(here, whole)


@pytest.mark.parametrize(
    ("rule", "name", "schedule"),
    [
        ("sgd", "lr", cosine(0.1, 5)),
        ("momentum", "momentum", linear(0.9, 5, 0.5)),
        ("momentum", "dampening", linear(0.0, 5, 0.5)),
        ("adamw", "weight_decay", piecewise(0.1, {3: 0.5})),
        ("adam", "eps", linear(1e-2, 5, 1e-8)),
        ("rmsprop", "alpha", linear(0.9, 5, 0.99)),
        ("adagrad", "lr_decay", lambda step: 0.1 * np.cos(0.1 * step)),
        ("sgd", "momentum", lambda step: min(0.3 * step, 0.9)),
    ],
)
def test_any_hyper_parameter_takes_a_schedule(rule, name, schedule):
    (ours, theirs), (here, there) = pair(rule), (weights(*SHAPES), weights(*SHAPES))
    a, b = ours(here, **{name: schedule}), theirs(there, **{name: float(schedule(0))})
    for step in range(6):
        b.param_groups[0][name] = float(schedule(step))
        train(a, here, 1, step), train(b, there, 1, step)
        assert a.param_groups[0][name] == schedule(step)
    assert_same(here, there)
    assert type(saved(a.state_dict())["param_groups"][0][name]) is float


def test_half_a_pair_takes_a_schedule():
    rise, (here, there) = linear(0.5, 5, 0.9), (weights((4,)), weights((4,)))
    a, b = optim.Adam(here, betas=(rise, 0.999), kernel="reference"), torch.optim.Adam(there)
    for step in range(6):
        b.param_groups[0]["betas"] = (rise(step), 0.999)
        train(a, here, 1, step), train(b, there, 1, step)
    assert a.param_groups[0]["betas"] == (rise(5), 0.999)
    assert_same(here, there)


def test_groups_have_schedules_of_their_own_and_a_late_group_gets_the_step():
    first, second, late = cosine(0.1, 10), linear(0.2, 10), linear(1.0, 10)
    here = weights((3,), (3,), (3,))
    a = optim.SGD([{"params": here[:1]}, {"params": here[1:2], "lr": second}], lr=first)
    train(a, here[:2], 4)
    a.add_param_group({"params": here[2:], "lr": late})
    assert a.param_groups[2]["lr"] == late(4)
    train(a, here, 1)
    assert [group["lr"] for group in a.param_groups] == [first(4), second(4), late(4)]


def test_a_number_written_by_hand_counts_until_it_is_written_back():
    here, rate = weights((3,)), linear(1.0, 10)
    a = optim.SGD(here, lr=rate)
    train(a, here, 2)
    scheduled, a.param_groups[0]["lr"] = a.param_groups[0]["lr"], 0.25
    before = here[0].detach().clone()
    here[0].grad = torch.ones_like(here[0])
    a.step()
    torch.testing.assert_close(here[0].detach(), before - 0.25)
    a.param_groups[0]["lr"] = scheduled
    a.step()
    assert a.param_groups[0]["lr"] == rate(3)


def test_a_number_that_is_to_stay_is_written_as_a_constant():
    here = weights((3,))
    a = optim.SGD(here, lr=(rate := piecewise(0.5, {2: 0.1})), kernel="reference")
    train(a, here, 1)
    a.param_groups[0]["lr"] = 0.5  # what the schedule has anyway
    train(a, here, 2)
    assert a.param_groups[0]["lr"] == rate(2) == 0.05
    a.param_groups[0]["lr"] = constant(0.5)
    train(a, here, 2)
    a.load_state_dict(a.state_dict())
    train(a, here, 1)
    assert a.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", cosine(0.1, 10)),
        ("weight_decay", linear(0.3, 10)),
        ("betas", (linear(0.5, 10, 0.9), 0.99)),
        ("betas", [0.5, 0.9]),
        ("lr", [0.1, cosine(0.2, 10)]),
    ],
)
@pytest.mark.parametrize("before", [{}, {"lr": linear(0.3, 10), "betas": (0.8, linear(0.5, 10, 0.9))}])
def test_what_is_written_into_a_group_is_taken_as_what_is_given_at_the_start(name, value, before):
    here, there = weights((2, 3)), weights((2, 3))
    a = optim.AdamW(here, **before, kernel="reference")
    a.param_groups[0][name] = value
    b = optim.AdamW(there, **(before | {name: value}), kernel="reference")
    train(a, here, 4), train(b, there, 4)
    assert_equal(here, there)
    assert a.param_groups[0][name] == b.param_groups[0][name]
    untouched = weights((2, 3))
    train(optim.AdamW(untouched, **before, kernel="reference"), untouched, 4)
    assert not torch.equal(here[0], untouched[0])


def test_a_schedule_written_in_the_middle_stands_at_the_step_of_the_optimizer():
    here, rate = weights((3,)), cosine(0.1, 10)
    a = optim.SGD(here, lr=0.1, kernel="reference")
    train(a, here, 4)
    a.param_groups[0]["lr"] = rate
    train(a, here, 2)
    assert a.param_groups[0]["lr"] == rate(5)


def test_groups_given_to_two_optimizers_keep_their_schedules_in_both():
    rate, model = warmup(0.1, steps=10), nn.Linear(3, 3)
    groups = [{"params": model.parameters(), "weight_decay": linear(0.1, 10)}]
    first, second = optim.AdamW(groups, lr=rate), optim.SGD(groups, lr=0.5)
    for optimizer, decay in ((second, linear(0.1, 10)), (first, linear(0.1, 10))):
        assert len(optimizer.param_groups[0]["params"]) == 2  # though an iterator is gone through once
        train(optimizer, list(model.parameters()), 5)
        assert optimizer.param_groups[0]["weight_decay"] == decay(4)
    assert (first.param_groups[0]["lr"], second.param_groups[0]["lr"]) == (rate(4), 0.5)
    assert groups[0].keys() == {"params", "weight_decay"}


def test_a_plateau_stays_the_one_that_is_told_the_losses():
    here, plateau = weights((3,)), Plateau(0.1, patience=0)
    a = optim.SGD(here, lr=plateau)
    a.load_state_dict(a.state_dict())
    plateau.update(1.0), plateau.update(2.0)
    train(a, here, 1)
    assert a.param_groups[0]["lr"] == pytest.approx(0.01)


def test_the_state_holds_no_schedule():
    state = optim.SGD(weights((2,)), lr=lambda step: 0.1).state_dict()
    assert state["param_groups"][0]["schedules"] is None
    assert saved(state)["param_groups"][0]["lr"] == 0.1


def test_a_scheduler_on_a_rate_with_a_schedule_is_refused_before_anything_moves():
    here = weights((3,), (3,))
    a = optim.SGD([{"params": here[:1]}, {"params": here[1:], "lr": cosine(0.1, 5)}], lr=0.1)
    lr_scheduler.StepLR(a, 1)
    with pytest.raises(InputError, match="lr has a schedule of its own") as error:
        train(a, here, 1)
    assert "\n" not in str(error.value)
    assert_equal(here, weights((3,), (3,)))


def test_a_run_with_a_scheduler_goes_on_with_a_schedule():
    here = weights((3,))
    b = torch.optim.SGD(here, lr=0.1, momentum=0.9)
    lr_scheduler.StepLR(b, 1)
    train(b, here, 2)
    a = optim.SGD(here, lr=(rate := cosine(0.1, 5)), momentum=0.9, kernel="reference")
    a.load_state_dict(b.state_dict())
    train(a, here, 1)
    assert a.param_groups[0]["lr"] == rate(0)  # torch's SGD does not say how many steps it took
    for group in a.param_groups:
        group["steps"] = 4
    train(a, here, 1)
    assert a.param_groups[0]["lr"] == rate(4)  # but whoever loads it may


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adamw", "adagrad"])
def test_distributed_checkpoints(rule, flat):
    name, given = RULES[rule]
    rate = cosine(0.1, steps=20)
    make = partial(getattr(optim, name), **(given | {"lr": rate}), kernel="reference")

    def learn(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((1, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    a = make(model.parameters())
    learn(model, a, 3)
    steps, copied = a.param_groups[0]["steps"], copy.deepcopy(model)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = copy.deepcopy(get_optimizer_state_dict(model, a, options=options))
    assert flat == ("param_groups" not in state)
    b = make(copied.parameters())
    set_optimizer_state_dict(copied, b, saved(state), options=options)
    assert (a.param_groups[0]["steps"], b.param_groups[0]["steps"]) == (steps, steps) == (3, 3)
    assert_equal(copied.parameters(), model.parameters())
    learn(model, a, 3), learn(copied, b, 3)
    assert_equal(copied.parameters(), model.parameters())


# ---------------------------------------------------------------------------- torch.optim.lr_scheduler

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 12),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "swa": lambda o: swa_utils.SWALR(o, 0.02, 3),
}


@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_of_torch(scheduler, rule, rate):
    if rate == "tensor" and scheduler == "sequential":
        rate = "number"  # torch's own takes no tensor
    ours, theirs = pair(rule)
    results = []
    for make in (ours, theirs):
        parameters = weights((3,), (2,))
        rates_given = [torch.tensor(x, **DOUBLE) if rate == "tensor" else x for x in (0.1, 0.2)]
        groups = [{"params": [p], "lr": x} for p, x in zip(parameters, rates_given, strict=True)]
        optimizer = make(groups)
        control, rates = SCHEDULERS[scheduler](optimizer), []
        for step in range(10):
            train(optimizer, parameters, 1, step)
            control.step(1.0) if scheduler == "plateau" else control.step()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if step == 4:  # both are saved, and go on in new ones
                states = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(control.state_dict())
                optimizer = make([{"params": [p]} for p in parameters])
                control = SCHEDULERS[scheduler](optimizer)
                optimizer.load_state_dict(states[0]), control.load_state_dict(states[1])
        results.append((parameters, rates))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


# ---------------------------------------------------------------------------- what torch lets one do to an optimizer


def beside(rule: str, act: Callable[[torch.optim.Optimizer, list[Any]], None], kernel: str = "auto", **given: Any):
    """Trains, acts and trains on, with our optimizer and with torch's."""
    results = []
    for make in pair(rule, kernel, **given):
        parameters = weights((3, 4), (5,), (2, 3))
        optimizer = make(parameters)
        train(optimizer, parameters, 3)
        act(optimizer, parameters)
        train(optimizer, parameters, 3, 3)
        results.append(parameters)
    assert_same(*results)


def _fresh_state(optimizer, parameters):
    optimizer.state = defaultdict(dict)


def _clear_state(optimizer, parameters):
    optimizer.state.clear()


def _empty_one(optimizer, parameters):
    optimizer.state[parameters[1]] = {}


def _replace(optimizer, parameters):
    for values in optimizer.state.values():
        for name in values:
            if name != "step":
                values[name] = torch.full_like(values[name], 0.5)


def _replace_data(optimizer, parameters):
    for values in optimizer.state.values():
        for name in values:
            if name != "step":
                values[name].data = torch.full_like(values[name], 0.5)


def _zero(optimizer, parameters):
    for values in optimizer.state.values():
        for name in values:
            if name != "step":
                values[name].zero_()


def _set_a_step(optimizer, parameters):
    for values in list(optimizer.state.values())[:1]:
        if "step" in values:
            values["step"].fill_(20)


def _put_a_step(optimizer, parameters):
    for values in optimizer.state.values():
        if "step" in values:
            values["step"] = torch.tensor(20.0)


def _move(optimizer, parameters):
    for p in parameters:
        p.data = p.data.clone() * 2


def _change_layout(optimizer, parameters):
    parameters[0].data = parameters[0].data.t().contiguous().t()


def _scale_in_place(optimizer, parameters):
    with torch.no_grad():
        for p in parameters:
            p.mul_(0.5)


def _freeze_all_but_one(optimizer, parameters):
    for step in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.ones_like(p) if i == step else None
        optimizer.step()


def _change_options(optimizer, parameters):
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.param_groups[0]["weight_decay"] = 0.3
    optimizer.param_groups[0]["maximize"] = True


def _add_group(optimizer, parameters):
    parameters += weights((2, 2), seed=1)
    optimizer.add_param_group({"params": parameters[-1:], "lr": 0.03, "weight_decay": 0.2})


def _reload(optimizer, parameters):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _drop_group_and_return(optimizer, parameters):
    optimizer.param_groups = [dict(optimizer.param_groups[0])]


def _average_group(optimizer, parameters):
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][1:]


ACTS = [_fresh_state, _clear_state, _empty_one, _replace, _replace_data, _zero, _set_a_step, _put_a_step, _move,
        _change_layout, _scale_in_place, _freeze_all_but_one, _change_options, _add_group, _reload,
        _drop_group_and_return, _average_group]  # fmt: skip


@both_kernels
@pytest.mark.parametrize("rule", ["momentum", "adam"])
@pytest.mark.parametrize("act", ACTS)
def test_what_is_done_to_a_running_optimizer_counts_as_with_torch(act, rule, kernel):
    beside(rule, act, kernel)


@both_kernels
def test_a_parameter_that_shrinks_in_place_is_refused_or_stepped_but_never_overrun(kernel):
    whole = torch.ones(10, **DOUBLE)
    p = nn.Parameter(whole)
    a = optim.Adam([p], kernel=kernel)
    train(a, [p], 2)
    p.data = p.data[:5]
    rest = whole[5:].clone()
    p.grad = torch.ones_like(p)
    with pytest.raises((RuntimeError, InputError)):
        a.step()
    assert torch.equal(whole[5:], rest)


@every_rule
def test_another_precision_in_the_middle_as_with_torch(rule):
    results = []
    for make in pair(rule):
        parameters = weights((3, 4), (5,), dtype=torch.float32)
        optimizer = make(parameters)
        train(optimizer, parameters, 2)
        for p in parameters:
            p.data, p.grad = p.data.double(), None
        try:
            train(optimizer, parameters, 2, 2)
        except RuntimeError:  # torch refuses states of another dtype in some rules
            results.append(None)
        else:
            results.append(parameters)
    if results[1] is not None:
        for a, b in zip(results[0], results[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@both_kernels
def test_layouts_of_parameters_and_gradients(kernel):
    def make_parameters():
        g = torch.Generator().manual_seed(0)
        image = torch.randn(2, 3, 4, 5, generator=g, **DOUBLE)
        return [
            nn.Parameter(image.clone().to(memory_format=torch.channels_last)),
            nn.Parameter(image.clone()),
            nn.Parameter(torch.randn(4, 6, generator=g, **DOUBLE).t()),
            nn.Parameter(torch.randn(4, 6, generator=g, **DOUBLE)[:, ::2]),
            nn.Parameter(torch.randn(4, 6, generator=g, **DOUBLE)[:, :3]),
            nn.Parameter(torch.zeros(0, 3, **DOUBLE)),
            nn.Parameter(torch.tensor(2.0, **DOUBLE)),
        ]

    results = []
    for make in pair("adam", kernel):
        parameters = make_parameters()
        optimizer = make(parameters)
        for step in range(5):
            for p in parameters:
                g = torch.Generator().manual_seed(step)
                grad = torch.randn(p.shape, generator=g, **DOUBLE)
                if step == 2 and p.ndim == 4:
                    grad = grad.to(memory_format=torch.channels_last)
                if step == 3 and p.ndim == 2:
                    grad = grad.t().contiguous().t()
                if step == 4:
                    grad = torch.tensor(0.5, **DOUBLE).expand(p.shape)  # all elements in one place
                p.grad = grad
            optimizer.step()
        results.append(parameters)
    assert_same(*results)


@both_kernels
def test_gradients_that_are_stored_with_the_other_sign(kernel):
    results = []
    for make in pair("adam", kernel):
        (p,) = weights((4,))
        optimizer = make([p])
        for step in range(3):
            p.grad = torch.arange(1.0, 5, **DOUBLE)
            if step:
                p.grad = torch._neg_view(p.grad)  # as the imaginary part of a conjugate is
            optimizer.step()
        results.append([p])
    assert_same(*results)


def test_conjugate_gradients_are_read_as_what_they_are_or_refused():
    values = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)
    results = []
    for conjugate in (False, True):
        p = nn.Parameter(torch.ones(2, dtype=torch.complex128))
        optimizer = optim.SGD([p], lr=0.1)
        p.grad = values.clone()
        optimizer.step()
        p.grad = values.conj() if conjugate else values.conj().resolve_conj()
        try:
            optimizer.step()
        except RuntimeError:  # as torch's
            continue
        results.append([p])
    assert len(results) == 1 or torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_overlapping_parameters_are_refused_as_with_torch(kernel):
    for make in pair("adam", kernel):
        p = nn.Parameter(torch.zeros(1, **DOUBLE).expand(3))
        p.grad = torch.ones(3, **DOUBLE)
        with pytest.raises(RuntimeError, match="single memory location"):
            make([p]).step()


@every_rule
def test_complex_parameters(rule):
    results = []
    for make in pair(rule):
        g = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3, generator=g, dtype=torch.complex128)) for _ in range(2)]
        optimizer = make(parameters)
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(3, generator=torch.Generator().manual_seed(step), dtype=p.dtype)
            optimizer.step()
        results.append(parameters)
    assert_same(*results, rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_rule
def test_half_precision_is_close_to_torch(rule, dtype):
    results = []
    for make in pair(rule, eps=1e-3) if "eps" in inspect.signature(pair(rule)[0]).parameters else pair(rule):
        parameters = weights((20,), (3, 4), dtype=dtype)
        train(make(parameters), parameters, 5)
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("size", [300.0, 1000.0])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "NAdam"])
def test_large_gradients_in_float16_are_those_of_torch_in_float32(name, size):
    results = []
    for make, dtype in ((getattr(optim, name), torch.float16), (getattr(torch.optim, name), torch.float32)):
        p = nn.Parameter(torch.ones(3, dtype=dtype))
        optimizer = make([p], lr=0.01)
        for _ in range(5):
            p.grad = torch.tensor([size, -size, 3.0], dtype=dtype)
            optimizer.step()
        results.append(p.detach().float())
        assert all(x.dtype == dtype for k, x in optimizer.state[p].items() if k not in ("step", "mu_product"))
    assert (results[1] - 1).abs().min() > 0.03
    torch.testing.assert_close(*results, rtol=0, atol=3e-3)  # each step rounds by up to half of 2**-10


@both_kernels
@every_rule
def test_a_number_whose_squared_gradient_overflows_rests_as_torchs_does(rule, kernel):
    results = []
    for make in pair(rule, kernel):
        p = nn.Parameter(torch.ones(3))
        optimizer = make([p])
        for size in (1.0, 1e21, 1.0, 1.0):
            p.grad = torch.tensor([1.0, size, -1.0])
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)
    assert results[0][[0, 2]].isfinite().all()


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_a_large_sparse_gradient_in_float16_takes_its_step():
    p = nn.Parameter(torch.ones(3, dtype=torch.float16))
    p.grad = torch.tensor([0.0, 300.0, 0.0], dtype=torch.float16).to_sparse()
    optim.Adagrad([p], lr=0.5).step()
    assert p.tolist() == [1.0, 0.5, 1.0]


@every_rule
def test_meta_tensors_step_without_a_crash(rule):
    p = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = pair(rule)[0]([p])
    for _ in range(2):
        p.grad = torch.ones(3, device="meta")
        optimizer.step()
    assert p.device.type == "meta"


SPARSE = [
    ("SGD", {}), ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "maximize": True}), ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize(("name", "given"), SPARSE)
def test_sparse_gradients(name, given):
    results = []
    for make in (getattr(optim, name), getattr(torch.optim, name)):
        torch.manual_seed(0)
        model = nn.Embedding(6, 3, sparse=True, **DOUBLE)
        optimizer = make(model.parameters(), lr=0.1, **given)
        for step in range(5):
            optimizer.zero_grad()
            rows = torch.randint(0, 6, (5,), generator=torch.Generator().manual_seed(step))
            (model(rows) ** 2).sum().backward()
            optimizer.step()
        results.append((optimizer, model))
    assert_same(results[0][1].parameters(), results[1][1].parameters())
    results[0][0].load_state_dict(copy.deepcopy(results[1][0].state_dict()))  # torch's momentum is sparse
    for optimizer, model in results:
        for _ in range(2):
            optimizer.zero_grad()
            (model(torch.tensor([1, 2, 2])) ** 2).sum().backward()
            optimizer.step()
    assert_same(results[0][1].parameters(), results[1][1].parameters())


@pytest.mark.parametrize("rule", ["rmsprop", "adam", "adamw", "adamax", "nadam", "radam"])
def test_sparse_gradients_are_refused_where_they_have_no_meaning(rule):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.eye(3)[0].to_sparse()
    with pytest.raises(InputError, match="sparse"):
        pair(rule)[0]([p]).step()


def test_adagrad_shares_its_memory_between_processes_as_torch_does():
    results = []
    for make in pair("adagrad", "auto"):
        parameters = weights(*SHAPES)
        optimizer = make(parameters)
        for step in range(0, 4, 2):
            train(optimizer, parameters, 2, step)
            optimizer.share_memory()
            assert all(optimizer.state[p]["sum"].is_shared() for p in parameters)
        train(optimizer, parameters, 2, 4)
        results.append(parameters)
    assert_same(*results)


# ---------------------------------------------------------------------------- around the step


def test_a_closure_has_gradients_and_its_loss_comes_back():
    results = []
    for make in pair("momentum"):
        (p,) = weights((3,))
        optimizer = make([p])

        def closure(p=p, optimizer=optimizer):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure).item() for _ in range(4)]
        results.append(([p], losses))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1])
    assert optim.SGD(weights((2,))).step() is None


def test_hooks_of_the_step_and_of_the_state():
    logs = []
    for make in pair("adam"):
        (p,), log = weights((3,)), []
        a = make([("p", p)])
        a.register_step_pre_hook(lambda o, args, kwargs, log=log: log.append(("pre", len(o.state))))
        a.register_step_post_hook(lambda o, args, kwargs, log=log: log.append(("post", len(o.state))))
        a.register_state_dict_pre_hook(lambda o, log=log: log.append("saving"))
        a.register_state_dict_post_hook(
            lambda o, state, log=log: log.append(sorted(state["state"][0])) or {**state, "more": 7}
        )
        a.register_load_state_dict_pre_hook(lambda o, state, log=log: log.append(state["more"]))
        a.register_load_state_dict_post_hook(lambda o, log=log, p=p: log.append(float(o.state[p]["step"])))
        train(a, [p], 2)
        state = a.state_dict()
        assert state["param_groups"][0].get("schedules") is None
        a.load_state_dict(state)
        train(a, [p], 1)
        logs.append(log)
    assert logs[0] == logs[1]


def test_a_hook_may_rename_what_is_loaded():
    results = []
    for make in pair("adam"):
        (p,) = weights((3,))
        old = torch.optim.Adam([("old", p)])
        train(old, [p], 2)
        a = make([("new", p)])

        def rename(o, state):
            groups = [group | {"param_names": ["new"]} for group in state["param_groups"]]
            return {**state, "param_groups": groups}

        a.register_load_state_dict_pre_hook(rename)
        a.load_state_dict(old.state_dict())
        train(a, [p], 2, 2)
        results.append([p])
    assert_same(*results)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("foreach", [None, True])
def test_zero_grad(set_to_none, foreach):
    (p,) = weights((3,))
    a = optim.SGD([p], foreach=foreach)
    p.grad = torch.ones_like(p)
    a.zero_grad(set_to_none=set_to_none)
    assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros_like(p))


@pytest.mark.filterwarnings("ignore")
def test_a_gradient_scaler_leaves_out_the_step_with_an_overflow():
    results = []
    for make in pair("adam"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(5):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum() * (math.inf if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append((list(model.parameters()), scaler.get_scale()))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 2.0**9


@every_rule
def test_maximize(rule):
    results = []
    for make in pair(rule, maximize=True):
        parameters = weights(*SHAPES)
        train(make(parameters), parameters, 4)
        results.append(parameters)
    assert_same(*results, rule)


@every_rule
def test_autograd_goes_through_the_step(rule):
    def steps(h, w):
        p = w.clone()
        optimizer = pair(rule, differentiable=True)[0]([p])
        for step in range(3):
            p.grad = h * p.clone() * (step + 1)
            optimizer.step()
        return p

    h, w = torch.linspace(1, 2, 3, **DOUBLE).requires_grad_(), torch.linspace(0.5, 1, 3, **DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(steps, (h, w))  # torch's own goes through one step, but not through all of these


def test_a_gradient_with_respect_to_the_rate_is_refused():
    (p,) = weights((3,))
    with pytest.raises(InputError, match="lr requires a gradient"):
        optim.SGD([p], lr=torch.tensor(0.1, requires_grad=True), differentiable=True)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True}])
@pytest.mark.parametrize("rule", ["momentum", "adam", "rmsprop"])
def test_flags_of_torch_change_no_bit(rule, flags):
    flags = {k: v for k, v in flags.items() if k in inspect.signature(pair(rule)[0]).parameters}
    results = []
    for given in ({}, flags):
        parameters = weights(*SHAPES)
        train(pair(rule, **given)[0](parameters), parameters, 3)
        results.append(parameters)
    assert_equal(*results)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@both_kernels
def test_copies_go_on_by_themselves(way, kernel):
    parameters = weights((3, 4), (5,))
    a = pair("adam", kernel, lr=Cosine(0.1, 10))[0](parameters)
    train(a, parameters, 3)
    other, b = way((parameters, a))
    train(a, parameters, 3, 3)
    after = [p.detach().clone() for p in parameters]
    train(b, other, 3, 3)
    assert_equal(other, after)
    assert_equal(parameters, after)
    assert b.param_groups[0]["lr"] == a.param_groups[0]["lr"]
    assert b.kernel == kernel


def test_a_pickled_optimizer_goes_on_in_another_process(tmp_path):
    parameters = weights((3,))
    a = optim.Adam(parameters, lr=cosine(0.1, 10), kernel="reference")
    train(a, parameters, 3)
    (tmp_path / "optimizer").write_bytes(pickle.dumps(a))
    text = (
        "import pickle, sys, torch\n"
        "a = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "(p,) = a.param_groups[0]['params']\n"
        "p.grad = torch.ones_like(p)\n"
        "a.step()\n"
        "print(*[x.hex() for x in p.tolist()])"
    )
    told = subprocess.run(
        [sys.executable, "-c", text, tmp_path / "optimizer"], capture_output=True, text=True, check=True
    )
    parameters[0].grad = torch.ones_like(parameters[0])
    a.step()
    assert told.stdout.split() == [x.hex() for x in parameters[0].tolist()]


def test_averages_of_weights():
    results = []
    for make in pair("momentum"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2, **DOUBLE)
        average, optimizer = swa_utils.AveragedModel(model), make(model.parameters())
        for step in range(5):
            train(optimizer, list(model.parameters()), 1, step)
            average.update_parameters(model)
        results.append(list(average.parameters()))
    assert_same(*results)


def test_parameters_shared_between_modules():
    results = []
    for make in pair("adam"):
        torch.manual_seed(0)
        first, second = nn.Linear(3, 3, **DOUBLE), nn.Linear(3, 3, **DOUBLE)
        second.weight = first.weight
        model = nn.Sequential(first, nn.Tanh(), second)
        optimizer = make(model.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 3, **DOUBLE)).square().sum().backward()
            optimizer.step()
        results.append(list(model.parameters()))
    assert_same(*results)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_parameter_that_is_there_twice_gets_a_warning(rule):
    (p,) = weights((3,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        pair(rule)[0]([p, p])


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_a_graph_that_needs_the_old_weights_notices_the_step(kernel):
    p = nn.Parameter(torch.ones(3, **DOUBLE))
    a = optim.SGD([p], lr=0.1, kernel=kernel)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    a.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_inference_mode(kernel):
    results = []
    for make in pair("adam", kernel):
        with torch.inference_mode():
            parameters = weights((3,))
            train(make(parameters), parameters, 3)
        results.append([p.clone() for p in parameters])
    assert_same(*results)


@pytest.mark.filterwarnings("ignore")
def test_compiled_models():
    results = []
    for make in pair("adam"):
        torch.manual_seed(0)
        model = torch.compile(nn.Linear(3, 2, **DOUBLE), backend="eager")
        optimizer = make(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3, **DOUBLE)).square().sum().backward()
            optimizer.step()
        results.append(list(model.parameters()))
    assert_same(*results)


_COMPILED = """
import torch
from trainwell import optim
from trainwell.optim.schedules import cosine

def trained(compile):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = optim.AdamW(model.parameters(), lr=cosine(0.1, 10))

    @compile
    def train_step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    losses = [float(train_step(torch.ones(8, 4) + k)) for k in range(4)]
    assert {batch.path for plan in optimizer._plans.values() for batch, _ in plan.batches} == {"numba"}
    assert optimizer.param_groups[0]["lr"] == cosine(0.1, 10)(3)
    return losses, [p.detach() for p in model.parameters()]

(losses, weights), (expected, theirs) = trained(torch.compile(backend="aot_eager")), trained(lambda step: step)
torch.testing.assert_close(losses, expected)
torch.testing.assert_close(weights, theirs)

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

net = torch.compile(torch.nn.Linear(4, 2), backend=backend)
optimizer = optim.SGD(net.parameters(), lr=0.1)
def closure():
    optimizer.zero_grad()
    loss = net(torch.ones(8, 4)).square().mean()
    loss.backward()
    return loss
optimizer.step(closure)
assert len(graphs) == 1  # a compiled model stays one in a closure
"""


def test_a_compiled_train_step_takes_the_steps_of_one_that_is_not():
    done = subprocess.run(  # on its own, as a wrong address ends the process
        [sys.executable, "-W", "ignore", "-c", _COMPILED], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_compiler_of_torch_is_not_loaded_with_the_optimizers():
    code = "import sys, trainwell.optim.rules, trainwell.optim.muon; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("rule", [optim.Adam, optim.Muon, optim.SOAP])
def test_a_step_in_a_cuda_graph_is_refused_before_anything_moves(rule, monkeypatch):
    with FakeTensorMode():  # there need not be a GPU
        p = nn.Parameter(torch.ones(2, 3, device="cuda"))
        p.grad = torch.ones(2, 3, device="cuda")
    here = weights((2, 3))
    on_gpu, on_cpu = rule([p], lr=linear(0.1, 10)), rule(here, lr=linear(0.1, 10))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputError, match="cannot go into a CUDA graph.*: capture forward and backward") as error:
        on_gpu.step(lambda: pytest.fail("the closure was called"))
    assert "\n" not in str(error.value)
    assert on_gpu.param_groups[0]["steps"] == len(on_gpu.state) == 0
    train(on_cpu, here, 2)  # which a graph holds nothing of
    assert on_cpu.param_groups[0]["steps"] == 2


def test_a_rule_may_be_subclassed_like_those_of_torch():
    class Mine(optim.Adam):
        def __init__(self, params, rate, note="x"):
            super().__init__(params, lr=rate, kernel="reference")
            self.note = note

        def step(self, closure=None):
            self.note += "!"
            return super().step(closure)

    here, there = weights((3,)), weights((3,))
    a, b = Mine(here, 0.01), torch.optim.Adam(there, lr=0.01)
    train(a, here, 3), train(b, there, 3)
    assert a.note == "x!!!"
    assert_same(here, there)


# ---------------------------------------------------------------------------- members

MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": [0.1, 0.2, 0.05]}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": [0.9, 0.0, 0.5], "weight_decay": [0.01, 0.0, 0.1]}),
    "adagrad": ("Adagrad", {"lr": [0.1, 0.2, 0.05], "lr_decay": [0.1, 0.0, 0.2], "eps": 1e-6}),
    "rmsprop": ("RMSprop", {"lr": [0.1, 0.2, 0.05], "alpha": [0.9, 0.99, 0.5], "momentum": 0.9, "centered": True}),
    "adam": ("Adam", {"lr": [0.1, 0.2, 0.05], "betas": ([0.9, 0.8, 0.5], 0.99)}),
    "adamw": ("AdamW", {"lr": 0.1, "betas": (0.9, [0.9, 0.8, 0.99]), "weight_decay": [0.1, 0.2, 0.3]}),
    "adamax": ("Adamax", {"lr": [0.1, 0.2, 0.05], "betas": ([0.9, 0.8, 0.5], [0.9, 0.99, 0.999])}),
    "nadam": ("NAdam", {"lr": [0.1, 0.2, 0.05], "betas": ([0.9, 0.8, 0.5], 0.99)}),
    "radam": ("RAdam", {"lr": [0.1, 0.2, 0.05], "betas": (0.9, [0.9, 0.99, 0.5])}),
    "lion": ("Lion", {"lr": [0.1, 0.2, 0.05], "betas": ([0.9, 0.8, 0.5], 0.99), "weight_decay": [0.1, 0.2, 0.3]}),
}


def _of(value: Any, member: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_of(x, member) for x in value)
    return value[member] if isinstance(value, list) else value


@both_kernels
@pytest.mark.parametrize("rule", MEMBERS)
def test_members_take_the_steps_that_they_would_take_alone(rule, kernel):
    name, given = MEMBERS[rule]
    make = partial(getattr(optim, name), kernel=kernel)
    stacked = weights((3, 4), (3, 2, 2), (3,))
    alone = [[nn.Parameter(p.detach()[k].clone()) for p in stacked] for k in range(3)]
    a = make(stacked, **given)
    own = [make(alone[k], **{n: _of(v, k) for n, v in given.items()}) for k in range(3)]
    for step in range(5):
        for i, p in enumerate(stacked):
            missing = step == 1 + i  # at a changing place
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i), **DOUBLE)
            p.grad = None if missing else g
            for k in range(3):
                alone[k][i].grad = None if missing else g[k].clone()
        for optimizer in (a, *own):
            optimizer.step()
    for i, p in enumerate(stacked):
        assert torch.equal(p, torch.stack([alone[k][i] for k in range(3)]))


def test_members_may_have_schedules():
    stacked, rates = weights((2, 3)), [linear(0.1, 5), cosine(0.2, 5)]
    alone = [[nn.Parameter(stacked[0].detach()[k].clone())] for k in range(2)]
    a = optim.SGD(stacked, lr=rates, kernel="reference")
    own = [optim.SGD(alone[k], lr=rates[k], kernel="reference") for k in range(2)]
    for _ in range(4):
        for p in (stacked[0], alone[0][0], alone[1][0]):
            p.grad = torch.ones_like(p)
        for optimizer in (a, *own):
            optimizer.step()
        state = saved(a.state_dict())
        a = optim.SGD(stacked, lr=rates, kernel="reference")
        a.load_state_dict(state)
    assert_equal([*stacked[0]], [p for (p,) in alone])


def test_members_of_a_group_are_its_own():
    rates, (p, q) = [0.1, 0.2], weights((2, 3), (2, 3))
    a = optim.SGD([{"params": [p]}, {"params": [q]}], lr=rates)
    a.param_groups[0]["lr"][0] = 5.0
    assert rates == a.param_groups[1]["lr"] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((4, 3), {"lr": [0.1, 0.2]}, "first dimension"),
        ((), {"lr": [0.1, 0.2]}, "first dimension"),
        ((2, 3), {"lr": [0.1, 0.2], "momentum": [0.9, 0.8, 0.7]}, r"\[2, 3\] values"),
        ((2, 3), {"lr": []}, "lr is"),
        ((2, 3), {"lr": [0.1, -0.2]}, "Invalid lr"),
    ],
)
def test_members_of_a_wrong_number_are_refused(shape, given, message):
    (p,) = weights(shape)
    p.grad = torch.ones_like(p)
    with pytest.raises(InputError, match=message):
        optim.SGD([p], **given).step()


@pytest.mark.parametrize("rates", [[0.1, 0.2, 0.3], [0.1]])
def test_members_of_a_wrong_number_are_refused_in_the_middle_too(rates):
    (p,) = weights((2, 3))
    a = optim.SGD([p], lr=[0.1, 0.2], kernel="reference")
    train(a, [p], 1)
    a.param_groups[0]["lr"] = rates
    with pytest.raises(InputError, match="first dimension"):
        train(a, [p], 1)


@pytest.mark.parametrize("before", [0.1, [0.1, 0.2]])
@pytest.mark.parametrize("after", [0.3, [0.3, 0.4]])
def test_members_may_come_and_go_by_hand(before, after):
    (p,), (q,) = weights((2, 3)), weights((2, 3))
    a = optim.Adam([p], lr=before, kernel="reference")
    rows = [nn.Parameter(row.clone()) for row in q.detach()]
    own = [optim.Adam([row], lr=_of(before, k), kernel="reference") for k, row in enumerate(rows)]
    for rate in (before, after):
        a.param_groups[0]["lr"] = rate
        p.grad = torch.ones_like(p)
        a.step()
        for k, optimizer in enumerate(own):
            optimizer.param_groups[0]["lr"] = _of(rate, k)
            rows[k].grad = torch.ones_like(rows[k])
            optimizer.step()
    assert_equal([*p], rows)


# ---------------------------------------------------------------------------- errors

OURS = ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam")
WRONG = [
    pytest.param(info, error, id=f"{info.optim_cls.__name__}-{error.optimizer_error_input.desc}".replace(" ", "_"))
    for info in optim_db
    if info.optim_cls.__name__ in OURS
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


@pytest.mark.parametrize(("info", "wrong"), WRONG)
def test_what_torch_refuses_is_refused_with_the_same_kind_of_error(info, wrong):
    given = wrong.optimizer_error_input
    parameters = [nn.Parameter(torch.ones(2))] if given.params is None else given.params
    make = getattr(optim, info.optim_cls.__name__)
    if issubclass(wrong.error_type, Warning):
        with pytest.warns(wrong.error_type, match=wrong.error_regex):
            make(parameters, **given.kwargs)
        return
    with pytest.raises(wrong.error_type) as error:
        make(parameters, **given.kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"lrr": 0.1}, TypeError, "lrr"),
        ({"kernel": "cuda"}, InputError, "kernel is 'cuda'"),
        ({"lr": "0.1"}, InputError, "lr is '0.1'"),
        ({"lr": np.float32(-1)}, InputError, "Invalid lr value"),
        ({"lr": math.nan}, InputError, "Invalid lr value"),
        ({"lr": lambda step: -1.0}, InputError, "Invalid lr value"),
        ({"momentum": -0.1}, InputError, "Invalid momentum value"),
    ],
)
def test_wrong_arguments(given, kind, message):
    with pytest.raises(kind, match=message):
        optim.SGD(weights((2,)), **given)


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        (optim.Adam, {"lr": None}, "lr is None: give a number"),
        (optim.Adam, {"eps": None}, "eps is None: give a number"),
        (optim.Adam, {"weight_decay": None}, "weight_decay is None: give a number"),
        (optim.Adam, {"lr": (0.1, 0.2)}, r"lr is \(0.1, 0.2\): give a number"),
        (optim.Adam, {"lr": [0.1, "x"]}, r"lr is \[0.1, 'x'\]: give a number"),
        (optim.Adam, {"betas": None}, "betas is None: give 2 numbers"),
        (optim.Adam, {"betas": 0.9}, "betas is 0.9: give 2 numbers"),
        (optim.Adam, {"betas": (0.9,)}, r"betas is \(0.9,\): give 2 numbers"),
        (optim.Adam, {"betas": [0.9, 0.9, 0.9]}, r"betas is \(0.9, 0.9, 0.9\): give 2 numbers"),
        (optim.Adam, {"betas": ("a", "b")}, "betas is .*: give 2 numbers"),
        (optim.Adam, {"betas": (0.9, math.nan)}, "Invalid beta parameter at index 1: nan"),
        (optim.Adam, {"betas": linear(0.9, 10)}, "betas is 0.9: give 2 numbers"),
        (optim.NAdam, {"momentum_decay": "x"}, "momentum_decay is 'x': give a number"),
        (optim.Muon, {"adamw_lr": "x"}, "adamw_lr is 'x': give a number"),
        (optim.Muon, {"adamw_betas": (0.9,)}, r"adamw_betas is \(0.9,\): give 2 numbers"),
    ],
)
def test_what_is_no_number_is_refused_at_the_start_in_one_line(rule, given, message):
    with pytest.raises(InputError, match=message) as error:
        rule(weights((2, 2)), **given)
    assert "\n" not in str(error.value)


def test_what_may_be_none_may():
    assert optim.NAdam(weights((2,)), momentum_decay=None).param_groups[0]["momentum_decay"] is None
    assert optim.Muon(weights((2, 2)), adamw_lr=None).param_groups[0]["adamw_lr"] is None

    class Mine(optim.SGD):
        lr: "float | None" = 0.1  # as from __future__ import annotations leaves it

    assert Mine(weights((2,)), lr=None).param_groups[0]["lr"] is None


LATER = [
    (optim.SGD, {"lr": lambda step: 0.1 - 0.1 * step}, "Invalid lr value: -0.1 at step 2 of its schedule"),
    (optim.SGD, {"lr": lambda step: 0.1 if step < 2 else math.nan}, "Invalid lr value: nan at step 2 of its schedule"),
    (optim.SGD, {"momentum": linear(0.1, 1, -0.1)}, "Invalid momentum value: -0.1 at step 1 of its schedule"),
    (optim.SGD, {"lr": [0.1, linear(0.1, 1, -0.1)]}, "Invalid lr value: -0.1 at step 1 of its schedule"),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "dampening": linear(0.0, 2, 0.5)}, "zero dampening"),
    (optim.Adam, {"betas": (linear(0.9, 2, 1.0), 0.999)}, "at index 0: 1.0 at step 2 of its schedule: it must be from"),
    (optim.Adam, {"betas": (0.9, lambda step: 0.9 + step)}, "at index 1: 1.9 at step 1 of its schedule"),
    (optim.Muon, {"momentum": linear(0.9, 2, 1.1)}, "momentum is 1.1: it must be from 0 to 1"),
    (optim.SOAP, {"shampoo_beta": linear(0.5, 2, 1.0)}, "shampoo_beta is 1.0: it must be below 1"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "given", "message"), LATER)
def test_a_schedule_that_leaves_its_range_is_refused_at_that_step_before_anything_moves(rule, given, message):
    here = weights((2, 3), (2,))
    a = rule([{"params": here[:1]}, {"params": here[1:], **given}], kernel="reference")
    before = [p.detach().clone() for p in here]
    with pytest.raises(InputError, match=message) as error:
        for step in range(4):
            before = [p.detach().clone() for p in here]
            train(a, here, 1, step)
    assert "\n" not in str(error.value)
    assert_equal(here, before)
    with pytest.raises(InputError, match=message):  # also if it is tried again
        train(a, here, 1)
    for name in given:
        a.param_groups[1][name] = a.param_groups[0][name]
    a.param_groups[1]["schedules"].clear()
    train(a, here, 1)
    assert not torch.equal(here[1], before[1])


def test_a_schedule_out_of_its_range_is_refused_when_it_is_written_into_a_group():
    here = weights((3,))
    a = optim.SGD(here, lr=0.1)
    train(a, here, 1)
    a.param_groups[0]["lr"] = lambda step: -1.0
    before = here[0].detach().clone()
    for _ in range(2):
        with pytest.raises(InputError, match="Invalid lr value: -1.0 at step 1 of its schedule"):
            train(a, here, 1)
    assert torch.equal(here[0], before)


def test_numbers_by_hand_are_taken_as_they_are_as_with_torch():
    """Torch's schedulers may end at a rate that is below 0 by a rounding error."""
    beside("sgd", lambda optimizer, _: optimizer.param_groups[0].update(lr=-1e-18))


def test_a_group_is_a_dict():
    a = optim.SGD(weights((2,)))
    with pytest.raises(TypeError, match="a parameter group is a dict"):
        a.add_param_group(weights((3,)))


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_numbers_of_other_libraries(number):
    here, there = weights((3,)), weights((3,))
    a, b = optim.SGD(here, lr=number, kernel="reference"), torch.optim.SGD(there, lr=0.25)
    train(a, here, 2), train(b, there, 2)
    assert_same(here, there)


# ---------------------------------------------------------------------------- types

TYPED = """\
import torch
from trainwell.optim import SGD, Adam
from trainwell.optim.schedules import cosine

model = torch.nn.Linear(2, 2)
optimizer: torch.optim.Optimizer = SGD(model.parameters(), lr=0.1, momentum=cosine(0.9, 10), maximize=True)
SGD(list(model.named_parameters()), 0.1, 0.9)
Adam([{"params": model.parameters(), "lr": 0.1}], betas=(lambda step: 0.9, 0.999), kernel="numba")
"""


@pytest.mark.slow  # mypy reads all of torch first
def test_types_are_those_that_are_documented(tmp_path):
    (tmp_path / "right.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(
        TYPED + "SGD(model.parameters(), lrr=0.1)\nAdam(model.parameters(), amsgrad='x')\n"
        "Adam(model.parameters(), kernel='cuda')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "right.py", "wrong.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in told.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[:2] for line in lines] == [["wrong.py", str(k)] for k in (9, 10, 11)], told.stdout
