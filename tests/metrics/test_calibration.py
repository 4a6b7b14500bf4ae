"""Figures of probabilities and their intervals: against scikit-learn, SciPy, direct loops and known distributions."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics

from trainwell import InputError
from trainwell.metrics.calibration import brier_score, calibration_error, gain, log_loss, scores
from trainwell.metrics.correctness import accuracy_interval, bootstrap_interval

SEEDS = st.integers(0, 10_000)
NAMES = ["accuracy", "log_loss", "brier_score", "calibration_error"]


def answers(seed, n=40, classes=4, scale=2.0):
    rng = np.random.default_rng(seed)
    return special.softmax(scale * rng.standard_normal((n, classes)), axis=1), rng.integers(0, classes, n)


def drawn(rng, n, sharpness, classes=10):
    """Answers to the power of `sharpness`, true classes drawn by them as they were, and the chance to be right."""
    logits = 2 * rng.standard_normal((n, classes))
    true = special.softmax(logits, axis=1)
    y = (rng.random((n, 1)) > true.cumsum(1)).sum(1).clip(0, classes - 1)
    return special.softmax(sharpness * logits, axis=1), y, true.max(1)


@given(SEEDS, st.integers(1, 50), st.integers(2, 6))
def test_log_loss_is_scikit_learns(seed, n, classes):
    p, y = answers(seed, n, classes)
    p[0] = np.eye(classes)[0]  # right or wrong, and certain
    assert log_loss(p, y) == pytest.approx(metrics.log_loss(y, p, labels=range(classes)), rel=1e-12)


@given(SEEDS, st.integers(1, 50), st.integers(2, 6))
def test_the_brier_score_is_scikit_learns(seed, n, classes):
    p, y = answers(seed, n, classes)
    theirs = metrics.brier_score_loss(y, p, labels=range(classes), scale_by_half=False)
    assert brier_score(p, y) == pytest.approx(theirs, rel=1e-12)


def test_figures_of_the_worst_and_the_best_and_of_those_that_know_nothing():
    y = np.arange(5)
    certain, equal = np.eye(5), np.full((5, 5), 0.2)
    assert log_loss(certain, y) == brier_score(certain, y) == calibration_error(certain, y) == 0.0
    assert log_loss(certain, 4 - y) == pytest.approx(4 / 5 * 52 * math.log(2))  # of float64's eps, four of five times
    assert brier_score(certain, (y + 1) % 5) == 2.0
    assert calibration_error(certain, (y + 1) % 5) == 1.0
    assert log_loss(equal, y) == pytest.approx(math.log(5))
    assert brier_score(equal, y) == pytest.approx(4 / 5)
    assert calibration_error(equal, y) == pytest.approx(0.0)  # the first is named, and right once


def test_a_calibration_error_by_hand():
    p = [[0.5, 0.5], [0.6, 0.4], [0.3, 0.7], [0.75, 0.25], [0.2, 0.8], [0.05, 0.95]]
    y = [1, 0, 0, 0, 1, 1]
    # Of four bins the one up to 0.5 has a sample (0.5, wrong), that up to 0.75 three (0.6, 0.7 and 0.75; two right),
    # and the last two (0.8 and 0.95, both right).
    by_hand = (abs(0.5 - 0) + abs(2.05 - 2) + abs(1.75 - 2)) / 6
    assert calibration_error(p, y, bins=4) == pytest.approx(by_hand)
    assert calibration_error(p, y, bins=1) == pytest.approx(4.3 / 6 - 4 / 6)


def by_loop(p, y, bins):
    edges = np.linspace(0, 1, bins + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(len(y)) if low < max(p[i]) <= high]
        if inside:
            confidence = np.mean([max(p[i]) for i in inside])
            right = np.mean([list(p[i]).index(max(p[i])) == y[i] for i in inside])
            error += len(inside) / len(y) * abs(confidence - right)
    return error


@given(SEEDS, st.integers(1, 60), st.integers(1, 20), st.booleans())
def test_the_calibration_error_is_that_of_a_direct_loop(seed, n, bins, at_edges):
    p, y = answers(seed, n, 2)
    if at_edges:
        tops = np.random.default_rng(seed).choice(np.linspace(0, 1, bins + 1), n)
        p = np.stack([tops, 1 - tops], axis=1)
    assert calibration_error(p, y, bins) == pytest.approx(by_loop(p, y, bins), abs=1e-12)


def test_figures_take_tensors_and_lower_precision():
    p, y = answers(0)
    for name, figure in (("log_loss", log_loss), ("brier_score", brier_score), ("error", calibration_error)):
        lower = torch.from_numpy(p).float(), torch.from_numpy(y).int()
        assert figure(*lower) == pytest.approx(figure(p, y), rel=1e-5), name


def test_scores_are_the_figures_and_accuracys_interval():
    p, y = answers(1)
    groups = np.arange(40) // 2
    for own in (None, groups):
        found = scores(p, y, own)
        assert list(found) == NAMES
        right = p.argmax(1) == y
        assert found["accuracy"] == {"value": right.mean(), "interval": accuracy_interval(right, own)}
        for name, figure in (("log_loss", log_loss), ("brier_score", brier_score), ("calibration_error", by_loop)):
            value = by_loop(p, y, 15) if figure is by_loop else figure(p, y)
            assert found[name]["value"] == pytest.approx(value, rel=1e-12)
            low, high = found[name]["interval"]
            assert low <= value <= high
        assert scores(p, y, own) == found


@pytest.mark.parametrize("grouped", [False, True])
def test_resamples_are_those_drawn_one_by_one(grouped):
    (p, y), (q, _) = answers(2, n=90), answers(3, n=90)
    groups = np.random.default_rng(0).integers(-9, 9, 90) if grouped else None
    found, differences = scores(p, y, groups), gain(p, q, y, groups)
    for name, values in (
        ("log_loss", lambda p: -np.log(p[np.arange(90), y])),
        ("brier_score", lambda p: ((p - np.eye(4)[y]) ** 2).sum(1)),
        ("accuracy", lambda p: 1.0 * (p.argmax(1) == y)),
    ):
        for own, of_samples in ((found, values(p)), (differences, values(p) - values(q))):
            assert own[name]["value"] == pytest.approx(of_samples.mean())
            if own is differences or name != "accuracy":
                one_by_one = bootstrap_interval(
                    lambda o, _: float(o.mean()), torch.from_numpy(of_samples), torch.from_numpy(y), groups=groups
                )
                assert own[name]["interval"] == pytest.approx(one_by_one, rel=1e-9)
    low, high = bootstrap_interval(calibration_error, torch.from_numpy(p), torch.from_numpy(y), groups=groups)
    error = calibration_error(p, y)
    ends = found["calibration_error"]["interval"]
    assert ends[1] == pytest.approx(error + max(high - error, error - low))
    assert ends[0] == pytest.approx(2 * error - ends[1])  # so far from chance that it does not begin at 0


def test_intervals_of_means_are_those_of_normal_theory():
    p, y = answers(4, n=2_000)
    q, _ = answers(5, n=2_000)
    of_p, of_q = (-np.log(rows[np.arange(2_000), y]) for rows in (p, q))
    for interval, values in (
        (scores(p, y)["log_loss"]["interval"], of_p),
        (gain(p, q, y)["log_loss"]["interval"], of_p - of_q),
        (gain(p, q, y)["accuracy"]["interval"], (p.argmax(1) == y) * 1.0 - (q.argmax(1) == y)),
    ):
        theirs = stats.norm.interval(0.95, values.mean(), stats.sem(values))
        assert np.abs(np.subtract(interval, theirs)).max() < 0.1 * (theirs[1] - theirs[0])


def test_a_paired_interval_is_shorter_where_the_same_samples_are_hard():
    p, y = answers(6, n=500)
    other = special.softmax(np.log(p) + 0.1 * np.random.default_rng(0).standard_normal(p.shape), axis=1)
    paired = np.subtract(*gain(p, other, y)["log_loss"]["interval"][::-1])
    alone = np.subtract(*scores(p, y)["log_loss"]["interval"][::-1])
    assert 0 < paired < alone / 4


@given(SEEDS)
def test_a_gain_turns_its_sign_with_the_order(seed):
    p, y = answers(seed)
    q, _ = answers(seed + 1)
    there, back = gain(p, q, y), gain(q, p, y)
    for name in NAMES:
        assert there[name]["value"] == pytest.approx(-back[name]["value"])
        low, high = back[name]["interval"]
        assert there[name]["interval"] == pytest.approx((-high, -low))
        assert there[name]["value"] == pytest.approx(scores(p, y)[name]["value"] - scores(q, y)[name]["value"])


def test_a_model_gains_nothing_on_itself():
    p, y = answers(7)
    found = gain(p, p, y)
    for name in NAMES[:3]:
        assert found[name] == {"value": 0.0, "interval": (0.0, 0.0)}
    low, high = found["calibration_error"]["interval"]
    assert low <= 0 <= high


def test_how_groups_are_numbered_does_not_matter_and_copies_tell_nothing_new():
    p, y = answers(8, n=30)
    groups = np.random.default_rng(0).integers(0, 9, 30)
    names = np.random.default_rng(1).permutation(90) - 40
    assert scores(p, y, names[groups]) == scores(p, y, groups)
    alone, copied = scores(p, y), scores(p.repeat(3, 0), y.repeat(3), np.arange(30).repeat(3))
    for name in NAMES[1:]:
        assert copied[name]["interval"] == pytest.approx(alone[name]["interval"])


# How often intervals hold the true value: fixed seeds, 4.5 standard errors of the simulation allowed.
def assert_covers(hits, least=0.92, most=0.98):
    slack = 4.5 * math.sqrt(0.05 * 0.95 / len(hits))
    assert least - slack <= np.mean(hits) <= most + slack


def true_error(p, right):
    """The calibration error, by the chance to be right instead of the answers."""
    top = p.max(1)
    bin_of = np.searchsorted(np.linspace(0, 1, 16)[1:-1], top)
    return np.abs(np.bincount(bin_of, top - right, 15)).sum() / len(top)


def test_intervals_of_means_hold_the_true_value():
    rng = np.random.default_rng(0)
    p, y, _ = drawn(rng, 200_000, 1.5)
    true = {"log_loss": metrics.log_loss(y, p), "brier_score": metrics.brier_score_loss(y, p, scale_by_half=False)}
    hits = {name: [] for name in true}
    for _ in range(200):
        found = scores(*drawn(rng, 200, 1.5)[:2])
        for name, value in true.items():
            hits[name].append(found[name]["interval"][0] <= value <= found[name]["interval"][1])
    for own in hits.values():
        assert_covers(own)


@pytest.mark.parametrize("sharpness", [1.0, 1.15, 1.7])
def test_intervals_of_the_calibration_error_hold_it_also_where_it_is_zero(sharpness):
    rng = np.random.default_rng(0)
    p, _, right = drawn(rng, 200_000, sharpness)
    true, hits = 0.0 if sharpness == 1 else true_error(p, right), []
    for _ in range(200):
        low, high = scores(*drawn(rng, 300, sharpness)[:2])["calibration_error"]["interval"]
        hits.append(low <= true <= high)
    assert_covers(hits)


@pytest.mark.parametrize(("one", "other"), [(1.0, 1.3), (1.0, 0.8), (1.3, 1.7)])
def test_intervals_of_calibration_gained_hold_it(one, other):
    rng = np.random.default_rng(0)
    p, _, right = drawn(rng, 200_000, 1.0)
    true, hits = [], []
    for sharpness in (one, other):
        q = special.softmax(sharpness * np.log(p), axis=1)
        true.append(0.0 if sharpness == 1 else true_error(q, right))
    for _ in range(200):
        p, y, _ = drawn(rng, 300, 1.0)
        rows = (special.softmax(sharpness * np.log(p), axis=1) for sharpness in (one, other))
        low, high = gain(*rows, y)["calibration_error"]["interval"]
        hits.append(low <= true[0] - true[1] <= high)
    assert_covers(hits, most=1.0)


ROWS = [[0.5, 0.5], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("probabilities", "targets", "says"),
    [
        (ROWS, [0], "\\(n, classes\\) and targets \\(n,\\)"),
        (ROWS, [[0], [1]], "\\(n, classes\\) and targets \\(n,\\)"),
        ([0.5, 0.5], [0, 1], "\\(n, classes\\) and targets \\(n,\\)"),
        (np.zeros((0, 2)), [], "at least one sample"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 1], "row 1 .* sum 1"),
        ([[0.5, 0.5], [-0.5, 1.5]], [0, 1], "row 1 .* at least 0"),
        ([[math.nan, 0.5], [0.5, 0.5]], [0, 1], "row 0"),
        ([[math.inf, 0.5], [0.5, 0.5]], [0, 1], "row 0"),
        (ROWS, [0, 2], "from 0 to 1"),
        (ROWS, [-1, 0], "from 0 to 1"),
        (ROWS, [0.0, 1.0], "whole numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(probabilities, targets, says):
    calls = [log_loss, brier_score, calibration_error, scores, lambda p, y: gain(p, p, y)]
    for call in calls:
        with pytest.raises(InputError, match=says) as raised:
            call(probabilities, targets)
        assert "\n" not in str(raised.value)


def test_bins_groups_and_pairs_are_checked():
    with pytest.raises(InputError, match="at least one bin"):
        calibration_error(ROWS, [0, 1], bins=0)
    for call in (scores, lambda p, y, groups: gain(p, p, y, groups)):
        with pytest.raises(InputError, match="one entry for each of 2 samples"):
            call(ROWS, [0, 1], [1])
    with pytest.raises(InputError, match="same samples and classes"):
        gain(ROWS, [[0.2, 0.3, 0.5]] * 2, [0, 1])
