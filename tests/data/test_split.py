import hashlib
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from trainwell.data.split import folds, split
from trainwell.errors import InputError

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
FRACTION = st.floats(0.02, 0.4)


def strata(counts):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def tables(labels, parts):
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts], axis=1)


@settings(max_examples=100, deadline=None)
@given(COUNTS, FRACTION, FRACTION, st.integers(0, 5))
def test_parts_are_disjoint_cover_all_rows_and_have_the_exact_sizes(counts, val, test, seed):
    labels = strata(counts)
    total = len(labels)
    sizes = [max(1, int(fraction * total + 0.5)) for fraction in (val, test)]
    assume(total - sum(sizes) >= len(counts))
    parts = split(labels, val=val, test=test, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(total))
    assert [len(part) for part in parts] == [total - sum(sizes), *sizes]
    assert all((np.diff(part) > 0).all() for part in parts)
    assert (tables(labels, parts)[:, 0] >= 1).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(10, 90), min_size=1, max_size=12), FRACTION, FRACTION, st.integers(0, 5))
def test_every_class_gets_within_one_of_its_exact_share_of_every_part(counts, val, test, seed):
    labels = strata(counts)
    parts = split(labels, val=val, test=test, seed=seed)
    exact = np.outer(counts, [len(part) for part in parts]) / len(labels)
    assert (np.abs(tables(labels, parts) - exact) <= 1 + 1e-9).all()


@pytest.mark.parametrize("counts", [[50, 50], [90, 10, 33], [7, 8, 9, 10, 11, 200], [5000] * 10])
def test_class_counts_are_within_one_of_sklearns(counts):
    labels = strata(counts)
    for held in (0.1, 0.15, 0.33):
        size = int(held * len(labels) + 0.5)
        _, theirs = next(StratifiedShuffleSplit(1, test_size=size, random_state=0).split(labels, labels))
        _, _, ours = split(labels, val=0, test=held, seed=0)
        difference = np.bincount(labels[theirs]) - np.bincount(labels[ours])
        assert np.abs(difference).max() <= 1


def test_the_seed_chooses_and_the_same_seed_chooses_the_same():
    labels = strata([40, 60])
    first, again, other = (split(labels, val=0.2, test=0.2, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


def test_rows_of_a_class_are_drawn_evenly():
    drawn = np.zeros(20)
    for seed in range(600):
        drawn[split([0] * 20, val=0, test=5, seed=seed)[2]] += 1
    expected, deviation = 600 * 5 / 20, (600 * 0.25 * 0.75) ** 0.5
    assert np.abs(drawn - expected).max() < 4.5 * deviation


def test_a_count_and_a_fraction_of_that_size_give_the_same_split():
    labels = strata([40, 60])
    assert np.array_equal(split(labels, val=0.1, test=0.2, seed=3)[1], split(labels, val=10, test=20, seed=3)[1])


@pytest.mark.parametrize("size", [1.0, 2.5, -0.1, -3, True, float("nan"), "0.1", None])
def test_sizes_that_make_no_sense_are_refused(size):
    with pytest.raises(InputError, match="val must be a fraction"):
        split([0] * 10, val=size, test=0.1, seed=0)


def test_too_few_samples_are_refused_with_the_numbers():
    with pytest.raises(InputError, match=r"12 samples, less 2 .* and 2 .* leave 8 .* 10 classes"):
        split([0, 0, 0, *range(1, 10)], val=0.15, test=0.15, seed=0)
    with pytest.raises(InputError, match="leave 0"):
        split([0, 0], val=1, test=1, seed=0)


@pytest.mark.parametrize(
    ("counts", "val", "test", "seed", "digest"),
    [
        ([1000, 1000], 0.15, 0.15, 0, "9d6222e698be4545"),
        ([40, 60, 7], 10, 0.2, 3, "0904481fa75d7c0e"),
        ([2, 2, 30], 0.1, 0.1, 1, "34f431c378d42655"),
        ([57], 5, 5, 2, "3014d17ed7a86fec"),
    ],
)
@pytest.mark.parametrize("groups", [None, -7])
def test_splits_are_those_of_version_0_1_also_when_every_row_is_a_group_of_its_own(
    counts, val, test, seed, digest, groups
):
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = split(labels, val=val, test=test, seed=seed, groups=groups and np.arange(len(labels)) * groups)
    held = b"|".join(part.astype("<i8").tobytes() for part in parts)
    assert hashlib.blake2b(held, digest_size=8).hexdigest() == digest


# Grouped data: for each group the classes of its samples.
GROUPED = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=3, max_size=25)


def grouped(members):
    order = np.random.default_rng(0).permutation(sum(map(len, members)))
    labels = np.concatenate(members)
    return np.unique(labels, return_inverse=True)[1][order], np.repeat(
        np.arange(len(members)), list(map(len, members))
    )[order]


def random_groups(seed, count, classes, largest=20):
    """Groups of different sizes, each with a mix of classes of its own."""
    rng = np.random.default_rng(seed)
    return grouped(
        [rng.choice(classes, rng.integers(1, largest), p=rng.dirichlet(np.full(classes, 0.7))) for _ in range(count)]
    )


def classes_of(labels, groups):
    return [set(labels[groups == group].tolist()) for group in range(groups.max() + 1)]


@settings(max_examples=100, deadline=None)
@given(GROUPED, st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 3))
def test_no_group_is_in_two_parts_and_every_class_is_trained_on_wherever_that_can_be(members, val, test, seed):
    labels, groups = grouped(members)
    total, every = len(labels), set(labels.tolist())
    sizes = [max(1, int(fraction * total + 0.5)) for fraction in (val, test)]
    assume(total - sum(sizes) >= len(every))
    its = classes_of(labels, groups)
    possible = any(
        set().union(*(own for group, own in enumerate(its) if group not in held)) == every
        for held in itertools.combinations(range(len(its)), 2)
    )
    if not possible and groups.max() + 1 < total:
        with pytest.raises(InputError, match="can be held back"):
            split(labels, val=val, test=test, seed=seed, groups=groups)
        return
    parts = split(labels, val=val, test=test, seed=seed, groups=groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(total))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    assert set(labels[parts[0]].tolist()) == every
    assert sum(len(np.unique(groups[part])) for part in parts) == groups.max() + 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_how_groups_are_numbered_does_not_matter(case, seed):
    labels, groups = random_groups(case, 20, 3)
    names = np.random.default_rng(case).choice(np.arange(-500, 500), 20, replace=False)
    for cut in (
        lambda g: split(labels, val=0.2, test=0.2, seed=seed, groups=g),
        lambda g: folds(labels, 3, seed=seed, groups=g),
    ):
        assert [part.tolist() for part in cut(groups)] == [part.tolist() for part in cut(names[groups])]


