import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.stats import binomtest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, recall_score

from trainwell.data.split import folds
from trainwell.metrics.correctness import (
    accuracy,
    accuracy_interval,
    average_precision,
    balanced_accuracy,
    balanced_accuracy_interval,
    bootstrap_interval,
    indistinguishable,
    recalls,
    smallest_difference,
    wilson_interval,
)


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


def test_the_bootstrap_interval_is_that_of_version_0_1():
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=57))
    known = (0.8280398662416788, 1.3663009854593817)
    assert bootstrap_interval(lambda o, _: float(o.mean()), values, torch.zeros(57)) == pytest.approx(known, rel=1e-12)
    alone = bootstrap_interval(lambda o, _: float(o.mean()), values, torch.zeros(57), groups=np.arange(57)[::-1] * 3)
    assert alone == pytest.approx(known, rel=1e-12)


def test_the_grouped_bootstrap_is_that_of_the_groups():
    rng = np.random.default_rng(0)
    of_group = rng.exponential(size=40)
    groups = rng.permutation(np.repeat(np.arange(40), 5))
    values = torch.from_numpy(of_group[groups])  # as all samples of a group are alike, it is as if there were one each
    ours = bootstrap_interval(lambda o, _: float(o.mean()), values, torch.zeros(200), groups=groups * 7 - 30)
    theirs = stats.bootstrap((of_group,), np.mean, method="percentile", rng=rng).confidence_interval
    assert np.abs(np.subtract(ours, theirs)).max() < 0.1 * (theirs.high - theirs.low)


def test_the_grouped_bootstrap_draws_whole_groups_of_any_size():
    groups = torch.tensor([5, 2, 5, 5, 9, 2, 9, 9, 9])

    def whole(drawn, _):
        sizes = {2: 2, 5: 3, 9: 4}
        counts = {name: int((drawn == name).sum()) for name in sizes}
        assert all(counts[name] % size == 0 for name, size in sizes.items())
        assert sum(counts[name] // size for name, size in sizes.items()) == 3
        return float(len(drawn))

    assert bootstrap_interval(whole, groups, torch.zeros(9), groups=groups) == (6.0, 12.0)
    with pytest.raises(ValueError, match="one entry for each of 9 samples"):
        bootstrap_interval(whole, groups, torch.zeros(9), groups=[1, 2])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 100))
def test_recalls_and_their_mean_are_sklearns(n, classes, seed):
    rng = np.random.default_rng(seed)
    outputs, targets = rng.random((n, classes)), rng.integers(0, classes, n)
    ours = recalls(outputs, targets)
    assert np.array_equal(np.isnan(ours), np.bincount(targets, minlength=classes) == 0)
    known = np.unique(targets)
    theirs = recall_score(targets, outputs.argmax(1), labels=known, average=None)
    assert ours[known] == pytest.approx(theirs)
    if set(outputs.argmax(1)) <= set(known) and len(known) > 1:  # or it warns
        assert balanced_accuracy(outputs, targets) == pytest.approx(balanced_accuracy_score(targets, outputs.argmax(1)))
    assert balanced_accuracy(torch.from_numpy(outputs), torch.from_numpy(targets)) == pytest.approx(theirs.mean())


@pytest.mark.parametrize("targets", [[0, 2], [-1, 0], [0], []])
def test_recalls_refuse_targets_that_are_no_class(targets):
    with pytest.raises(ValueError):
        recalls([[0.5, 0.5]] * 2, targets)


@settings(deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 4))
def test_average_precision_is_sklearns_with_ties_and_all(data, n, labels):
    scores = data.draw(hnp.arrays(float, (n, labels), elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])))
    targets = data.draw(hnp.arrays(np.int64, (n, labels), elements=st.integers(0, 1)))
    ours = average_precision(scores, targets)
    for label in range(labels):
        if targets[:, label].any():
            theirs = average_precision_score(targets[:, label], scores[:, label])
            assert ours[label] == pytest.approx(theirs, abs=1e-12)
        else:
            assert math.isnan(ours[label])


@pytest.mark.parametrize(
    ("scores", "targets"), [([[0.1, 0.9]], [[1]]), ([0.1], [1]), ([[0.1]], [[2]]), ([[math.nan]], [[1]])]
)
def test_average_precision_refuses_what_it_cannot_rank(scores, targets):
    with pytest.raises(ValueError):
        average_precision(scores, targets)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=80), st.floats(0.5, 0.99))
