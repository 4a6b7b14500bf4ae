import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from trainwell.augment import strong
from trainwell.data import Batches, Images, Part, statistics

RNG = np.random.default_rng(0)


def _images(count=40, shape=(8, 8, 3)):
    return Images.from_array(RNG.integers(0, 256, (count, *shape), dtype=np.uint8))


def _part(count=40):
    return Part(_images(count), np.arange(count), np.arange(0, count, 2))


STRONG = strong(pca=0.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_a_sample_is_a_function_of_seed_epoch_and_sample(batch_size, threads):
    part = _part()
    reference = Batches(part, 20, shuffle=True, seed=3, augment=STRONG).batch(5, 0)
    expected = {int(y): x for x, y in zip(*reference, strict=True)}
    try:
        torch.set_num_threads(threads)
        batches = Batches(part, batch_size, shuffle=True, seed=3, augment=STRONG)
        seen = [(int(label), image) for x, y in batches.epoch(5) for image, label in zip(x, y, strict=True)]
    finally:
        torch.set_num_threads(1)
    assert [label for label, _ in seen] == [int(y) for y in reference[1]]  # the order, too
    assert all(torch.equal(image, expected[label]) for label, image in seen)


def test_other_epochs_and_seeds_give_other_orders_and_changes():
    part = _part()
    orders = {
        tuple(Batches(part, 20, shuffle=True, seed=seed).rows(epoch, 0)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    a, b = (Batches(part, 20, seed=0, augment=STRONG).batch(epoch, 0)[0] for epoch in (0, 1))
    assert not torch.equal(a, b)


@given(st.integers(1, 50), st.integers(1, 60), st.booleans())
def test_an_epoch_holds_every_sample_once_and_an_end_is_dropped_only_if_asked(count, batch_size, drop_last):
    part = Part(np.zeros((count, 2), np.float32), np.arange(count), np.arange(count))
    batches = Batches(part, batch_size, shuffle=True, drop_last=drop_last)
    seen = [int(label) for _, y in batches.epoch(0) for label in y]
    assert len(list(batches.epoch(0))) == len(batches) > 0
    assert len(set(seen)) == len(seen)
    assert len(seen) == (count - count % min(batch_size, count) if drop_last else count)


def test_what_has_one_order_is_gone_through_without_an_epoch():
    assert [int(label) for _, y in Batches(_part(), 6) for label in y] == list(range(0, 40, 2))
    with pytest.raises(TypeError, match="epoch"):
        iter(Batches(_part(), 6, shuffle=True))


def test_an_epoch_goes_on_at_any_batch():
    batches = Batches(_part(), 6, shuffle=True)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[2:], rest, strict=True))
    with pytest.raises(IndexError, match="4 batches"):
        batches.batch(0, 4)


def test_batches_survive_pickling_and_a_copy_with_another_seed_has_its_own_order():
    batches = Batches(_part(), 6, shuffle=True, seed=1)
    expected = batches.batch(3, 1)
    again = pickle.loads(pickle.dumps(batches)).batch(3, 1)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    other = copy.copy(batches)
    other.seed = 2
    assert np.array_equal(other.rows(3, 1), Batches(_part(), 6, shuffle=True, seed=2).rows(3, 1))


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Batches(_part(), 0)


def test_images_are_normalised_by_the_training_part():
    part = _part()
    mean, std = statistics(part)
    pixels = np.stack([part.inputs[int(i)] for i in part.indices]) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-12)
    x = Batches(part, 20).batch(0, 0)[0]
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), (pixels - mean) / std, atol=1e-5)


def test_features_are_standardised_as_scikit_learn_does():
    values = RNG.normal(3, 5, (30, 4)).astype(np.float32)
    values[:, 2] = 7  # a constant column divides by 1
    part = Part(values, np.zeros(30), np.arange(20))
    x = Batches(part, 20).batch(0, 0)[0]
    np.testing.assert_allclose(x.numpy(), StandardScaler().fit_transform(values[:20].astype(float)), atol=1e-5)


def test_figures_of_many_features_are_those_of_all_at_once():
    values = (RNG.normal(1e3, 1, (20_000, 3)) * [1, 10, 0.01]).astype(np.float32)
    mean, std = statistics(Part(values, np.zeros(20_000), np.arange(0, 20_000, 2)))
    np.testing.assert_allclose(mean, values[::2].astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, values[::2].astype(float).std(0), rtol=1e-9)


def test_features_with_channels_are_standardised_by_channel():
    values = RNG.normal(3, 5, (30, 2, 4, 4)).astype(np.float32)
    x = Batches(Part(values, np.zeros(30), np.arange(30)), 30).batch(0, 0)[0]
    np.testing.assert_allclose(x.mean((0, 2, 3)).numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 2, 3), correction=0).numpy(), 1, atol=1e-5)


def test_grey_among_coloured_images_counts_in_each_channel():
    grey, red = np.full((2, 2, 1), 51, np.uint8), np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    part = Part(Images.from_list([grey, red]), np.zeros(2), np.arange(2))
    np.testing.assert_allclose(statistics(part)[0], [0.6, 0.1, 0.1])


def test_images_of_different_sizes_need_a_size():
    part = Part(
        Images.from_list([np.zeros((2, 2, 1), np.uint8), np.zeros((3, 2, 1), np.uint8)]), np.zeros(2), np.arange(2)
    )
    with pytest.raises(ValueError, match="size="):
        Batches(part, 2)
    assert Batches(part, 2, size=(4, 4)).batch(0, 0)[0].shape == (2, 1, 4, 4)


def test_balanced_batches_hold_all_classes_equally_often():
    targets = np.repeat([0, 1, 2], [900, 90, 10]).astype(np.int64)
    part = Part(np.arange(1000, dtype=np.float32)[:, None], targets, np.arange(1000))
    batches = Batches(part, 100, balanced=True, seed=3)
    seen = torch.cat([y for _, y in batches.epoch(0)])
    assert sorted(torch.bincount(seen).tolist()) == [333, 333, 334]
    rows = np.concatenate([batches.rows(0, number) for number in range(10)])
    assert set(np.bincount(rows, minlength=1000)[990:]) <= {33, 34}  # each of the ten rare ones
    assert not np.array_equal(rows, np.concatenate([batches.rows(1, number) for number in range(10)]))
    assert np.array_equal(batches.rows(0, 4), Batches(part, 100, balanced=True, seed=3).rows(0, 4))


def test_a_sample_that_comes_again_in_an_epoch_is_changed_otherwise():
    part = Part(_images(40), np.arange(40) // 36, np.arange(40))  # 36 of one class, 4 of the other
    batches = Batches(part, 8, balanced=True, seed=3, augment=STRONG)
    rows = np.concatenate([batches.rows(0, number) for number in range(5)])
    images = torch.cat([batches.batch(0, number)[0] for number in range(5)])
    for row in range(36, 40):
        same = images[rows == row]
        assert len(same) == 5
        assert len({image.numpy().tobytes() for image in same}) == 5
    again = Batches(part, 8, balanced=True, seed=3, augment=STRONG).batch(0, 3)[0]
    assert torch.equal(again, images[24:32])


def test_only_classes_can_be_balanced():
    with pytest.raises(ValueError, match="one class each"):
        Batches(Part(np.zeros((4, 1), np.float32), np.zeros(4, np.float32), np.arange(4)), 2, balanced=True)


def test_a_constant_column_is_divided_by_one_in_float64_too():
    part = Part(np.full((1001, 1), 0.1), np.zeros(1001), np.arange(1001))
    assert statistics(part)[1].tolist() == [1.0]
