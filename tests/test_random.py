import random as python_random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainwell import InputError, random


def test_mix_is_splitmix64():
    # The first outputs for seed 1234567 of the reference implementation in C (S. Vigna, splitmix64.c).
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * golden) % 2**64 for i in range(3)], np.uint64)
    assert random.splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5), max_size=4))
def test_key_is_a_function_of_its_place(where):
    assert random.key(*where) == random.key(*where)
    assert random.key(*where, 0) != random.key(*where, 1)
    assert random.key(*where, "a") != random.key(*where)


@pytest.mark.parametrize("number", [np.int32(7), np.uint64(7), torch.tensor(7), np.array(7)], ids=repr)
def test_a_whole_number_of_any_library_is_the_same_place(number):
    assert random.key("x", number) == random.key("x", 7)


@pytest.mark.parametrize("part", [0.4, 3.0, np.float32(1), torch.tensor(0.5), None, torch.tensor([1, 2])], ids=repr)
def test_a_place_that_would_be_cut_to_a_whole_number_is_refused(part):
    with pytest.raises(InputError, match="^a place is made of whole numbers and words, not ") as caught:
        random.key(0, part)
    assert "\n" not in str(caught.value)


def test_rows_that_are_fractions_are_refused_and_none_are_none():
    with pytest.raises(InputError, match="^rows are whole numbers, such as those of samples, not float64$"):
        random.keys(1, [0.5, 1.0])
    assert random.keys(1, []).shape == (0,)


def test_keys_continue_a_place():
    assert random.keys(random.key(3, "x"), [0, 7]).tolist() == [random.key(3, "x", 0), random.key(3, "x", 7)]


def test_uniform_is_uniform_and_rows_and_columns_are_independent():
    draws = random.uniform(random.keys(random.key(0), np.arange(4_000)), 5)
    assert 0 <= draws.min() < draws.max() < 1
    for column in range(5):
        assert stats.kstest(draws[:, column], "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.c_[draws[:-1], draws[1:]].T) - np.eye(10)
    assert np.abs(correlation).max() < 0.07  # 4.4 standard errors


def test_uniform_of_a_row_depends_on_nothing_else():
    all_rows = random.uniform(random.keys(random.key(1), np.arange(10)), 8)
    assert (random.uniform(random.keys(random.key(1), [7]), 3) == all_rows[7:8, :3]).all()


@given(st.integers(0, 200), st.integers(0, 2**32))
def test_permutation_holds_everything_once(size, seed):
    assert sorted(random.permutation(size, seed).tolist()) == list(range(size))


def test_permutations_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6_000):
        order = tuple(random.permutation(3, 0, "order", epoch).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def _draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), python_random.random()


def test_seed_everything_sets_every_global_generator():
    random.seed_everything(5, "step", 9)
    first = _draws()
    random.seed_everything(5, "step", 10)
    second = _draws()
    random.seed_everything(5, "step", 9)
    assert _draws() == first
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_preserved_puts_the_generators_back_even_after_an_error():
    random.seed_everything(1)
    expected = _draws()
    random.seed_everything(1)
    with pytest.raises(RuntimeError), random.preserved():
        _draws()
        random.seed_everything(2)
        raise RuntimeError
    assert _draws() == expected


def test_torch_and_numpy_do_not_toss_the_same_coins():
    same = 0
    with random.preserved():
        for step in range(200):
            random.seed_everything(0, "step", step)
            same += int(torch.randint(0, 2, ())) == np.random.randint(0, 2)
    assert 60 < same < 140  # each of their generators is the Mersenne twister; from one seed they agree always
