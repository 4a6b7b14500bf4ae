import itertools
import multiprocessing
import os
import pickle
import random as python_random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from ranks import train
from trainwell import random
from trainwell.data import KeyedSampler
from trainwell.data.sampler import Place
from trainwell.errors import InputError

SIZES, REPLICAS = st.integers(0, 40), st.integers(1, 5)


def _replicas(size, replicas, **how):
    return [KeyedSampler(size, num_replicas=replicas, rank=rank, **how) for rank in range(replicas)]


# ---------------------------------------------------------------------- the order


@given(size=SIZES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_one_replica_has_the_order_of_seed_and_epoch(size, seed, epoch):
    sampler = KeyedSampler(size, seed=seed)
    sampler.set_epoch(epoch)
    places = list(sampler)
    assert places == random.permutation(size, seed, "order", epoch).tolist()
    assert {place.epoch for place in places} <= {epoch}
    assert len(sampler) == size


@given(size=SIZES, replicas=REPLICAS)
def test_unshuffled_it_is_torchs_distributed_sampler(size, replicas):
    for uneven, drop_last in (("drop", True), ("pad", False)):
        for rank, sampler in enumerate(_replicas(size, replicas, shuffle=False, uneven=uneven)):
            if size >= replicas or not drop_last:
                theirs = DistributedSampler(range(size), replicas, rank, shuffle=False, drop_last=drop_last)
                assert list(sampler) == list(theirs)
                assert len(sampler) == len(theirs)


@given(size=SIZES, replicas=REPLICAS)
def test_replicas_are_disjoint_and_together_what_was_asked_for(size, replicas):
    kept = [list(sampler) for sampler in _replicas(size, replicas, uneven="keep")]
    assert sorted(itertools.chain(*kept)) == list(range(size))
    dropped = [list(sampler) for sampler in _replicas(size, replicas)]
    assert {len(rows) for rows in dropped} == {size // replicas}
    assert len(set(itertools.chain(*dropped))) == size // replicas * replicas
    assert [len(s) for s in _replicas(size, replicas, uneven="keep")] == [len(rows) for rows in kept]


@given(
    size=SIZES,
    replicas=REPLICAS,
    uneven=st.sampled_from(["drop", "pad", "keep"]),
    steps=st.integers(0, 10),
    labels=st.booleans(),
)
def test_a_position_splits_every_replicas_share_in_two(size, replicas, uneven, steps, labels):
    how = {"labels": np.arange(size) % 3} if labels else {}
    for sampler in _replicas(size, replicas, uneven=uneven, **how):
        sampler.set_epoch(2)
        whole = list(sampler)
        sampler.set_epoch(2, start=steps * replicas)
        assert list(sampler) == whole[steps:]


def test_with_labels_the_order_is_balanced():
    labels = np.repeat([0, 1], [30, 10])
    places = list(KeyedSampler(40, labels=labels))
    assert np.bincount(labels[places]).tolist() == [20, 20]


def test_a_place_is_its_number_and_keeps_its_epoch_when_sent_to_a_worker():
    place = pickle.loads(pickle.dumps(Place(7, 3)))
    assert (place, place.epoch, type(place)) == (7, 3, Place)
    assert np.arange(10)[place] == torch.arange(10)[place] == list(range(10))[place] == 7
    assert len(pickle.dumps(place)) < 100


# ---------------------------------------------------------------------- the position


def _rest(sampler, loader, epochs):
    """Goes through what is left; returns (epoch, taken, batch) of each step."""
    return [
        (epoch, sampler.taken, batch.tolist()) for epoch in sampler.epochs(epochs) for batch in sampler.batches(loader)
    ]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 4, 10, 12])
