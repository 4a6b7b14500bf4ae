"""The random words that masks are made of: fair, independent of each other, and the same on every path."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainwell import random
from trainwell.regularize import masks
from trainwell.regularize.noise import splitmix64


def keys_of(n, seed=0):
    return splitmix64(torch.arange(n) + seed * 1_000_003)


def test_mixing_is_that_of_the_streams():
    x = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    ours = splitmix64(torch.from_numpy(x.view(np.int64))).numpy().view(np.uint64)
    assert ours.tolist() == random.splitmix64(x).tolist()


def test_every_byte_of_the_words_is_uniform():
    words = masks.words(keys_of(64), 4096).reshape(-1)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 255, minlength=256).numpy()
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_the_fraction_dropped_is_p(p):
    kept = masks.kept(keys_of(100), 10_000, p)
    assert stats.binomtest(int((~kept).sum()), kept.numel(), p).pvalue > 1e-4
    per_row = (~kept).sum(1).double()  # and as spread over the rows as independent draws are
    assert stats.chi2.cdf(float(((per_row - 1e4 * p) ** 2 / (1e4 * p * (1 - p))).sum()), 100) == pytest.approx(
        0.5, abs=0.499
    )


def test_masks_of_neighbours_in_every_direction_are_independent():
    n, count = 256, 4096
    by_row = masks.kept(keys_of(n), count, 0.5).double() * 2 - 1
    by_step = masks.kept(keys_of(n, seed=1), count, 0.5).double() * 2 - 1
    bound = 4.5 / (n * count) ** 0.5
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 256, 1024):
        assert abs((by_row[:, lag:] * by_row[:, :-lag]).mean()) < bound * (count / (count - lag)) ** 0.5
        if lag < n:
            assert abs((by_row[lag:] * by_row[:-lag]).mean()) < bound * (n / (n - lag)) ** 0.5
    assert abs((by_row * by_step).mean()) < bound


def test_masks_of_keys_that_differ_in_one_bit_are_independent():
    first = masks.kept(torch.tensor([123456789]), 1 << 16, 0.5).double() * 2 - 1
    for bit in range(63):
        other = masks.kept(torch.tensor([123456789 ^ (1 << bit)]), 1 << 16, 0.5).double() * 2 - 1
        assert abs((first * other).mean()) < 4.5 / 256


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 5), (7,), (4, 6, 5, 7), (5, 1, 9, 9), (2, 3, 50), (1, 70_000), (2, 8, 100, 100), (0, 3)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("maps", [False, True])
def test_the_compiled_pass_is_the_reference_to_the_bit(dtype, shape, layout, maps):
    if maps and len(shape) < 3:
        shape = (*shape, 2, 2)
    if layout == torch.channels_last and len(shape) != 4:
        layout = torch.preserve_format
    x = torch.randn(shape).to(dtype).clone(memory_format=layout)
    keys = keys_of(shape[0])
    ours = masks.drop(x, keys, 0.3, 1 / 0.7, maps=maps)
    reference = masks.drop(x, keys, 0.3, 1 / 0.7, maps=maps, kernel="reference")
    assert torch.equal(ours, reference)
    assert ours.dtype == x.dtype
    assert ours.stride() == x.stride()


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.integers(0, 2),
    st.permutations(range(5)),
)
def test_any_shape_and_order_in_memory(shape, p, kind, order):
    torch.manual_seed(0)
    order = [dim for dim in order if dim < len(shape)]
    x = torch.randn([shape[dim] for dim in order]).to(DTYPES[kind]).permute(np.argsort(order).tolist())
    assert x.shape == tuple(shape)
    keys = keys_of(shape[0])
    ours = masks.drop(x, keys, p, 1.5)
    assert torch.equal(ours, masks.drop(x, keys, p, 1.5, kernel="reference"))
    assert torch.equal(ours, masks.drop(x.contiguous(), keys, p, 1.5))  # however it lies in memory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_so_where_it_is_kept(dtype):
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38]] * 500).to(dtype)
    ours = masks.drop(x, keys_of(500), 0.5, 2.0)
    torch.testing.assert_close(ours, masks.drop(x, keys_of(500), 0.5, 2.0, kernel="reference"), equal_nan=True)
    assert 150 < ours[:, 0].isnan().sum() < 350
    assert ours[:, 1].isinf().sum() + (ours[:, 1] == 0).sum() == 500


def test_threads_change_nothing():
    before = torch.get_num_threads()
    x, keys = torch.randn(3, 200_001), keys_of(3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(masks.drop(x, keys, 0.4, 1.0))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_it_works_without_numba(monkeypatch):
    x, keys = torch.randn(5, 40), keys_of(5)
    compiled = masks.drop(x, keys, 0.4, 1.0)
    monkeypatch.setattr(masks, "_compiled", dict)
    assert torch.equal(masks.drop(x, keys, 0.4, 1.0), compiled)
