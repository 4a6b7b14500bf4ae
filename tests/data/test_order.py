import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.order import balanced, shuffled
from trainwell.errors import InputError

LABELS = st.lists(st.integers(0, 5), max_size=60)
EPOCHS = st.integers(0, 1000)


@given(count=st.integers(0, 100), seed=st.integers(0, 2**64 - 1), epoch=EPOCHS)
def test_shuffled_is_a_permutation_and_cannot_be_changed(count, seed, epoch):
    rows = shuffled(count, seed, epoch)
    assert sorted(rows) == list(range(count))
    assert rows.dtype == np.int64
    assert not rows.flags.writeable


def test_shuffled_depends_on_seed_and_epoch():
    orders = {tuple(shuffled(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(labels=LABELS, seed=st.integers(0, 9), epoch=EPOCHS)
def test_balanced_has_every_class_and_within_it_every_sample_equally_often(labels, seed, epoch):
    rows = balanced(labels, seed, epoch)
    assert len(rows) == len(labels)
    times = np.bincount(rows, minlength=len(labels))
    per_class = [[times[row] for row, label in enumerate(labels) if label == cls] for cls in sorted(set(labels))]
    for ones in per_class:
        assert max(ones) - min(ones) <= 1
    totals = [sum(ones) for ones in per_class]
    assert not totals or max(totals) - min(totals) <= 1


def test_balanced_is_a_function_of_seed_and_epoch_and_mixes_the_classes():
    labels = np.repeat([0, 1], [180, 20])
    orders = [balanced(labels, seed, epoch) for seed in range(2) for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(balanced(labels, 1, 1), orders[-1])
    halves = labels[orders[0]].reshape(2, 100).sum(axis=1)  # of 100 draws from 200, half ones: 50 ± 3.5
    assert all(abs(half - 50) < 20 for half in halves)


def test_balanced_leaves_no_sample_out_for_ever_and_shares_the_odd_one():
    labels = np.repeat([0, 1, 2], [30, 3, 1])  # 34: one class of three has 12, the others 11
    seen: set[int] = set()
    largest = set()
    for epoch in range(40):
        rows = balanced(labels, 0, epoch)
        seen |= set(rows)
        largest.add(int(np.argmax(np.bincount(labels[rows]))))
    assert seen == set(range(34))
    assert largest == {0, 1, 2}


def test_labels_of_any_kind_and_none_that_make_no_sense():
    assert sorted(balanced(["b", "a"], 0, 0)) == [0, 1]
    with pytest.raises(InputError, match="one class a sample"):
        balanced(np.zeros((4, 2)), 0, 0)
