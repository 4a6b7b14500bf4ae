"""Stochastic depth: torchvision's and timm's formula given the same draws, and the paper's scaling."""

import pytest
import torch
from scipy import stats

from trainwell import InputError
from trainwell.regularize import StochasticDepth, depth_rates, keyed
from trainwell.regularize.noise import sampling


def noisy(layer, x, rows=None):
    with keyed(layer, 0, 5, rows=rows):
        return layer(x)


def as_torchvision_and_timm(x, kept, p):
    """Both: noise of one number a row, drawn 0 or 1, divided by the chance of survival, times the input."""
    noise = kept.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    survival = 1.0 - p
    if survival > 0:
        noise.div_(survival)
    return x * noise


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_row_mode_is_theirs_to_the_bit_given_the_same_draws(p, dtype):
    x = torch.randn(64, 3, 4, 4).to(dtype)
    y = noisy(StochasticDepth(p), x)
    kept = y.flatten(1).any(1)
    assert torch.equal(y, as_torchvision_and_timm(x, kept, p))
    assert y.dtype == dtype
    classic = noisy(StochasticDepth(p, scaling="classic"), x)
    assert torch.equal(classic, x * kept.to(dtype).view(-1, 1, 1, 1))


def test_rows_survive_as_often_as_they_should_and_evaluation_is_the_mean():
    x = torch.ones(40_000, 1, dtype=torch.float64)
    for p in (0.05, 0.3, 0.8):
        for scaling in ("inverted", "classic"):
            layer = StochasticDepth(p, scaling=scaling)
            y = noisy(layer, x)
            assert stats.binomtest(int((y == 0).sum()), len(x), p).pvalue > 1e-4
            mean = (1 - p) * y.max()
            torch.testing.assert_close(layer.eval()(x[:1])[0, 0], mean)


def test_batch_mode_draws_once_for_all_pieces_of_a_batch():
    layer, x = StochasticDepth(0.5, mode="batch"), torch.ones(8, 3)
    draws = []
    for step in range(2000):
        with keyed(layer, step):
            y = layer(x)
        with keyed(layer, step, rows=range(4, 8)):
            assert torch.equal(layer(x[4:]), y[4:])
        assert len(y.unique()) == 1
        draws.append(float(y[0, 0]))
    assert set(draws) == {0.0, 2.0}
    assert stats.binomtest(draws.count(0.0), 2000, 0.5).pvalue > 1e-4


def test_pieces_have_the_rows_of_the_whole_and_the_gradient_skips_with_them():
    layer, x = StochasticDepth(0.5), torch.randn(10, 3, requires_grad=True)
    y = noisy(layer, x)
    assert torch.equal(noisy(layer, x[6:], rows=range(6, 10)), y[6:])
    y.sum().backward()
    kept = y.detach().any(1)
    assert torch.equal(x.grad, kept.float()[:, None].expand(-1, 3) * 2)


def test_it_is_sampled_in_evaluation():
    layer = StochasticDepth(0.5).eval()
    x = torch.ones(100, 1)
    assert torch.equal(layer(x), x)
    with sampling(layer):
        assert not torch.equal(layer(x), layer(x))


def test_rates_rise_by_equal_steps():
    assert depth_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert depth_rates(0.3, 1) == [0.3]  # not nothing
    assert depth_rates(0.3, 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"p": 2}, "fraction"), ({"p": 0.1, "mode": "rows"}, "row or batch"), ({"p": 0.1, "scaling": "x"}, "inverted or")],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        StochasticDepth(**arguments)