def distance(labels, parts, shares):
    """Chi-squared distance of sizes (as heavy as all classes) and classes from their shares."""
    counts = np.bincount(labels)
    table = tables(labels, parts).T
    exact = np.outer(shares, counts)
    sizes = (table.sum(1) - exact.sum(1)) ** 2 / np.array(shares) * (1 / counts).sum()
    return ((table - exact) ** 2 / exact).sum() + sizes.sum()


@pytest.mark.parametrize("parts", [3, -3])
def test_parts_of_few_groups_are_near_the_best_there_are(parts):
    better = []
    for case in range(6):
        labels, groups = random_groups(case, 7, 2, largest=9)
        rows = [np.flatnonzero(groups == group) for group in range(7)]
        counted = np.array([round(len(labels) * share) for share in (0.25, 0.2)])
        shares = [1 / 3] * 3 if parts < 0 else [1 - counted.sum() / len(labels), *(counted / len(labels))]
        its, every = classes_of(labels, groups), set(labels.tolist())
        options = []
        for choice in itertools.product(range(3), repeat=7):
            sides = [[g for g in range(7) if choice[g] != part] for part in range(3)]
            trained = sides if parts < 0 else [[g for g in range(7) if choice[g] == 0]]
            if set(choice) == {0, 1, 2} and all(set().union(*(its[g] for g in side)) == every for side in trained):
                cut = [np.concatenate([rows[g] for g in range(7) if choice[g] == part]) for part in range(3)]
                options.append(distance(labels, cut, shares))
        cut = (
            folds(labels, 3, seed=0, groups=groups)
            if parts < 0
            else split(labels, val=int(counted[0]), test=int(counted[1]), seed=0, groups=groups)
        )
        found = distance(labels, cut, shares)
        assert min(abs(found - option) for option in options) < 1e-9
        better.append(np.mean(np.array(options) < found - 1e-9))
    assert max(better) < 0.02  # of all assignments that could be made
    assert np.mean(better) < 0.005


def test_grouped_sizes_and_classes_are_near_those_asked_for():
    for case in range(20):
        labels, groups = random_groups(case, 60, 3)
        parts = split(labels, val=0.15, test=0.15, seed=case, groups=groups)
        shares = np.array([0.7, 0.15, 0.15])
        assert (np.abs([len(part) for part in parts] - shares * len(labels)) <= 2).all()
        assert (np.abs(tables(labels, parts) - np.outer(np.bincount(labels), shares)) <= 4).all()


def test_the_group_that_holds_most_is_trained_on():
    labels, groups = grouped([[0, 1] * 80, [0, 1] * 6, [1, 0], [0, 1] * 10, [0] * 5])
    for seed in range(5):
        train, _, _ = split(labels, val=0.1, test=0.1, seed=seed, groups=groups)
        assert set(np.flatnonzero(groups == 0)) <= set(train)


def test_the_seed_chooses_which_groups_are_held_out_large_or_small():
    labels, groups = random_groups(1, 30, 2)
    held = [frozenset(groups[split(labels, val=0.15, test=0.15, seed=seed, groups=groups)[2]]) for seed in range(60)]
    assert len(set(held)) > 40
    assert len(frozenset.union(*held)) >= 28


def test_many_groups_are_split_to_the_sample():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 10, 6_000), rng.integers(0, 1_500, 6_000)
    assert [len(part) for part in split(labels, val=0.1, test=0.2, seed=0, groups=groups)] == [4200, 600, 1200]
    assert {len(fold) for fold in folds(labels, 5, seed=0, groups=groups)} == {1200}