def test_from_every_position_the_rest_is_that_of_a_run_that_never_stopped(size, drop_last):
    data = torch.arange(size)

    def new():
        sampler = KeyedSampler(data, seed=3)
        return sampler, DataLoader(data, 4, sampler=sampler, drop_last=drop_last)

    sampler, loader = new()
    states, whole = [], []
    for epoch in sampler.epochs(3):
        states.append((len(whole), sampler.state_dict()))
        for batch in sampler.batches(loader):
            whole.append((epoch, sampler.taken, batch.tolist()))
            states.append((len(whole), sampler.state_dict()))
        states.append((len(whole), sampler.state_dict()))
    assert len(whole) == 3 * len(loader)
    for done, state in states:
        again, loader = new()
        again.load_state_dict(state)
        assert _rest(again, loader, 3) == whole[done:]


def test_the_end_of_an_epoch_is_run_again_only_if_it_was_not_saved():
    data = torch.arange(4)
    sampler = KeyedSampler(data)
    loader = DataLoader(data, 2, sampler=sampler)
    for _ in sampler.epochs(1):
        for _ in sampler.batches(loader):
            in_the_body = sampler.state_dict()
        after_it = sampler.state_dict()
    for state, ends in ((in_the_body, [0, 1]), (after_it, [1])):
        again = KeyedSampler(data)
        again.load_state_dict(state)
        ended = []
        for epoch in again.epochs(2):
            batches = list(again.batches(DataLoader(data, 2, sampler=again)))
            assert len(batches) == (0 if epoch == 0 else 2)
            ended.append(epoch)
        assert ended == ends


def test_a_break_ends_the_epoch():
    data = torch.arange(6)
    sampler = KeyedSampler(data)
    loader = DataLoader(data, 2, sampler=sampler)
    taken = []
    for _ in sampler.epochs(2):
        for _ in sampler.batches(loader):
            taken.append((sampler.epoch, sampler.taken))
            break
    assert taken == [(0, 2), (1, 2)]
    assert list(sampler.epochs(2)) == []


def test_a_loop_of_epochs_alone_goes_on_too():
    assert list(KeyedSampler(3).epochs(3)) == [0, 1, 2]


@given(
    size=st.integers(1, 60),
    steps=st.integers(0, 5),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
)
def test_another_number_of_replicas_goes_on_with_the_same_global_batches(size, steps, before, after):
    def global_batches(replicas, start):
        """Returns the samples of each step, by all replicas together."""
        loaders = []
        for sampler in _replicas(size, replicas, seed=1):
            sampler.load_state_dict(start)
            loader = DataLoader(range(size), 8 // replicas, sampler=sampler, drop_last=True)
            loaders.append((sampler, sampler.batches(loader)))
        for parts in zip(*(batches for _, batches in loaders), strict=True):
            yield sorted(torch.cat(parts).tolist()), loaders[0][0].state_dict()

    fresh = KeyedSampler(size, seed=1).state_dict()
    whole = list(global_batches(1, fresh))
    state = (list(global_batches(before, fresh))[:steps] or [(None, fresh)])[-1][1]
    done = state["taken"] // 8
    assert [batch for batch, _ in global_batches(after, state)] == [batch for batch, _ in whole[done:]]


def test_the_global_generators_are_left_as_they_were():
    data = torch.arange(6)
    sampler = KeyedSampler(data)
    loader = DataLoader(data, 2, sampler=sampler)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), python_random.getstate()
    _rest(sampler, loader, 2)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), python_random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(())


def test_workers_have_new_noise_each_epoch_though_the_global_generator_stands_still():
    sampler = KeyedSampler(4)
    loader = DataLoader(Draws(), 2, sampler=sampler, num_workers=1)
    seen = [value for _ in sampler.epochs(2) for batch in sampler.batches(loader) for value in batch.tolist()]
    assert len(set(seen)) == 8


