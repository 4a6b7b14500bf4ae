import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from trainwell.data.split import split
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
