"""Fractional max pooling: the paper's regions, torch's op where both are the same, and what stands for the average."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.autograd import forward_ad as fwAD
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from trainwell import InputError
from trainwell.regularize import FractionalMaxPool2d, keyed, pooling, sampling
from trainwell.regularize.noise import splitmix64

MODES = pytest.mark.parametrize("mode", ["random", "pseudorandom"])
OVERLAPPING = pytest.mark.parametrize("overlapping", [True, False])


def by_hand(x, rows, columns, overlapping):
    """The maxima over the regions between borders, in loops."""
    more = 1 if overlapping else 0
    return torch.stack([
        torch.stack([x[..., a : b + more, c : d + more].amax((-2, -1)) for c, d in itertools.pairwise(columns)], -1)
        for a, b in itertools.pairwise(rows)
    ], -2)  # fmt: skip


@MODES
@OVERLAPPING
@pytest.mark.parametrize("size", [(9, 10), (10, 7)])
def test_the_maxima_over_the_papers_regions(mode, overlapping, size):
    x = torch.randn(4, 3, *size)
    layer = FractionalMaxPool2d(output_size=(6, 5), mode=mode, overlapping=overlapping)
    with keyed(layer, 0):
        out, keys = layer(x), layer.row_keys(x)
    ways = [side - 1 if overlapping else side for side in size]
    borders = [layer._borders(side, to, k, keys, x) for k, (side, to) in enumerate(zip(size, (6, 5), strict=True))]
    for i in range(4):
        rows, columns = (b[i].tolist() for b in borders)
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, ways[0], 0, ways[1])
        assert {b - a for a, b in itertools.pairwise(rows)} <= {1, 2}
        assert torch.equal(out[i], by_hand(x[i], rows, columns, overlapping))
    assert len({tuple(row) for row in borders[0].tolist() + borders[1].tolist()}) > 2  # drawn for each row and side


@given(st.integers(1, 60), st.data())
def test_borders_are_one_or_two_apart_and_reach_the_end(steps, data):
    way = data.draw(st.integers(steps, 2 * steps))
    u = torch.tensor([0, 2**31, 2**32 - 1, data.draw(st.integers(0, 2**32 - 1))])
    for borders in (pooling.pseudorandom_borders(u, way, steps), pooling.random_borders(torch.arange(4), way, steps)):
        assert (borders[:, 0] == 0).all()
        assert (borders[:, -1] == way).all()
        assert set(borders.diff(dim=1).unique().tolist()) <= {1, 2}


def test_pseudorandom_borders_are_the_papers_formula():
    for u in (0.1, 0.37, 0.9):
        alpha = 25 / 18
        formula = [math.ceil(alpha * (i + u)) for i in range(19)]
        borders = pooling.pseudorandom_borders(torch.tensor([round(u * 2**32)]), 25, 18)[0]
        assert borders.tolist() == [a - formula[0] for a in formula]


def test_every_order_of_ones_and_twos_is_as_likely():
    borders = pooling.random_borders(splitmix64(torch.arange(20_000)), 7, 5)  # two twos among five: ten orders
    counts = torch.unique(borders, dim=0, return_counts=True)[1]
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@MODES
@pytest.mark.parametrize(
    ("size", "to", "kernel", "overlapping"),
    [
        ((12, 8), (6, 4), 2, False),  # two pixels wide, side by side
        ((13, 9), (6, 4), 3, True),  # three pixels wide, two apart
        ((7, 9), (6, 8), 2, True),  # two pixels wide, one apart
    ],
)
def test_it_is_torchs_op_where_that_has_the_same_regions_whatever_is_drawn(mode, size, to, kernel, overlapping):
    x = torch.randn(3, 2, *size)
    theirs = F.fractional_max_pool2d(x, kernel, output_size=to)
    layer = FractionalMaxPool2d(output_size=to, mode=mode, overlapping=overlapping)
    assert torch.equal(layer(x), theirs)
    assert torch.equal(layer.eval()(x), theirs)


@MODES
@OVERLAPPING
def test_evaluation_is_always_the_same_and_sampling_is_not(mode, overlapping):
    layer, x = FractionalMaxPool2d(mode=mode, overlapping=overlapping), torch.randn(2, 3, 25, 25)
    training = layer(x)
    assert not torch.equal(layer(x), training)
    layer.eval()
    first = layer(x)
    assert first.shape == training.shape == (2, 3, 17, 17)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x[:1]), first[:1])
    with sampling(layer):
        assert not torch.equal(layer(x), layer(x))
    borders = layer._borders(25, 17, 0, None, x)[0].tolist()
    assert torch.equal(first, by_hand(x, borders, borders, overlapping))


@MODES
def test_each_row_has_the_regions_of_its_place_in_the_batch(mode):
    layer, x = FractionalMaxPool2d(mode=mode), torch.randn(1, 3, 25, 25).expand(6, -1, -1, -1)
    with keyed(layer, 0):
        whole = layer(x)
    with keyed(layer, 0, rows=range(2, 6)):
        assert torch.equal(layer(x[2:]), whole[2:])
    assert not torch.equal(whole[0], whole[1])


@MODES
@OVERLAPPING
def test_the_gradient_goes_to_the_maxima(mode, overlapping):
    layer = FractionalMaxPool2d(mode=mode, overlapping=overlapping)
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)

    def pooled(x):
        with keyed(layer, 0):
            return layer(x)

    assert torch.autograd.gradcheck(pooled, x)


@MODES
def test_derivatives_of_derivatives_and_forward_ones(mode):
    layer, x = FractionalMaxPool2d(mode=mode), torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)

    def pooled(x):
        with keyed(layer, 0):
            return layer(x) ** 2

    assert torch.autograd.gradgradcheck(pooled, x)
    assert torch.autograd.gradcheck(pooled, x, check_forward_ad=True)
    with fwAD.dual_level():  # forward over reverse, and reverse over forward, are each other
        direction = torch.randn_like(x)
        dual = fwAD.make_dual(x, direction)
        forward_over_reverse = fwAD.unpack_dual(torch.autograd.grad(pooled(dual).sum(), dual, create_graph=True)[0])
        tangent = fwAD.unpack_dual(pooled(dual)).tangent
        reverse_over_forward = torch.autograd.grad(tangent.sum(), x)[0]
    torch.testing.assert_close(forward_over_reverse.tangent, reverse_over_forward)


def test_what_is_recorded_computes_what_the_layer_does():
    layer, x = FractionalMaxPool2d(0.5).eval(), torch.arange(16.0).view(1, 1, 4, 4)
    recorded = make_fx(layer)(x)
    assert torch.equal(recorded(x + 1), layer(x + 1))


def test_torch_func_looks_into_it():
    layer, x = FractionalMaxPool2d(output_size=4).eval(), torch.randn(3, 2, 7, 7)
    each = torch.func.vmap(torch.func.grad(lambda one: layer(one[None]).square().sum()))(x)
    assert torch.equal(each, torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x)[0])


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@LAYOUTS
@OVERLAPPING
@pytest.mark.parametrize("shape", [(4, 3, 9, 12), (1, 1, 2, 3), (3, 40, 24, 20), (0, 2, 5, 5)])
def test_the_compiled_pass_is_the_reference(dtype, layout, overlapping, shape):
    x = (torch.randn(shape) * 2).round()  # so that many are equal
    x[x > 3], x[x < -3] = float("inf"), float("nan")
    x = x.to(dtype).contiguous(memory_format=layout).requires_grad_()
    n, _, h, w = shape
    keys = splitmix64(torch.arange(n))
    rows = pooling.random_borders(keys, h - overlapping, (h + 1) // 2)
    columns = pooling.pseudorandom_borders(torch.tensor([2**31]), w - overlapping, (w + 1) // 2)
    ours, reference = (
        pooling.maxima(x, rows, columns, overlapping=overlapping, kernel=kernel) for kernel in ("auto", "reference")
    )
    torch.testing.assert_close(ours, reference, rtol=0, atol=0, equal_nan=True)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=layout)
    g = torch.randint(-8, 9, ours.shape).to(dtype)  # whole numbers: their sums are exact in any order
    assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (ours, reference)))


@LAYOUTS
def test_threads_change_nothing(layout):
    layer, x = FractionalMaxPool2d(), torch.randn(8, 8, 40, 40).contiguous(memory_format=layout).requires_grad_()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with keyed(layer, 0):
            y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *results))


def test_a_view_and_an_expanded_batch_are_read_where_they_lie():
    layer, x = FractionalMaxPool2d().eval(), torch.randn(4, 6, 20, 20)
    assert torch.equal(layer(x[::2, 1:4, :, 2:].transpose(2, 3)), layer(x[::2, 1:4, :, 2:].transpose(2, 3).clone()))
    assert torch.equal(layer(x[:1].expand(3, -1, -1, -1)), layer(x[:1]).expand(3, -1, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"output_ratio": 0.3}, (1, 1, 9, 9), "from 1/2 to below 1"),
        ({"output_ratio": 0.7, "output_size": 5}, (1, 1, 9, 9), "give one of them"),
        ({"mode": "fixed"}, (1, 1, 9, 9), "random or pseudorandom"),
        ({"output_size": 3}, (1, 1, 9, 9), "9 pixels cannot become 3: it can become 4 to 8"),
        ({"output_size": 9}, (1, 1, 9, 9), "it can become 4 to 8"),
        ({}, (1, 9, 9), r"images are \(n, c, h, w\)"),
    ],
)
def test_bad_input(arguments, shape, message):
    with pytest.raises(InputError, match=message):
        FractionalMaxPool2d(**arguments)(torch.zeros(shape))
