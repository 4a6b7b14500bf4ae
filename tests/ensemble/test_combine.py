"""Means, selection and temperatures of members: against enumerations, scikit-learn and closed forms."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from trainwell import InputError
from trainwell.ensemble.combine import mean_of, select, temperature, tempered
from trainwell.metrics.calibration import log_loss
from trainwell.metrics.correctness import accuracy

SEEDS = st.integers(0, 10_000)


def answers(seed, members=4, n=12, classes=3, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scale * rng.standard_normal((members, n, classes)))
    return logits.softmax(-1), torch.from_numpy(rng.integers(0, classes, n))


def sampled(p, seed=0):
    """One class for each row of probabilities, drawn by them."""
    rng = np.random.default_rng(seed)
    drawn = (rng.random((len(p), 1)) > p.numpy().cumsum(1)).sum(1)
    return torch.from_numpy(drawn.clip(0, p.shape[1] - 1))


@given(SEEDS, st.integers(1, 5))
def test_means_are_numpys_and_scipys(seed, members):
    p, _ = answers(seed, members)
    np.testing.assert_allclose(mean_of(p), p.numpy().mean(0), rtol=1e-12)
    geometric = stats.gmean(p.numpy(), axis=0)
    np.testing.assert_allclose(
        mean_of(p, "geometric"), geometric / geometric.sum(1, keepdims=True), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@given(seed=SEEDS)
def test_the_order_of_members_does_not_matter(mean, seed):
    p, _ = answers(seed)
    order = np.random.default_rng(seed).permutation(len(p))
    torch.testing.assert_close(mean_of(p[order], mean), mean_of(p, mean), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mean_of(p, mean).sum(1), torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_means_are_float64_and_of_any_precision(mean):
    p, _ = answers(0, classes=10)
    for dtype, within in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        lower = p.to(dtype)
        if dtype == torch.bfloat16:  # eight bits add up to 1 only when they are halves and quarters
            lower = torch.tensor([[[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]]], dtype=dtype)
        mean_p = mean_of(lower, mean)
        assert mean_p.dtype == torch.float64
        torch.testing.assert_close(mean_p, mean_of(lower.double(), mean), rtol=within, atol=within)


def test_a_zero_does_not_overrule_the_others():
    p = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    torch.testing.assert_close(mean_of(p, "geometric")[0, :2], torch.tensor([0.5, 0.5]).double(), rtol=0, atol=1e-6)
    nine = torch.tensor([[[0.0, 1.0]]] + [[[0.99, 0.01]]] * 19)
    assert mean_of(nine, "geometric")[0].argmax() == 0  # log odds: 19 log 99 = 87 to 36


def test_the_arithmetic_mean_is_of_any_outputs():
    outputs = torch.tensor([[[1, -8]], [[4, 2]]])
    assert mean_of(outputs).tolist() == [[2.5, -3.0]]


def mean_log_loss(p, y):
    return -float(p[torch.arange(len(y)), y].log().mean())


def squares(mean, y):
    return float(((mean - y) ** 2).mean())


@given(SEEDS, st.integers(1, 6))
def test_selection_goes_the_greedy_way_and_ends_where_it_was_best(seed, members):
    """All subsets are enumerated, and what was chosen is followed through them."""
    p, y = answers(seed, members)
    table = {
        frozenset(subset): mean_log_loss(torch.stack([p[m] for m in subset]).mean(0), y)
        for size in range(1, members + 1)
        for subset in itertools.combinations(range(members), size)
    }
    way = []
    while len(way) < members:
        way.append(min(set(range(members)) - set(way), key=lambda m: table[frozenset([*way, m])]))
    chosen = select(p, y, mean_log_loss)
    assert chosen == way[: len(chosen)]
    assert table[frozenset(chosen)] == pytest.approx(min(table[frozenset(way[:n])] for n in range(1, members + 1)))
    assert table[frozenset(chosen)] <= min(table[frozenset([m])] for m in range(members))
    assert table[frozenset(chosen)] >= min(table.values()) - 1e-12  # greedy finds a subset, not always the best


def test_a_member_that_does_not_help_at_once_may_open_the_way():
    y = torch.zeros(4, 1)
    ring = torch.tensor([[2.0, -1, -1, 0.0], [-1, 2, -1, 0], [-1, -1, 2, 0]])[:, :, None]
    outputs = torch.cat([torch.full((1, 4, 1), 0.6), ring])
    assert select(outputs, y, squares) == [0, 1, 2, 3]  # the ring's mean is 0; the first two are worse than the first


def test_two_that_err_in_opposite_directions_are_chosen():
    y = torch.linspace(-1, 1, 20)[:, None]
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 1)))
    outputs = torch.stack([y + 5, y + noise, y + 0.3, y - noise, y + 0.4])
    assert select(outputs, y, squares)[0] == 2
    assert select(outputs[[1, 3, 0]], y, squares) == [0, 1]


def test_ties_go_to_the_lower_number_and_copies_add_nothing():
    y = torch.ones(4, 1)
    one, other = torch.tensor([[1.0], [1], [1], [2]]), torch.tensor([[1.0], [1], [1], [0]])
    assert select(torch.stack([one * 3, one, one, other, other]), y, squares) == [1, 3]
    assert select(torch.stack([one] * 3), y, squares) == [0]


def test_selection_serves_several_labels_and_losses_of_ours():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, (50, 4))).double()
    p = torch.stack([(y * s + 0.5 * (1 - s)) for s in (0.2, 0.9, -0.5)]).float()
    assert select(p, y, lambda m, y: float(torch.nn.functional.binary_cross_entropy(m, y))) == [1]
    p, y = answers(1, members=5, n=100)
    assert select(p, y, log_loss) == select(p, y, mean_log_loss)
    assert select(p, y, lambda p, y: -accuracy(p, y))


def test_an_infinite_loss_is_the_worst():
    p = torch.tensor([[[1.0, 0.0]], [[0.4, 0.6]]])
    assert select(p, torch.tensor([1]), mean_log_loss) == [1]
    assert select(p[:1], torch.tensor([1]), mean_log_loss) == [0]


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its answers."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return self.classes_[x.argmax(1)]


of_samples_alone = functools.partial(temperature, doubt=0)


@pytest.mark.parametrize("power", [0.4, 1.5])
def test_the_temperature_is_scikit_learns(power):
    p, _ = answers(3, members=1, n=500)
    y = sampled(tempered(p[0], 1 / power))
    known = CalibratedClassifierCV(FrozenEstimator(Given().fit(p[0].numpy(), y.numpy())), method="temperature")
    inverse = known.fit(p[0].numpy(), y.numpy()).calibrated_classifiers_[0].calibrators[0].beta_
    t = of_samples_alone(p[0], y)
    assert 1 / t == pytest.approx(inverse, rel=1e-4)
    np.testing.assert_allclose(tempered(p[0], t), known.predict_proba(p[0].numpy()), atol=1e-4)


def test_the_temperature_of_two_classes_is_a_logistic_regression():
    p, _ = answers(4, members=1, n=400, classes=2)
    y = sampled(tempered(p[0], 1.7))
    logit = (p[0, :, 1] / p[0, :, 0]).log()[:, None].numpy()
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(logit, y)
    assert of_samples_alone(p[0], y) == pytest.approx(1 / model.coef_[0, 0], rel=1e-5)


@pytest.mark.parametrize("known", [0.5, 2.0, 6.0])
def test_a_temperature_that_made_the_data_is_recovered(known):
    p, _ = answers(5, members=1, n=40_000, scale=3 * known)
    y = sampled(p[0].clamp_min(1e-30).log().div(known).softmax(1))
    assert of_samples_alone(p[0], y) == pytest.approx(known, rel=0.05)


@given(SEEDS, st.floats(0.3, 4))
def test_the_log_loss_is_flat_at_the_temperature_and_never_higher(seed, known):
    p, _ = answers(seed, members=1, n=60)
    y = sampled(tempered(p[0], known), seed)
    t = of_samples_alone(p[0], y)
    assert log_loss(tempered(p[0], t), y) <= log_loss(p[0], y) + 1e-12
    assume(0.05 < t < 20 and t != 1.0)
    inverse = torch.tensor(1 / t, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(p[0].log() * inverse, y).backward()
    assert abs(inverse.grad) < 1e-6


@given(SEEDS, st.floats(0.05, 20))
def test_a_temperature_changes_no_answer(seed, t):
    p, _ = answers(seed, members=1)
    assert torch.equal(tempered(p[0], t).argmax(1), p[0].argmax(1))
    torch.testing.assert_close(tempered(tempered(p[0], 1 + t), 1 / (1 + t)), p[0], rtol=1e-9, atol=1e-12)


def test_where_no_temperature_is_better_it_is_one():
    equal = torch.full((6, 3), 1 / 3)
    assert of_samples_alone(equal, torch.tensor([0, 1, 2, 0, 1, 2])) == 1.0
    certain = torch.eye(3)
    assert of_samples_alone(certain, torch.arange(3)) == 1.0
    calibrated = torch.tensor([[0.75, 0.25]] * 4)
    assert of_samples_alone(calibrated, torch.tensor([0, 0, 0, 1])) == pytest.approx(1.0)
    torch.testing.assert_close(tempered(certain, 1.0), certain.double(), rtol=0, atol=1e-15)


def test_the_ends_of_the_range_stand_for_what_is_beyond():
    p = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    assert of_samples_alone(p, torch.tensor([0, 1])) == 0.05
    assert of_samples_alone(p, torch.tensor([1, 0])) == 20.0


def test_zeros_have_a_temperature():
    p, y = torch.tensor([[1.0, 0.0, 0.0]] * 10), torch.tensor([0] * 9 + [1])
    t = of_samples_alone(p, y)
    assert t == pytest.approx(math.log(2.0**-52) / math.log(0.05 / 0.9))  # nine of ten are right
    torch.testing.assert_close(tempered(p, t)[0], torch.tensor([0.9, 0.05, 0.05]).double())
    assert log_loss(tempered(p, t), y) < log_loss(p, y)


@pytest.mark.parametrize("n", [2, 9, 270])
def test_where_all_are_right_it_is_laplaces_rule_of_succession(n):
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(n, 2)
    t = temperature(p, torch.zeros(n, dtype=torch.int64))
    assert tempered(p, t)[0, 0] == pytest.approx(n / (n + 1))


def test_one_more_mistake_counts_little_among_many_samples():
    p, _ = answers(6, members=1, n=20_000)
    y = sampled(tempered(p[0], 0.6))
    assert temperature(p[0], y) == pytest.approx(of_samples_alone(p[0], y), rel=1e-2)


def test_doubt_saves_from_what_the_first_mistake_would_cost():
    p = torch.tensor([[0.97, 0.02, 0.01]], dtype=torch.float64)
    right, new = torch.zeros(100, dtype=torch.int64), torch.tensor([0] * 199 + [1])
    doubting, sure = temperature(p.expand(100, 3), right), of_samples_alone(p.expand(100, 3), right)
    assert sure == 0.05
    assert log_loss(tempered(p, doubting).expand(200, 3), new) < log_loss(p.expand(200, 3), new)
    assert log_loss(tempered(p, sure).expand(200, 3), new) > log_loss(p.expand(200, 3), new)


ROW = [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_of(torch.zeros(2, 3)), "members, n, classes"),
        (lambda: mean_of(torch.zeros(0, 2, 3)), "a member at least"),
        (lambda: mean_of(torch.tensor([[ROW]]), "median"), "'arithmetic' or 'geometric'"),
        (lambda: mean_of(torch.tensor([[[2.0, -1.0]]]), "geometric"), "softmax"),
        (lambda: mean_of(torch.tensor([[[math.nan, 1.0]]]), "geometric"), "softmax"),
        (lambda: select(torch.zeros(2, 3, 1), torch.zeros(2), squares), "as many targets"),
        (lambda: select(torch.zeros(2, 0, 1), torch.zeros(0), squares), "at least one"),
        (lambda: select(torch.tensor([[[0.0]], [[math.inf]]]), torch.zeros(1), squares), "member 1 .* leave it out"),
        (lambda: select(torch.zeros(2, 3, 1), torch.zeros(3), lambda m, y: math.nan), "loss .* not a number"),
        (lambda: temperature(torch.tensor([ROW]), torch.tensor([2])), "from 0 to 1"),
        (lambda: temperature(torch.tensor([ROW]), torch.tensor([-1])), "from 0 to 1"),
        (lambda: temperature(torch.tensor([ROW]), torch.tensor([1.0])), "whole numbers"),
        (lambda: temperature(torch.tensor([ROW]), torch.tensor([[1]])), "targets \\(n,\\)"),
        (lambda: temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "a sample at least"),
        (lambda: temperature(torch.tensor([[3.0, 1.0]]), torch.tensor([1])), "sum is 1"),
        (lambda: tempered(torch.tensor([ROW]), 0.0), "above 0"),
        (lambda: tempered(torch.tensor([ROW]), math.inf), "above 0"),
        (lambda: tempered(torch.tensor([[-0.5, 1.5]]), 2.0), "at least 0"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(call, says):
    with pytest.raises(InputError, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)