def test_the_interval_of_single_samples_is_wilsons(right, level):
    known = wilson_interval(sum(right), len(right), level)
    for ours in (
        accuracy_interval(right, level=level),
        accuracy_interval(right, np.arange(len(right)) * -3, level),
        balanced_accuracy_interval(right, np.full(len(right), 4), level=level),
    ):
        assert ours == pytest.approx(known, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=2, max_size=20), st.integers(0, 9))
def test_grouped_intervals_hold_the_accuracy_and_are_never_shorter(members, seed):
    right = np.concatenate(members)
    groups = np.repeat(np.arange(len(members)), [len(own) for own in members])
    low, high = accuracy_interval(right, groups)
    alone = wilson_interval(int(right.sum()), len(right))
    assert 0 <= low <= right.mean() <= high <= 1
    assert high - low >= alone[1] - alone[0] - 1e-12
    order = np.random.default_rng(seed).permutation(len(right))
    names = np.random.default_rng(seed).permutation(99)
    assert accuracy_interval(right[order], names[groups][order]) == pytest.approx((low, high), abs=1e-12)


def test_many_alike_samples_count_as_one():
    """Where a group is right or wrong as a whole, there are as many samples as groups (and Student's quantile)."""
    rng = np.random.default_rng(0)
    of_group = rng.random(400) < 0.8
    low, high = accuracy_interval(np.repeat(of_group, 5), np.repeat(np.arange(400), 5))
    assert (low, high) == pytest.approx(wilson_interval(int(of_group.sum()), 400), abs=1e-3)


def test_if_all_are_right_the_groups_count():
    low, high = accuracy_interval([True] * 300, np.repeat(np.arange(100), 3))
    t = stats.t.ppf(0.975, 99)
    assert (low, high) == (pytest.approx(1 / (1 + t * t / 100)), 1.0)  # Wilson's for 100 of 100
    low, high = accuracy_interval([False] * 300, np.repeat(np.arange(100), 3))
    assert (low, high) == (0.0, pytest.approx(1 - 1 / (1 + t * t / 100)))


def test_of_few_groups_little_is_known():
    right = [True] * 9 + [False]
    assert accuracy_interval(right, [3] * 10) == (0.0, 1.0)
    low, high = accuracy_interval(right, [3] * 5 + [4] * 5)
    assert low < 0.1
    assert high > 0.99


def test_the_interval_of_balanced_accuracy_is_zou_and_donners():
    right = np.array([True] * 85 + [False] * 5 + [True] * 6 + [False] * 4)
    ends = [binomtest(k, n).proportion_ci(method="wilson") for k, n in ((85, 90), (6, 10))]
    rates = (85 / 90, 0.6)
    low = np.mean(rates) - math.hypot(*(r - end.low for r, end in zip(rates, ends, strict=True))) / 2
    high = np.mean(rates) + math.hypot(*(r - end.high for r, end in zip(rates, ends, strict=True))) / 2
    assert balanced_accuracy_interval(right, [7] * 90 + [-1] * 10) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("right", "targets", "groups"), [([], [], None), ([True], [0, 1], None), ([True], [0], [1, 2]), (True, 0, None)]
)
def test_intervals_refuse_shapes_that_do_not_fit(right, targets, groups):
    with pytest.raises(ValueError):
        balanced_accuracy_interval(right, targets, groups)
    with pytest.raises(ValueError):
        accuracy_interval([True], level=1.0)


