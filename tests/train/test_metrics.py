import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score

from trainwell.train.metrics import accuracy, bootstrap_interval, wilson_interval


@given(st.data(), st.integers(1, 100_000), st.floats(0.5, 0.999))
def test_wilson_interval_is_scipys(data, n, level):
    successes = data.draw(st.integers(0, n))
    theirs = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 10, 12_345])
def test_wilson_interval_ends_exactly_where_chances_do(n):
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0
    assert wilson_interval(0, n)[1] > 0.0
    assert wilson_interval(n, n)[0] < 1.0


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0), (1, 5, 1)])
def test_wilson_interval_refuses_what_is_out_of_range(successes, n, level):
    with pytest.raises(ValueError):
        wilson_interval(successes, n, level)


def test_accuracy_is_sklearns():
    generator = np.random.default_rng(0)
    outputs, targets = generator.random((200, 5)), generator.integers(0, 5, 200)
    assert accuracy(outputs, targets) == pytest.approx(accuracy_score(targets, outputs.argmax(1)))


@pytest.mark.parametrize(("outputs", "targets"), [([[0.1, 0.9]], [[1]]), ([0.1, 0.9], [1, 0]), (np.zeros((0, 3)), [])])
def test_accuracy_refuses_shapes_that_do_not_fit(outputs, targets):
    with pytest.raises(ValueError):
        accuracy(outputs, targets)


def test_the_bootstrap_interval_is_scipys():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=200)
    ours = bootstrap_interval(lambda outputs, _: float(outputs.mean()), torch.from_numpy(values), torch.zeros(200))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=rng).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours[0] - theirs.low) < 0.1 * width
    assert abs(ours[1] - theirs.high) < 0.1 * width


def test_the_bootstrap_interval_is_the_same_every_time():
    draws = [
        bootstrap_interval(lambda o, t: float((o - t).abs().max()), torch.arange(9.0), torch.ones(9)) for _ in "ab"
    ]
    assert draws[0] == draws[1]
