import pickle
import random as python_random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from trainwell.data import Keyed, KeyedSampler
from trainwell.data.sampler import Place
from trainwell.errors import InputError


class Noise(Dataset):
    """Draws from all three global generators."""

    name = "noise"

    def __init__(self, size=12):
        self.size, self.transform, self.told = size, None, None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return [int(index), torch.rand(()).item(), np.random.rand(), python_random.random(), torch.randn(()).item()]


class Batched(Noise):
    """As many datasets that fetch a batch at once; its noise runs on from sample to sample."""

    def __getitems__(self, indices):
        return [Noise.__getitem__(self, index) for index in indices]


def _collect(dataset, epochs=2, batch_size=5, start=(0, 0), **how):
    """Returns the noise of each sample of each epoch, as a loader gives it."""
    sampler = KeyedSampler(dataset, seed=1)
    sampler.set_epoch(*start)
    loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=list, **how)
    seen = {}
    for epoch in sampler.epochs(epochs):
        for batch in sampler.batches(loader):
            seen.update({(epoch, number): noise for number, *noise in batch})
    return seen


@pytest.fixture(scope="module")
def expected():
    """What each sample is, asked for one by one."""
    data = Keyed(Noise(), seed=3)
    return {(epoch, row): data[Place(row, epoch)][1:] for epoch in range(2) for row in range(12)}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 12},
        {"num_workers": 2},
        {"num_workers": 1, "prefetch_factor": 4},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    ],
    ids=str,
)
def test_a_sample_is_the_same_whoever_fetches_it(how, expected):
    assert _collect(Keyed(Noise(), seed=3), **how) == expected


def test_a_sample_is_the_same_after_a_resume(expected):
    rest = _collect(Keyed(Noise(), seed=3), start=(0, 5), num_workers=1)
    assert len(rest) == 12 + 7
    assert rest.items() <= expected.items()


def test_a_dataset_that_fetches_batches_is_keyed_per_sample(expected):
    assert _collect(Keyed(Batched(), seed=3)) == expected
    assert _collect(Keyed(Subset(Noise(), range(12)), seed=3), num_workers=1) == expected
    assert _collect(Keyed(ConcatDataset([Noise(12)]), seed=3)) == expected


@given(seed=st.integers(0, 9), epoch=st.integers(0, 9), row=st.integers(0, 11))
def test_every_seed_epoch_and_sample_has_its_own_noise(seed, epoch, row):
    places = {(seed, epoch, row), (0, 0, 0), (seed + 1, epoch, row), (seed, epoch + 1, row), (seed, epoch, 11 - row)}
    drawn = {tuple(Keyed(Noise(), seed=s)[Place(r, e)][1:]) for s, e, r in places}
    assert len(drawn) == len(places)


def test_the_noise_is_uniform_and_that_of_the_three_libraries_independent():
    data = Keyed(Noise(4000))
    drawn = np.array([data[row][1:4] for row in range(4000)])
    assert np.abs(drawn.mean(0) - 0.5).max() < 5 / np.sqrt(12 * 4000)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 5 / np.sqrt(4000)
    assert np.abs(np.corrcoef(drawn[:-1].T, drawn[1:].T)[:3, 3:]).max() < 5 / np.sqrt(4000)  # neighbours


class Coins(Noise):
    def __getitem__(self, index):
        return int(torch.randint(2, ())), np.random.randint(2), python_random.randrange(2)


def test_libraries_with_the_same_algorithm_do_not_toss_the_same_coins():
    coins = np.array([Keyed(Coins(1000))[row] for row in range(1000)])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((coins[:, one] == coins[:, other]).mean() - 0.5) < 0.1  # 6 standard deviations


def test_the_main_processes_generators_are_left_as_they_were_even_after_an_error():
    def states():
        numpy_state = np.random.get_state()
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], python_random.getstate()

    torch.randn(1), np.random.randn(), python_random.gauss(0, 1)  # each keeps half a pair of normal numbers
    before = states()
    data = Keyed(Noise())
    data[3], next(iter(DataLoader(data, 4, generator=torch.Generator())))
    assert states() == before
    with pytest.raises(TypeError):
        Keyed(Noise())["three"]
    with pytest.raises(IndexError):
        Keyed([1, 2])[2]
    assert states() == before


def test_plain_numbers_are_of_the_epoch_that_was_set_and_negative_ones_count_from_the_end(expected):
    data = Keyed(Noise(), seed=3)
    assert data[5][1:] == expected[0, 5] == data[np.int64(5)][1:] == data[torch.tensor(5)][1:]
    assert data[-7][1:] == expected[0, 5]
    data.set_epoch(1)
    assert data[5][1:] == expected[1, 5]
    assert data[Place(5, 0)][1:] == expected[0, 5]


def test_it_is_otherwise_its_dataset_also_when_pickled():
    data = pickle.loads(pickle.dumps(Keyed(Noise(7), seed=3)))
    assert (len(data), data.name, data.seed, data.size) == (7, "noise", 3, 7)
    data.transform = "flip"
    assert data.dataset.transform == "flip"
    assert not hasattr(data, "no_such")
    data.dataset.set_epoch = lambda epoch: setattr(data.dataset, "told", epoch)
    data.set_epoch(4)
    assert data.told == 4


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("data", [Stream(), {1, 2}, 5])
def test_what_has_no_numbered_samples_is_refused(data):
    with pytest.raises(InputError, match="numbered samples"):
        Keyed(data)