# ---------------------------------------------------------------------- what is refused


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KeyedSampler(Stream()), "numbered samples"),
        (lambda: KeyedSampler(iter([1])), "numbered samples"),
        (lambda: KeyedSampler(3, uneven="both"), "uneven must be"),
        (lambda: KeyedSampler(3, rank=0), "both num_replicas and rank"),
        (lambda: KeyedSampler(3, num_replicas=2, rank=2), "rank 2 is not one of 2"),
        (lambda: KeyedSampler(3, labels=[0, 1]), "3 samples and 2 labels"),
        (lambda: KeyedSampler(2, labels=[0, 1], shuffle=False), "balanced order is a random one"),
        (lambda: KeyedSampler(2).set_epoch(-1), "count from 0"),
        (lambda: KeyedSampler(2).load_state_dict(KeyedSampler(3).state_dict()), "size was 3 and is 2 now"),
        (lambda: KeyedSampler(2).load_state_dict(KeyedSampler(2, seed=1).state_dict()), "seed was 1 and is 0 now"),
        (
            lambda: KeyedSampler(2).load_state_dict(KeyedSampler(2, shuffle=False).state_dict()),
            "order was 'sequential'",
        ),
        (
            lambda: KeyedSampler(2, labels=[0, 1]).load_state_dict(KeyedSampler(2, labels=[1, 1]).state_dict()),
            "labels are other ones",
        ),
        (lambda: KeyedSampler(2).load_state_dict({}), "another order"),
    ],
)
def test_what_makes_no_sense_is_one_line(make, said):
    with pytest.raises(InputError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_loaders_that_take_their_samples_from_elsewhere_are_refused():
    data = TensorDataset(torch.arange(6))
    sampler = KeyedSampler(data)
    loaders = {
        "not a torch DataLoader": [1, 2],
        "IterableDataset": DataLoader(Stream(), 2),
        "RandomSampler as its sampler": DataLoader(data, 2, sampler=RandomSampler(data)),
        "SequentialSampler as its sampler": DataLoader(data, 2),
        "batch_sampler of its own": DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False)),
        "batch_size=None": DataLoader(data, batch_size=None, sampler=sampler),
        "5 samples and the sampler 6": DataLoader(TensorDataset(torch.arange(5)), 2, sampler=sampler),
        "in_order=False": DataLoader(data, 2, sampler=sampler, in_order=False),
    }
    for said, loader in loaders.items():
        with pytest.raises(InputError, match=said) as error:
            next(sampler.batches(loader))
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- several processes


def _ranks(folder, ranks, stop=0):
    """Trains with so many processes; returns the samples of each step, and the ranks' noise, weights and warnings."""
    context = multiprocessing.get_context("forkserver")  # a fork of this process, which has threads, could hang
    context.set_forkserver_preload(["torch", "torch._dynamo", "trainwell.data.sampler", "trainwell.train.checkpoint"])
    said = context.Queue()
    meeting = folder.parent / f"meeting-{os.urandom(4).hex()}"
    processes = [
        context.Process(target=train, args=(folder, meeting, rank, ranks, stop, said)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    results = sorted(said.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    _, rows_of, warned, noise, weights = zip(*results, strict=True)
    steps = [sorted(itertools.chain(*(rows[step] for rows in rows_of))) for step in rows_of[0]]
    return steps, noise, weights, warned[0]


def test_two_ranks_are_complete_and_resume_to_the_bits(tmp_path):
    steps, noise, weights, _ = _ranks(tmp_path / "whole", 2)
    assert len(steps) == 12
    assert sorted(itertools.chain(*steps[:6])) == list(range(22))
    assert noise[0] != noise[1]
    assert weights[0] == weights[1]
    first, *_ = _ranks(tmp_path / "cut", 2, stop=8)
    rest, *ends = _ranks(tmp_path / "cut", 2)
    assert first + rest == steps
    assert ends == [noise, weights, []]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_at_the_same_sample_with_other_ranks(before, after, tmp_path):
    steps, *_ = _ranks(tmp_path / "whole", after)
    first, *_ = _ranks(tmp_path / "cut", before, stop=8)
    rest, noise, weights, warned = _ranks(tmp_path / "cut", after)
    assert first + rest == steps
    assert len(set(noise)) == after  # a new rank has noise of its own
    assert weights.count(weights[0]) == after
    [warning] = warned
    assert f"saved on {before} ranks and resumed on {after}" in warning