@pytest.mark.parametrize("n", [10, 120, 1_000])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_accuracies_are_told_apart_where_pearsons_test_tells_them_apart(n, level):
    for k in (0, n // 2, int(0.7 * n), int(0.95 * n), n):
        low, high = indistinguishable(k / n, n, level)
        nearby = [math.floor(low * n), math.ceil(low * n), math.floor(high * n), math.ceil(high * n), k]
        for other in nearby:
            if 0 < k + other < 2 * n:
                table = [[k, n - k], [other, n - other]]
                p = stats.chi2_contingency(table, correction=False).pvalue
                assert (low <= other / n <= high) == (p >= 1 - level)
        assert smallest_difference(k / n, n, level) == max(k / n - low, high - k / n)


@pytest.mark.parametrize(("accuracy", "n", "level"), [(1.1, 10, 0.95), (-0.1, 10, 0.95), (0.5, 0, 0.95), (0.5, 9, 1)])
def test_what_cannot_be_compared_is_refused(accuracy, n, level):
    with pytest.raises(ValueError):
        indistinguishable(accuracy, n, level)


# How often intervals hold the true value; bench/interval_coverage.py has more of it. The seeds are fixed, and what is
# allowed besides two points is 4.5 standard errors of the simulation.
def assert_covers(hits, least=0.93, most=0.97):
    slack = 4.5 * math.sqrt(0.05 * 0.95 / len(hits))
    assert least - slack <= np.mean(hits) <= most + slack


@pytest.mark.parametrize("n", [40, 120, 400])
def test_wilsons_interval_holds_the_accuracy_as_often_as_it_says(n):
    grid = np.arange(60, 99) / 100
    low, high = np.array([wilson_interval(k, n) for k in range(n + 1)]).T
    chance = stats.binom.pmf(np.arange(n + 1)[:, None], n, grid)  # exactly, no simulation
    covered = (chance * ((low[:, None] <= grid) & (high[:, None] >= grid))).sum(axis=0)
    assert 0.94 <= covered.mean() <= 0.96
    assert covered.min() > 0.92


@pytest.mark.parametrize("alike", [0.1, 0.3])
def test_grouped_intervals_hold_the_accuracy_where_ignoring_groups_does_not(alike):
    rng, ours, ignored = np.random.default_rng(0), [], []
    for replicate in range(600):
        p, scale = (0.6, 0.8, 0.9, 0.95)[replicate % 4], (1 - alike) / alike
        groups = np.repeat(np.arange(30), rng.integers(4, 21, 30))
        right = rng.random(len(groups)) < rng.beta(p * scale, (1 - p) * scale, 30)[groups]
        for (low, high), hits in (
            (accuracy_interval(right, groups), ours),
            (wilson_interval(int(right.sum()), len(right)), ignored),
        ):
            hits.append(low <= p <= high)
    assert_covers(ours)
    assert np.mean(ignored) < 0.88


def test_the_interval_of_balanced_accuracy_holds_it():
    rng, hits = np.random.default_rng(0), []
    for replicate in range(1_000):
        common, rare = ((0.95, 0.6), (0.9, 0.8), (0.98, 0.9), (0.8, 0.8))[replicate % 4]
        targets = (np.arange(120) < max(rng.binomial(120, 0.1), 1)).astype(int)
        right = rng.random(120) < np.where(targets == 1, rare, common)
        low, high = balanced_accuracy_interval(right, targets)
        hits.append(low <= (common + rare) / 2 <= high)
    assert_covers(hits)


def test_the_interval_of_cross_validation_holds_the_mean_accuracy_of_the_folds_models():
    """Two Gaussian classes, for which the true accuracy of a linear rule has a closed form."""
    rng, hits = np.random.default_rng(0), []
    for replicate in range(100):
        y = np.repeat([0, 1], 60)
        x = rng.standard_normal((120, 2)) + np.where(y == 1, 0.9, -0.9)[:, None] * [1, 0]
        right, true = 0, []
        for test in folds(y, 5, seed=replicate):
            train = np.delete(np.arange(120), test)
            model = LinearDiscriminantAnalysis().fit(x[train], y[train])
            right += int((model.predict(x[test]) == y[test]).sum())
            weight, bias = model.coef_[0], model.intercept_[0]
            distances = np.array([0.9 * weight[0] + bias, 0.9 * weight[0] - bias]) / np.linalg.norm(weight)
            true.append(stats.norm.cdf(distances).mean())
        low, high = wilson_interval(right, 120)
        hits.append(low <= np.mean(true) <= high)
    assert_covers(hits)


@pytest.mark.parametrize("n", [40, 120, 400])
def test_equally_good_models_are_seldom_told_apart(n):
    grid, shares = np.array([0.6, 0.7, 0.8, 0.9]), np.arange(n + 1) / n
    low, high = np.array([indistinguishable(p, n) for p in shares]).T
    apart = (shares < low[:, None]) | (shares > high[:, None])
    for p in grid:  # exactly, no simulation
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        assert 0.03 < chance @ apart @ chance < 0.07


def test_one_sample_or_group_tells_no_interval():
    def mean(outputs, targets):
        return float((outputs - targets).mean())

    assert all(map(math.isnan, bootstrap_interval(mean, torch.ones(1), torch.zeros(1))))
    assert all(map(math.isnan, bootstrap_interval(mean, torch.arange(9.0), torch.zeros(9), groups=[4] * 9)))
