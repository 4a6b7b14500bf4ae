"""Probes find the stage that holds the labels, as scikit-learn's cross-validation does, and say how sure that is."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainwell.errors import InputError
from trainwell.transfer.probes import best, compare, probe, table


def _noise(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _planted(n=150, classes=3):
    """Three stages of which the middle one holds the label."""
    targets = torch.arange(n) % classes
    told = _noise(n, 20, 2)
    told[:, :classes] += 3 * torch.eye(classes)[targets]
    return {"early": _noise(n, 10, 1), "middle": told, "late": _noise(n, 30, 4)}, targets


def test_the_stage_that_holds_the_label_is_best_and_noise_does_as_chance():
    stages, targets = _planted()
    probes = probe(stages, targets, num_classes=3)
    assert [one.stage for one in probes] == ["early", "middle", "late"]
    assert [one.dimensions for one in probes] == [10, 20, 30]
    assert best(probes).stage == "middle"
    for one in (probes[0], probes[2]):
        assert one.interval[0] < 1 / 3 < one.interval[1]
        assert one.log_loss == pytest.approx(math.log(3), abs=0.1)  # the penalty holds noise down
        assert compare(probes[1], one)[1] > 0


@pytest.mark.parametrize("groups", [None, "names"])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_cross_validation_of_a_pipeline(classes, groups):
    stages, targets = _planted(classes=classes)
    n, y = len(targets), targets.numpy()
    of = None if groups is None else [f"patient {k % 31}" for k in range(n)]
    kind = StratifiedKFold if of is None else StratifiedGroupKFold
    numbers = None if of is None else np.unique(of, return_inverse=True)[1]
    folds = list(kind(5, shuffle=True, random_state=3).split(y, y, numbers))
    for one in probe(stages, targets, num_classes=classes, groups=of, seed=3, l2=0.02):
        expected = np.zeros((n, classes))
        for rows, test in folds:
            logistic = LogisticRegression(C=(2 if classes == 2 else 1) / (len(rows) * 0.02), tol=1e-8)
            x = stages[one.stage].double().numpy()
            pipeline = make_pipeline(StandardScaler(), logistic)
            expected[test] = pipeline.fit(x[rows], y[rows]).predict_proba(x[test])
        if of is None:  # folds of one size have one C
            assert np.array_equal(one.right, cross_val_predict(pipeline, x, y, cv=folds) == y)
        assert np.array_equal(one.right, expected.argmax(1) == y)
        assert one.accuracy == pytest.approx(np.mean(expected.argmax(1) == y))
        assert one.fold_accuracies == pytest.approx([np.mean((expected.argmax(1) == y)[test]) for _, test in folds])
        assert one.log_loss == pytest.approx(log_loss(y, expected), abs=1e-4)
        assert one.interval == pytest.approx(
            tuple(binomtest(int(one.right.sum()), n).proportion_ci(method="wilson")), abs=1e-12
        )
        assert one.l2 == (0.02,) * 5


def test_a_penalty_is_chosen_from_what_is_learnt_from_alone():
    stages, targets = _planted()
    whole = probe({"middle": stages["middle"]}, targets, num_classes=3)[0]
    test = next(iter(StratifiedKFold(5, shuffle=True, random_state=0).split(targets, targets)))[1]
    other = stages["middle"].clone()
    other[test] = 1000 * _noise(len(test), 20, 9)  # the first fold's test samples: its own penalty may not see them
    assert probe({"middle": other}, targets, num_classes=3)[0].l2[0] == whole.l2[0]


def test_groups_are_kept_apart_when_the_penalty_is_chosen_too():
    groups = torch.arange(200) // 5
    x, targets = _noise(40, 60, 0)[groups], (groups * 7 % 40 < 20).long()  # copies, whose label nothing else tells
    assert min(probe({"x": x}, targets, num_classes=2, groups=groups)[0].l2) >= 10
    assert max(probe({"x": x}, targets, num_classes=2)[0].l2) < 0.1


def test_intervals_hold_the_true_accuracy_in_about_95_of_100_cases():
    distance, n, draws, held = 1.5, 100, 200, 0
    truth = norm.cdf(distance / 2)  # of the best threshold between two normal classes, which one feature all but finds
    targets = torch.arange(n) % 2
    for seed in range(draws):
        x = _noise(n, 1, seed) + distance * targets[:, None]
        low, high = probe({"x": x}, targets, num_classes=2, folds=2, l2=0.01)[0].interval
        held += low < truth < high
    assert binomtest(held, draws, 0.95).pvalue > 0.01


def test_a_probe_is_as_good_as_itself():
    stages, targets = _planted()
    one = probe({"early": stages["early"]}, targets, num_classes=3, l2=1.0)[0]
    difference, low, high = compare(one, one)
    assert difference == 0
    assert low == -high
    assert 0 < high < 0.02


def _judged(right, log_loss=1.0, stage="stage"):
    right = np.array(right, bool)
    return dataclasses.replace(_ANY, right=right, accuracy=float(right.mean()), log_loss=log_loss, stage=stage)


_ANY = probe({"any": torch.zeros(4, 1)}, torch.arange(4) % 2, num_classes=2, l2=1.0)[0]


def test_the_difference_has_the_interval_of_a_published_table():
    # Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009), by Bonett and Price's
    # method in table IX of Fagerland, Lydersen and Laake, Recommended tests and confidence intervals for paired
    # binomial proportions, 2014: of 21 children 1 had it before alone, and 7 after alone.
    before = _judged([1] + [1] + [0] * 7 + [0] * 12)
    after = _judged([1] + [0] + [1] * 7 + [0] * 12)
    assert compare(before, after) == pytest.approx((-0.286, -0.508, -0.013), abs=6e-4)
    assert compare(after, before) == pytest.approx((0.286, 0.013, 0.508), abs=6e-4)


def test_differences_lie_in_their_interval_in_about_95_of_100_cases():
    rng, held, draws, n = np.random.default_rng(0), 0, 1000, 80
    for _ in range(draws):
        kind = rng.choice(4, n, p=[0.6, 0.2, 0.1, 0.1])  # both, a alone, b alone, none
        _, low, high = compare(_judged(kind <= 1), _judged((kind == 0) | (kind == 2)))
        held += low < 0.1 < high
    assert 0.93 < held / draws < 0.975


def test_the_best_is_the_surest_of_those_that_may_be_as_accurate():
    good = [True] * 90 + [False] * 10
    one_more = [True] * 91 + [False] * 9
    bad = [True] * 50 + [False] * 50
    a, b, c = _judged(one_more, 0.6, "a"), _judged(good, 0.3, "b"), _judged(bad, 0.1, "c")
    assert best([a, b, c]).stage == "b"
    assert best([a, c]).stage == "a"
    assert best([c]).stage == "c"


def test_the_order_of_the_samples_changes_nothing_where_it_chooses_no_folds():
    stages, targets = _planted()
    groups = torch.arange(len(targets)) // 6  # folds of groups are shuffled by the groups' names
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    one = probe({"middle": stages["middle"]}, targets, num_classes=3, groups=groups)[0]
    other = probe({"middle": stages["middle"][order]}, targets[order], num_classes=3, groups=groups[order])[0]
    assert np.array_equal(one.right[order], other.right)
    assert other.log_loss == pytest.approx(one.log_loss, rel=1e-2)
    assert other.interval == one.interval


def test_few_samples_of_a_class_make_fewer_folds_and_a_single_one_is_never_right():
    targets = torch.tensor([0] * 20 + [1] * 3)
    x = targets[:, None].float() * 9 + _noise(23, 1, 0)
    few = probe({"x": x}, targets, num_classes=2)[0]
    assert len(few.fold_accuracies) == 3
    targets[-1] = 2
    targets[-2] = 1
    single = probe({"x": x}, targets, num_classes=3)[0]
    assert len(single.fold_accuracies) == 2
    assert not single.right[-1]
    assert single.right[:-1].mean() > 0.8
    assert math.isfinite(single.log_loss)


def test_with_two_samples_a_class_there_is_an_answer():
    targets = torch.arange(10) % 5
    one = probe({"x": 5 * torch.eye(5)[targets] + 0.1 * _noise(10, 5, 0)}, targets, num_classes=5)[0]
    assert one.accuracy == 1
    assert one.l2 == (100.0, 100.0)  # where nothing can be judged within a fold, it is the strongest penalty


def test_progress_counts_folds_of_all_stages():
    told = []
    stages, targets = _planted(30)
    probe(stages, targets, num_classes=3, folds=2, l2=1.0, progress=lambda *where: told.append(where))
    assert told == [(done, 6) for done in range(1, 7)]


def test_the_table_has_a_line_a_stage_and_marks_the_best():
    stages, targets = _planted()
    head, *lines = table(probe(stages, targets, num_classes=3, l2=0.1)).splitlines()
    assert head.split()[0] == "stage"
    assert [line.split()[0] for line in lines] == ["early", "middle", "late"]
    assert [line.endswith("best") for line in lines] == [False, True, False]
    assert f"{probe(stages, targets, num_classes=3, l2=0.1)[1].accuracy:.1%}" in lines[1]


def test_what_cannot_be_is_told_in_one_line():
    stages, targets = _planted()
    for call, words in [
        (lambda: probe({}, targets, num_classes=3), "no features"),
        (lambda: probe(stages, targets[:-1], num_classes=3), r"\(150, 10\) and \(149,\)"),
        (lambda: probe(stages, targets, num_classes=2), "from 0 to 1"),
        (lambda: probe(stages, targets, num_classes=3, l2=-1.0), "above 0"),
        (lambda: probe(stages, targets, num_classes=3, l2=0.0), "above 0"),
        (lambda: probe(stages, targets, num_classes=3, groups=[0] * 150), "no class has two groups"),
        (lambda: probe({"x": torch.eye(3)}, torch.arange(3), num_classes=3), "no class has two samples"),
        (lambda: compare(_judged([1]), _judged([1, 0])), "of 1 and of 2 samples"),
        (lambda: best([]), "no probes"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