def test_very_many_single_samples_among_few_groups_stay_proportional():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 7, 5_000), np.arange(5_000)
    groups[rng.choice(5_000, 300, replace=False)] //= 40  # copies
    parts = split(labels, val=0.1, test=0.2, seed=0, groups=groups)
    assert [len(part) for part in parts] == [3500, 500, 1000]
    exact = np.outer(np.bincount(labels), [0.7, 0.1, 0.2])
    assert np.abs(tables(labels, parts) - exact).max() <= 2
    found = folds(labels, 5, seed=0, groups=groups)
    assert {len(fold) for fold in found} == {1000}
    assert np.abs(tables(labels, found) - np.bincount(labels)[:, None] / 5).max() < 2


def test_too_few_groups_are_refused():
    with pytest.raises(InputError, match="form 2 groups, too few for 3 parts"):
        split([0] * 10, val=0.2, test=0.2, seed=0, groups=[0] * 5 + [1] * 5)
    with pytest.raises(InputError, match="some class would then be missing"):
        split([0, 0, 1, 1, 2, 2], val=0, test=1, seed=0, groups=[0, 0, 1, 1, 2, 2])
    with pytest.raises(InputError, match="one number for each of the 4 samples"):
        split([0] * 4, val=0, test=1, seed=0, groups=[0, 0, 1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(2, 8), st.integers(0, 5))
def test_folds_cover_all_rows_once_and_are_even_to_one_sample(counts, k, seed):
    labels = strata(counts)
    assume(k <= len(labels))
    parts = folds(labels, k, seed=seed)
    assert len(parts) == k
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    table = tables(labels, parts)
    assert np.ptp(table.sum(0)) <= 1
    assert (np.ptp(table, axis=1) <= 1).all()


def test_every_row_is_in_every_fold_equally_often():
    labels, found = np.array([0] * 7 + [1] * 4), np.zeros((11, 3))
    for seed in range(900):
        for fold, part in enumerate(folds(labels, 3, seed=seed)):
            found[part, fold] += 1
    assert np.abs(found - 300).max() < 4.5 * (900 * 2 / 9) ** 0.5


def test_folds_depend_on_the_seed_alone():
    labels = strata([40, 60])
    first, again, other = (folds(labels, 5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    alone = folds(labels, 5, seed=1, groups=np.arange(100))
    assert all(np.array_equal(a, b) for a, b in zip(first, alone, strict=True))


@settings(max_examples=100, deadline=None)
@given(GROUPED, st.integers(2, 6), st.integers(0, 3))
def test_grouped_folds_keep_groups_whole_and_leave_every_class_to_train_on(members, k, seed):
    labels, groups = grouped(members)
    its = classes_of(labels, groups)
    assume(k <= len(its))
    try:
        parts = folds(labels, k, seed=seed, groups=groups)
    except InputError:
        if len(its) < len(labels):  # refused where some class is in a group or two only
            assert min(sum(name in own for own in its) for name in set(labels.tolist())) <= 2
        return
    assert len(parts) == k
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert sum(len(np.unique(groups[part])) for part in parts) == len(its)
    for part in parts:
        assert len(part) > 0
        assert set(np.delete(labels, part).tolist()) == set(labels.tolist())


def test_grouped_folds_are_more_even_than_sklearns():
    ours, theirs = [], []
    for case in range(30):
        labels, groups = random_groups(case, 10 + case, 1 + case % 5)
        k = 2 + case % 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of classes with few samples
            other = [
                part for _, part in StratifiedGroupKFold(k, shuffle=True, random_state=0).split(labels, labels, groups)
            ]
        for parts, found in ((folds(labels, k, seed=case, groups=groups), ours), (other, theirs)):
            table = tables(labels, parts)
            found.append([np.abs(table - table.mean(1, keepdims=True)).mean(), np.ptp(table.sum(0))])
    assert (np.mean(ours, 0) < np.mean(theirs, 0)).all()


@pytest.mark.parametrize("k", [1, 0, -2, 2.0, True, None, "5"])
def test_numbers_of_folds_that_make_no_sense_are_refused(k):
    with pytest.raises(InputError, match="a whole number from 2 on"):
        folds([0] * 10, k, seed=0)


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at most 3 folds"):
        folds([0] * 3, 4, seed=0)
    with pytest.raises(InputError, match="3 folds need at least 3 groups of samples, but there are 2"):
        folds([0] * 6, 3, seed=0, groups=[1, 1, 1, 2, 2, 2])
    with pytest.raises(InputError, match="class 7 has one sample"):
        folds([0, 0, 7], 2, seed=0)
    with pytest.raises(InputError, match="all samples of class 7 are in one group"):
        folds([0, 0, 7, 7], 2, seed=0, groups=[0, 1, 2, 2])
    with pytest.raises(InputError, match="found no 2 folds"):  # of three groups two are together
        folds([0, 1, 1, 2, 2, 0], 2, seed=0, groups=[0, 0, 1, 1, 2, 2])
