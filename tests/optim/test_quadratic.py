"""What theory says of optimizers on a quadratic, `f(x) = ½ xᵀ A x`: rates, iterates, stability, and rotation."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainwell.optim.rules import SGD, Adagrad, Adam
from trainwell.optim.soap import SOAP

Array = npt.NDArray[np.float64]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
VALUES = np.array([1.0, 0.37, 0.1, 0.01])  # the eigenvalues of A: L = 1, condition 100
START = np.array([1.0, -2.0, 0.5, 3.0])


def run(make: Make, matrix: Array, start: Array, steps: int) -> Array:
    """Returns the places that an optimizer goes to, one in each row, from the start on."""
    p = nn.Parameter(torch.tensor(start))
    slope, optimizer, places = torch.tensor(matrix), make([p]), [start]
    for _ in range(steps):
        p.grad = slope @ p.detach()
        optimizer.step()
        places.append(p.detach().numpy().copy())
    return np.array(places)


def recurrence(value: float, lr: float, momentum: float, nesterov: bool = False) -> Array:
    """Returns what one step does to (x, v), along an eigenvector: `v ← μv + λx`, `x ← x - η(v or λx + μv)`."""
    v = np.array([value, momentum])
    ahead = np.array([value, 0.0]) + momentum * v if nesterov else v
    return np.array([np.array([1.0, 0.0]) - lr * ahead, v])


def radius(matrix: Array) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


# ---------------------------------------------------------------------- iterates


@pytest.mark.parametrize("lr", [0.1, 1.0, 1.9, 2.05])
def test_gradient_descent_multiplies_each_eigenvector_by_its_factor(lr: float) -> None:
    places = run(lambda p: SGD(p, lr=lr), np.diag(VALUES), START, 100)
    expected = (1 - lr * VALUES) ** np.arange(101)[:, None] * START
    np.testing.assert_allclose(places, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(lr=st.floats(1e-3, 1.9), momentum=st.floats(0.01, 0.99), nesterov=st.booleans())
def test_momentum_is_a_recurrence_of_two_for_each_eigenvector(lr: float, momentum: float, nesterov: bool) -> None:
    places = run(lambda p: SGD(p, lr=lr, momentum=momentum, nesterov=nesterov), np.diag(VALUES), START, 40)
    for i, value in enumerate(VALUES):
        step = recurrence(value, lr, momentum, nesterov)
        expected = [(np.linalg.matrix_power(step, t) @ (START[i], 0.0))[0] for t in range(41)]
        np.testing.assert_allclose(places[:, i], expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


# ---------------------------------------------------------------------- rates


@pytest.mark.parametrize("condition", [10.0, 100.0, 1000.0])
def test_the_best_rates_are_those_of_theory(condition: float) -> None:
    """Per step: (κ-1)/(κ+1) without momentum, (√κ-1)/(√κ+1) with the best, 1 - 1/√κ with Nesterov's at η = 1/L."""
    values = np.geomspace(1 / condition, 1.0, 5)
    least, root = values[0], math.sqrt(condition)
    best, momentum = 4 / (1 + math.sqrt(least)) ** 2, ((root - 1) / (root + 1)) ** 2

    assert max(abs(1 - 2 / (1 + least) * values)) == pytest.approx((condition - 1) / (condition + 1), rel=1e-10)
    places = run(lambda p: SGD(p, lr=2 / (1 + least)), np.diag(values), np.ones(5), 2000)
    assert seen_rate(places) == pytest.approx((condition - 1) / (condition + 1), rel=1e-3)

    # the extreme eigenvalues have double roots, of which rounding makes two, 1e-8 apart
    assert max(radius(recurrence(x, best, momentum)) for x in values) == pytest.approx(math.sqrt(momentum), rel=1e-6)
    places = run(lambda p: SGD(p, lr=best, momentum=momentum), np.diag(values), np.ones(5), round(15 * root))
    assert seen_rate(places, double=True) == pytest.approx((root - 1) / (root + 1), rel=0.3 / root)

    momentum = (root - 1) / (root + 1)
    assert max(radius(recurrence(x, 1.0, momentum, True)) for x in values) == pytest.approx(1 - 1 / root, rel=1e-6)
    places = run(
        lambda p: SGD(p, lr=1.0, momentum=momentum, nesterov=True), np.diag(values), np.ones(5), round(15 * root)
    )
    assert seen_rate(places, double=True) == pytest.approx(1 - 1 / root, rel=0.3 / root)


def seen_rate(places: Array, double: bool = False) -> float:
    """Returns the rate that the second half of the way fell by; a double root's way is `t · rateᵗ`."""
    t, lengths = np.arange(1, len(places)), np.linalg.norm(places[1:], axis=1)
    late = (t > len(t) // 2) & (lengths > 1e-200)
    logs = np.log(lengths[late]) - (np.log(t[late]) if double else 0)
    return float(np.exp(np.polyfit(t[late], logs, 1)[0]))


def test_no_other_momentum_is_faster_than_the_best_one() -> None:
    root = math.sqrt(100.0)
    best = (root - 1) / (root + 1)
    for momentum in np.linspace(0.0, 0.99, 34):
        for lr in np.linspace(0.05, 3.95, 40):
            assert max(radius(recurrence(value, lr, momentum)) for value in VALUES) > best - 1e-6


# ---------------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("momentum", "nesterov", "bound"),
    [
        (0.0, False, 2.0),
        (0.5, False, 2 * 1.5),
        (0.9, False, 2 * 1.9),
        (0.5, True, 2 * 1.5 / 2),
        (0.9, True, 2 * 1.9 / 2.8),
    ],
)  # of lr · L: 2 without momentum, 2(1 + μ) with it, 2(1 + μ)/(1 + 2μ) with Nesterov's
def test_above_the_bound_it_diverges_and_below_it_does_not(momentum: float, nesterov: bool, bound: float) -> None:
    largest = 4.0

    def far(lr: float) -> float:
        make = lambda p: SGD(p, lr=lr, momentum=momentum, nesterov=nesterov)  # noqa: E731
        return float(abs(run(make, np.array([[largest]]), np.array([1.0]), 1500)[-1, 0]))

    assert far(0.98 * bound / largest) < 1e-3
    assert far(1.02 * bound / largest) > 1e3


# ---------------------------------------------------------------------- rotation


def apart(make: Make, steps: int = 100) -> float:
    """Returns how far two ways are apart at most, on a problem and on the same one turned, for a start of length 1."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    start = START / np.linalg.norm(START)
    straight = run(make, np.diag(VALUES), start, steps)
    turned = run(make, turn @ np.diag(VALUES) @ turn.T, turn @ start, steps) @ turn
    return float(np.linalg.norm(straight - turned, axis=1).max())


def test_only_what_has_one_rate_for_all_directions_does_not_see_a_rotation() -> None:
    assert apart(lambda p: SGD(p, lr=1.5)) < 1e-10
    assert apart(lambda p: SGD(p, lr=1.5, momentum=0.9)) < 1e-10
    assert apart(lambda p: SGD(p, lr=1.0, momentum=0.9, nesterov=True)) < 1e-10
    adam = apart(lambda p: Adam(p, lr=0.03))
    assert adam > 0.3
    assert apart(lambda p: Adagrad(p, lr=0.1)) > 0.3
    assert apart(lambda p: SOAP(p, lr=0.03, weight_decay=0.0, precondition_frequency=1)) < adam / 3


# ---------------------------------------------------------------------- the lengths of first steps


def steps_of(make: Make, gradients: Array) -> Array:
    """Returns the steps that are taken on given gradients."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, places = make([p]), [0.0]
    for g in gradients:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        places.append(p.item())
    return np.diff(places)


@settings(deadline=None, max_examples=25)
@given(first=st.floats(0.0, 0.99), second=st.floats(0.1, 0.9999), seed=st.integers(0, 99))
def test_what_adam_lacks_without_bias_correction_is_known_at_each_step(first: float, second: float, seed: int) -> None:
    gradients, t = np.random.default_rng(seed).uniform(0.5, 2.0, 30), np.arange(1, 31)
    raw, corrected = (
        steps_of(lambda p: Adam(p, lr=0.1, betas=(first, second), eps=0.0, bias_correction=on), gradients)  # noqa: B023
        for on in (False, True)
    )
    np.testing.assert_allclose(raw / corrected, (1 - first**t) / np.sqrt(1 - second**t), rtol=1e-9)


def test_adams_first_step_without_bias_correction_is_too_long_right_or_too_short() -> None:
    def lengths(beta2: float, steps: int = 60) -> Array:
        make = lambda p: Adam(p, lr=1.0, betas=(0.9, beta2), eps=0.0, bias_correction=False)  # noqa: E731
        return -steps_of(make, np.ones(steps))

    usual = lengths(0.999)  # the gradient is constant: the corrected step is 1
    assert usual[0] == pytest.approx(math.sqrt(10), rel=1e-9)
    assert round(usual[0], 1) == 3.2
    assert 10 <= np.argmax(usual) + 1 <= 14
    assert usual.max() == pytest.approx(6.6, abs=0.05)
    assert lengths(0.99)[0] == pytest.approx(1.0, rel=1e-9)
    assert lengths(0.9)[0] == pytest.approx(math.sqrt(0.1), rel=1e-9)


def test_adagrads_steps_shrink_as_one_by_the_root_of_t() -> None:
    for gradient in (1e-3, 1.0, 1e3):  # whatever its length
        steps = steps_of(lambda p: Adagrad(p, lr=0.1, eps=0.0), np.full(200, gradient))
        np.testing.assert_allclose(-steps, 0.1 / np.sqrt(np.arange(1, 201)), rtol=1e-10)
